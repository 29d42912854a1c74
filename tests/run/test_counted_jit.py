"""How functions are compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from reverie.run import counted_jit
from reverie.run.counted_jit import gradient_options


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


def test_a_compiler_that_does_not_know_the_option_compiles_without_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(counted_jit, "_OPTIONS", {"xla_no_such_option": "1"})
    gradient_options.cache_clear()
    try:
        assert gradient_options() is None
    finally:
        gradient_options.cache_clear()
