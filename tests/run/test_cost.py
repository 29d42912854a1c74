"""Operations and memory of an update, before it is compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from reverie.run import cost


def flops(function: object, *shapes: tuple[int, ...]) -> float:
    return cost._flops(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)).jaxpr)


def test_products_and_convolutions_are_counted() -> None:
    assert flops(jnp.matmul, (3, 4), (4, 5)) == 2 * 3 * 4 * 5
    assert flops(jax.jit(lambda x, y: jnp.tanh(x @ y) + 1), (3, 4), (4, 5)) == 120
    convolve = lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME")
    assert flops(convolve, (2, 3, 8, 8), (5, 3, 3, 3)) == 2 * (2 * 5 * 8 * 8) * 3 * 3 * 3


def test_a_loop_counts_as_often_as_it_turns() -> None:
    turn = lambda x, y: jax.lax.scan(lambda c, _: (c @ y, None), x, length=7)[0]
    assert flops(turn, (4, 4), (4, 4)) == 7 * 128
    gradient = jax.grad(lambda x, y: turn(x, y).sum())
    assert flops(gradient, (4, 4), (4, 4)) == pytest.approx(2 * 7 * 128), "forward, and back to x"


def test_memory_is_what_is_alive_at_once() -> None:
    def chain(x: jax.Array) -> jax.Array:
        for _ in range(5):
            x = jnp.tanh(x @ x)
        return x

    alive = lambda function: cost._alive(jax.make_jaxpr(function)(jnp.zeros((10, 10))).jaxpr)
    assert alive(chain) <= 3 * 400, "each is gone when the next is made"
    assert alive(jax.grad(lambda x: chain(x).sum())) >= 5 * 400, "going back needs them all"
