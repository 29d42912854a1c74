"""Constants of a paper that hardly anybody changes, except to ask what they do: one flag for all of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from reverie.fields import replace_from_json


def merged(before: str, typed: str) -> str:
    """Constants as JSON, those that are `typed` in place of those of `before`, one by one. What is no JSON object stays
    as it is, to be refused."""
    try:
        return json.dumps(json.loads(before) | json.loads(typed), sort_keys=True)
    except (ValueError, TypeError):
        return typed


@dataclass(frozen=True, kw_only=True)
class HasChoices:
    """The flag. A paper's config says what its constants are (`paper`), a dataclass."""

    choices: str = "{}"
    """JSON object of constants of the paper to change, as for an ablation: '{"NAME": VALUE}'. They come on top of those
    of a preset, one by one. `reverie list ALGORITHM` prints all values, the algorithm's file says what they mean."""

    def __post_init__(self) -> None:
        self.chosen()
        # In one form, so that two texts are equal if what they say is.
        object.__setattr__(self, "choices", json.dumps(json.loads(self.choices), sort_keys=True))

    def paper(self) -> Any:
        """The constants of the paper."""
        raise NotImplementedError

    def chosen(self) -> Any:
        """The constants of the paper, with those of `choices` in place of their own.

        Raises:
          ConfigError: there is no such constant, or its value cannot be.
        """
        return replace_from_json(self.paper(), self.choices, "choices")
