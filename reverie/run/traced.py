"""Functions under jit that count how often they are compiled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax

logger = logging.getLogger("reverie")


class Traced:
    """A function under jit that knows how often it was traced: more than once is a mistake."""

    def __init__(self, name: str, function: Callable[..., Any], **options: Any) -> None:
        self.name, self.traces = name, 0

        def traced(*args: Any) -> Any:
            self.traces += 1
            if self.traces > 1 and _jitting():
                logger.warning("%s is compiled again: its arguments changed shape or dtype", name)
            return function(*args)

        self._call = jax.jit(traced, **options)

    def __call__(self, *args: Any) -> Any:
        if not _jitting():
            args = jax.device_put(args)  # as jit does: an agent meets no numpy arrays
        return self._call(*args)


def _jitting() -> bool:
    return not jax.config.jax_disable_jit  # type: ignore[attr-defined]  # with `--debug`
