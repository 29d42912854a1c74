"""Functions under jit that count how often they are compiled, and how they are compiled."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import jax

logger = logging.getLogger("reverie")

PATIENCE = 3.0  # seconds of a first call after which a person is told that it compiles

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


class CountedJit:
    """A function under jit that knows how often it was traced: more than once is a mistake.

    Args:
      pack: applied to its result, under the same jit.

    Attributes:
      compiling: seconds that the first call took.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        pack: Callable[[Any], Any] = lambda result: result,
        **options: Any,
    ) -> None:
        self.name, self.traces, self.compiling = name, 0, 0.0

        def traced(*args: Any) -> Any:
            self.traces += 1
            if self.traces > 1 and _jitting():
                logger.warning("%s is compiled again: its arguments changed shape or dtype", name)
            return pack(function(*args))

        self._call = jax.jit(traced, **options)

    def __call__(self, *args: Any) -> Any:
        if not _jitting():
            args = jax.device_put(args)  # as jit does: an agent meets no numpy arrays
        if self.traces or not _jitting():
            return self._call(*args)
        timer = threading.Timer(PATIENCE, logger.info, ("compiling %s, once for this shape", self.name))
        timer.daemon = True
        timer.start()
        before = time.perf_counter()
        try:
            return self._call(*args)
        finally:
            timer.cancel()
            self.compiling = time.perf_counter() - before


def _jitting() -> bool:
    return not jax.config.jax_disable_jit  # type: ignore[attr-defined]  # with `--debug`
