"""Functions under jit that count how often they are compiled, and how they are compiled."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import jax

from reverie.run.stop import UNAWAITED

logger = logging.getLogger("reverie")

PATIENCE = 3.0  # seconds of a first call after which a person is told that it compiles

# jaxlib 0.10 gives everything on a CPU to YNNPACK, whose gradients of convolutions take twice as long as Eigen's. With
# this, YNNPACK is left the matrix products alone: an update from images takes 0.4 of the time. What has no gradients is
# no faster for it (docs/notebook.md). On a GPU the option says nothing.
_GRADIENTS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
# Six tenths of the compiler's time, for the same initial parameters to the bit (docs/notebook.md).
_SELDOM = {"xla_backend_optimization_level": "1", "xla_cpu_use_fusion_emitters": "False"}
# A search is thousands of operations of a microsecond each. The compiler orders them so that several could run at once,
# and then every one of them costs threads that wait for each other more than it takes.
_DECISIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def gradient_options() -> dict[str, str] | None:
    """`compiler_options` of `jax.jit` for functions with gradients; None where this compiler does not know them."""
    return _GRADIENTS if _knows(tuple(_GRADIENTS.items())) else None


def seldom_options() -> dict[str, str] | None:
    """The same for functions that are called once, or a few times in an hour, and are compiled in less time."""
    return _SELDOM if _knows(tuple(_SELDOM.items())) else None


def decision_options() -> dict[str, str] | None:
    """The same for functions that act."""
    return _DECISIONS if _knows(tuple(_DECISIONS.items())) else None


@cache
def _knows(options: tuple[tuple[str, str], ...]) -> bool:
    """Whether this compiler has these options."""
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


class CountedJit:
    """A function under jit that knows how often it was traced: more than once is a mistake.

    Args:
      pack: applied to its result, under the same jit.
      same_state: the first argument is mostly that of the last call, an agent's state of hundreds of arrays: they are
        found once, not at every call. It must always have the same structure.

    Attributes:
      compiling: seconds that the first call took; what was compiled ahead is not in it.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        pack: Callable[[Any], Any] = lambda result: result,
        same_state: bool = False,
        **options: Any,
    ) -> None:
        self.name, self.traces, self.compiling = name, 0, 0.0
        self._same_state = same_state
        self._state: Any = None  # the last one, and its arrays
        self._arrays: list[Any] = []
        self._structure: Any = None
        self._is_new = True
        self._ahead: Future[Any] | None = None

        def traced(*args: Any) -> Any:
            self.traces += 1
            if self.traces > 1 and _jitting():
                logger.warning("%s is compiled again: its arguments changed shape or dtype", name)
            if same_state:
                args = jax.tree.unflatten(self._structure, args[0]), *args[1:]
            return pack(function(*args))

        self._call = jax.jit(traced, **options)

    def compile_ahead(self, *shapes: Any) -> None:
        """Compiles for arguments of these shapes (`jax.ShapeDtypeStruct`s will do) in a thread of its own, while the
        caller does something else. The first call waits for it; so does the end of a Python process."""
        if _jitting() and self._is_new and self._ahead is None:
            device = jax.config.jax_default_device  # type: ignore[attr-defined]  # JAX has one for every thread

            def compile() -> None:
                with jax.default_device(device):
                    self._call.lower(*shapes).compile()

            pool = ThreadPoolExecutor(1, thread_name_prefix=UNAWAITED)
            self._ahead = pool.submit(compile)
            pool.shutdown(wait=False)

    def __call__(self, *args: Any) -> Any:
        if not _jitting():
            args = jax.device_put(args)  # as jit does: an agent meets no numpy arrays
        if self._same_state:
            if self._structure is None or args[0] is not self._state:
                self._state, (self._arrays, self._structure) = args[0], jax.tree.flatten(args[0])
            args = self._arrays, *args[1:]
        if not (self._is_new and _jitting()):
            return self._call(*args)
        timer = threading.Timer(PATIENCE, logger.info, ("compiling %s, once for this shape", self.name))
        timer.daemon = True
        timer.start()
        before = time.perf_counter()
        try:
            if self._ahead is not None:
                self._ahead.result()
            return self._call(*args)
        finally:
            timer.cancel()
            self._is_new = False
            self.compiling = time.perf_counter() - before


def _jitting() -> bool:
    return not jax.config.jax_disable_jit  # type: ignore[attr-defined]  # with `--debug`
