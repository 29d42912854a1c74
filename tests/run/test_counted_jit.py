"""How functions are compiled."""

from __future__ import annotations

import threading
from collections.abc import Callable

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.run import counted_jit
from reverie.run.counted_jit import CountedJit, decision_options, gradient_options, seldom_options
from reverie.run.stop import UNAWAITED


def _gradient(x: jax.Array, kernel: jax.Array) -> jax.Array:
    def loss(kernel: jax.Array) -> jax.Array:
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jnp.sum(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions) ** 2)

    return jax.grad(loss)(kernel)


def test_convolutions_of_an_update_are_not_left_to_the_slower_library():
    x, kernel = jnp.ones((64, 32, 32, 16)), jnp.ones((5, 5, 16, 16))
    program = jax.jit(_gradient, compiler_options=gradient_options()).lower(x, kernel).compile().as_text()
    assert "convolution(" in program
    assert "ynn_fusion" not in program


@pytest.mark.parametrize(
    ("name", "options"),
    [("_GRADIENTS", gradient_options), ("_SELDOM", seldom_options), ("_DECISIONS", decision_options)],
)
def test_a_compiler_that_does_not_know_an_option_compiles_without_it(
    name: str, options: Callable[[], dict[str, str] | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert options()
    monkeypatch.setattr(counted_jit, name, {"xla_no_such_option": "1"})
    assert options() is None


def test_what_was_compiled_ahead_is_compiled_once() -> None:
    """In the thread that does it, the default device is that of the caller: JAX would compile anew for another one."""
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **about: name.endswith("backend_compile_duration") and compiled.append(about["fun_name"])
    )
    function = CountedJit("train", lambda state, x: (state + x["x"].sum(), x["x"] * 2), donate_argnums=0)
    with jax.default_device(jax.devices()[0]):
        function.compile_ahead(jax.ShapeDtypeStruct((3,), jnp.float32), {"x": jax.ShapeDtypeStruct((5,), jnp.bfloat16)})
        state = jnp.ones(3)
        for _ in range(3):
            state, twice = function(state, {"x": np.ones(5, jnp.bfloat16)})
    assert (state.tolist(), twice.tolist()) == ([16] * 3, [2] * 5)
    assert function.traces == 1
    assert compiled.count("jit(traced)") == 1


def test_a_thread_that_compiles_is_known_by_its_name() -> None:
    """The command line does not wait for one at its end."""
    function = CountedJit("train", lambda x: (names.append(threading.current_thread().name), x)[1])
    names: list[str] = []
    function.compile_ahead(jax.ShapeDtypeStruct((), jnp.float32))
    function(jnp.float32(0))
    assert len(names) == 1
    assert names[0].startswith(UNAWAITED)


def test_other_shapes_than_those_compiled_ahead_are_compiled_too(caplog: pytest.LogCaptureFixture) -> None:
    function = CountedJit("train", lambda x: x + 1)
    function.compile_ahead(jax.ShapeDtypeStruct((3,), jnp.float32))
    assert function(jnp.zeros(4)).tolist() == [1] * 4
    assert "train is compiled again" in caplog.text


def test_what_cannot_be_compiled_ahead_is_told_by_the_call() -> None:
    function = CountedJit("train", lambda x: x.reshape(7))
    function.compile_ahead(jax.ShapeDtypeStruct((3,), jnp.float32))
    with pytest.raises(TypeError, match="reshape"):
        function(jnp.zeros(3))


def test_a_state_is_taken_apart_once_and_the_next_one_again() -> None:
    taken_apart = []

    class State:
        def __init__(self, x: float) -> None:
            self.x = jnp.float32(x)

    jax.tree_util.register_pytree_node(
        State, lambda state: (taken_apart.append(state) or [state.x], None), lambda _, parts: State(parts[0])
    )
    add = CountedJit("add", lambda state, y: state.x + y, same_state=True)
    first, second = State(1.0), State(5.0)
    assert [float(add(first, y)) for y in (1.0, 2.0)] == [2.0, 3.0]
    assert taken_apart == [first]
    assert float(add(second, 2.0)) == 7.0
    assert taken_apart == [first, second]
    assert add.traces == 1
