from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dreamer import bits

from reverie.nn.optim import adam, clip_per_tensor, each, finite, guarded, laprop

CASES = ["laprop_agc_default", "laprop_agc_nowarm", "laprop_agc_warm3", "laprop_noagc"]


@pytest.mark.parametrize("name", CASES)
def test_five_updates_match_the_reference(golden, name):
    g = golden(name)
    s = g.spec
    optimizer = laprop(
        s["lr"],
        warmup=s["warmup"],
        agc=s["agc"],
        beta1=s["beta1"],
        beta2=s["beta2"],
        eps=s["eps"],
        floor=s["pmin"],
    )
    tensors = [key.removeprefix("p0:") for key in g.inputs if key.startswith("p0:")]
    params = {k: g.inputs[f"p0:{k}"] for k in tensors}
    state = optimizer.init(params)

    @jax.jit
    def update(grads, state, params):
        changes, state = optimizer.update(grads, state, params)
        return changes, state, optax.apply_updates(params, changes)

    steps = len(g.inputs[f"g:{tensors[0]}"])
    seen, moved = [], []
    for i in range(steps):
        changes, state, params = update({k: g.inputs[f"g:{k}"][i] for k in tensors}, state, params)
        seen.append(params)
        moved.append(changes)
    for k in tensors:
        g.check(f"p:{k}", np.stack([p[k] for p in seen]))
        # With a tiny learning rate the parameters alone would hide a wrong change: hold the changes
        # themselves against the differences of the reference's float64 parameters.
        path = np.concatenate([np.asarray(g.inputs[f"p0:{k}"], np.float64)[None], g.outputs[f"p:{k}"]])
        change = np.diff(path, axis=0)
        error = np.abs(np.stack([m[k] for m in moved]) - change)
        allowed = 2e-5 * np.maximum(np.abs(change), np.abs(change).max())
        assert (error <= allowed).all(), (k, (error / allowed).max())


def test_warm_up_starts_from_zero():
    optimizer = laprop(0.1, warmup=2)
    params = {"w": jnp.ones(3)}
    state = optimizer.init(params)
    sizes = []
    for _ in range(4):
        changes, state = optimizer.update({"w": jnp.ones(3)}, state, params)
        sizes.append(float(-changes["w"][0]))
    np.testing.assert_allclose(sizes, [0.0, 0.05, 0.1, 0.1], rtol=1e-5)


def test_clipping_is_relative_to_the_norm_of_each_tensor():
    params = {"big": jnp.full(4, 5.0), "zero": jnp.zeros(4)}  # norms 10 and 0
    grads = {"big": jnp.full(4, 50.0), "zero": jnp.full(4, 50.0)}  # norm 100 each
    clipped = clip_per_tensor(grads, params, 0.3)
    np.testing.assert_allclose(jnp.linalg.norm(clipped["big"]), 3.0, rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(clipped["zero"]), 0.3e-3, rtol=1e-6)
    small = {"big": jnp.full(4, 0.1), "zero": jnp.zeros(4)}
    kept = clip_per_tensor(small, params, 0.3)
    np.testing.assert_array_equal(kept["big"], small["big"])
    np.testing.assert_array_equal(kept["zero"], 0)


def test_a_zero_gradient_from_the_start_moves_nothing():
    optimizer = laprop(0.1, warmup=0)
    params = {"w": jnp.ones(3)}
    changes, _ = optimizer.update({"w": jnp.zeros(3)}, optimizer.init(params), params)
    np.testing.assert_array_equal(changes["w"], 0)


def test_adam_clips_the_norm_of_the_whole_gradient_and_warms_up():
    params, grads = {"a": jnp.zeros(3), "b": jnp.zeros(1)}, {"a": jnp.zeros(3), "b": jnp.full(1, 50.0)}
    optimizer = adam(0.1, eps=1.0, clip=1.0)
    changes, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(changes["b"], -0.1 * 1 / (1 + 1), rtol=1e-5)
    slow = adam(0.1, warmup=2)
    state, seen = slow.init(params), []
    for _ in range(3):
        changes, state = slow.update(grads, state, params)
        seen.append(-float(changes["b"][0]))
    np.testing.assert_allclose(seen, [0.0, 0.05, 0.1], rtol=1e-4)


def test_each_part_has_an_optimizer_of_its_own():
    params = {"world": jnp.ones(2), "actor": jnp.ones(2)}
    parts = {"slow": adam(0.1, eps=1.0, clip=1.0), "fast": adam(10.0, eps=1.0, clip=1.0)}
    optimizer = each(parts, lambda name: "fast" if name == "actor" else "slow")
    changes, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    g = 1 / np.sqrt(2)  # clipped by the norm of the part, not of everything
    np.testing.assert_allclose(changes["world"], -0.1 * g / (g + 1), rtol=1e-5)
    np.testing.assert_allclose(changes["actor"], -10 * g / (g + 1), rtol=1e-5)


class State(eqx.Module):
    weight: Any
    scale: Any
    key: Any
    nonfinite: Any


OLD = State(jnp.array([1.0, 2.0]), jnp.float32(3), jax.random.key(0), jnp.array([4, 0]))
NEW = State(jnp.array([5.0, 6.0]), jnp.float32(7), jax.random.key(1), OLD.nonfinite)
OUT, STORED = ({"out/latent": jnp.full((2, 3), x, jnp.bfloat16), "out/code": jnp.full(2, x, jnp.uint8)} for x in (8, 9))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("where", ["loss", "scale", "out"])
def test_what_is_not_finite_anywhere_changes_nothing_but_the_counters(where, bad):
    new, out = NEW, OUT
    if where == "out":
        out = OUT | {"out/latent": OUT["out/latent"].at[1, 2].set(bad)}
    if where == "scale":
        new = eqx.tree_at(lambda s: s.scale, NEW, jnp.float32(bad))
    sound = finite((jnp.float32(bad if where == "loss" else 0.5), new.scale))
    state, kept, metrics = jax.jit(guarded)(sound, OLD, new, out, STORED)
    assert bits((state, kept)) == bits((eqx.tree_at(lambda s: s.nonfinite, OLD, jnp.array([5, 1])), STORED))
    assert (metrics["nonfinite/total"], metrics["nonfinite/streak"]) == (5, 1)
    state, kept, metrics = jax.jit(guarded)(jnp.array(True), state, NEW, OUT, STORED)
    assert bits((state, kept)) == bits((eqx.tree_at(lambda s: s.nonfinite, NEW, jnp.array([5, 0])), OUT))
    assert (metrics["nonfinite/total"], metrics["nonfinite/streak"]) == (5, 0)
