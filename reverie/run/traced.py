"""Functions under jit that count how often they are compiled, and how they are compiled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import jax

logger = logging.getLogger("reverie")

# jaxlib 0.10 gives everything on a CPU to YNNPACK, whose gradients of convolutions take twice as long as Eigen's. With
# this, YNNPACK is left the matrix products alone: an update from images takes 0.4 of the time. What has no gradients is
# no faster for it (docs/notebook.md). On a GPU the option says nothing.
_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


@cache
def gradient_options() -> dict[str, str] | None:
    """`compiler_options` of `jax.jit` for functions with gradients; None where this compiler does not know them."""
    try:
        jax.jit(lambda: 0, compiler_options=_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return _OPTIONS


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
