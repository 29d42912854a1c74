"""Who may name code: a person may, a file may not.

A run directory is data, and may come from anybody. Of what its config names, only this is built without asking: ids
that are registered with Gymnasium, families of envs, Reverie's toys and its collectors. A person vouches for the rest
by typing it again, or for all of it at once (`--trust`).
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence

from reverie.config import ConfigError
from reverie.envs import code
from reverie.envs.spec import EnvSpec, brings
from reverie.fields import flag

COLLECTORS = frozenset({"reverie.envs.box2d:drive"})


class NeedsTrust(ConfigError):
    """A run directory names code for which nobody vouched.

    Args:
      what: would be run, a sentence.
      missing: value that may be typed again -> what it is; empty where that would not help.
    """

    def __init__(self, what: str, missing: dict[str, str]) -> None:
        given = ", ".join(f"{name}={value!r}" for name, value in missing.items())
        super().__init__(f"{what}. If you trust it, pass {given}, or trust=True" if missing else what)
        self.what, self.missing = what, missing

    def answer(self, argv: Sequence[str]) -> str:
        if not self.missing:
            return self.what
        again = [x for name, value in self.missing.items() for x in (flag(name), value)]
        command = shlex.join([*argv, *again])
        return f"{self.what}. If you trust it, type\n  reverie {command}\nor add --trust instead"


RULE = "a run directory runs no code that only its config names"


def check_code(trust: Collection[str], env: EnvSpec, collector: str = "", rule: str = RULE) -> None:
    """Raises NeedsTrust if the env or the collector of a saved config would bring code of its own.

    Args:
      trust: names of the values that a person typed, of `CODE`.
      rule: the sentence that a refusal begins with.
    """
    found: dict[str, tuple[str, str]] = {}
    if "env" not in trust and (does := brings(env)):
        found["env"] = env.id, does
    if collector and "collector" not in trust and collector not in COLLECTORS:
        module, _, name = collector.rpartition(":")
        found["collector"] = collector, f"{code.wording(module, name)} at every step"
    if not found:
        return
    wording = "; ".join(f"its {name} {value!r} would {does}" for name, (value, does) in found.items())
    missing = {name: value for name, (value, _) in found.items()}
    library = [v for v in missing.values() if code.of_library(v.removeprefix("device:").rpartition(":")[0])]
    if library:
        wording += f", and {' and '.join(library)} is of Python's own library, where no envs are"
    raise NeedsTrust(f"{rule}: {wording}", {} if library else missing)
