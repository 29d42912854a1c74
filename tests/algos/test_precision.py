"""What is computed in which precision, read off the program of a whole update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dreamer import EVERY_ACTION, KEY, OBS, agent_2023, filled_state, random_batch, small_agent

from reverie.envs.base import Space
from reverie.run.jitted import precise

IMAGE = {"image": Space("image", (48, 48, 3))}
ACT = {k: EVERY_ACTION[k] for k in ("multi", "box")}
KINDS = {"final": small_agent, "v3-2023": agent_2023}  # in the smallest of all sizes
# Shapes of the constants with which `nn.layers.Conv` sums the taps of a kernel into one for all phases of its output.
# These products alone are in full precision, on purpose: they are of weights, a few thousand numbers whatever the
# batch, and a sum of rounded taps would be rounded twice.
TAPS = {"pooled": (3, 2, 2, 5), "upsampled": (2, 5, 3), "transposed": (2, 4, 3)}
# Kernels that are rearranged: four stages down and four up; of 2023 (strided down) three up. Two products each way.
REARRANGED = {"final": 4 * (4 + 4), "v3-2023": 4 * 3}
MOVES = {"slice", "squeeze", "convert_element_type", "select_n", "jit", "pjit", "broadcast_in_dim", "reshape"}
MOVES |= {"is_finite"}  # asked of all that goes back to replay
# What the parts that must be exact are made of: distributions, losses, norms, returns, the optimizer.
EXACT = {"exp", "exp2", "log", "log1p", "expm1", "sqrt", "rsqrt", "erf_inv", "cumsum", "cumprod", "sort", "integer_pow"}


def equations(jaxpr):
    """All equations of a program, those of its loops, branches and calls included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_equations_are_found_wherever_they_hide():
    @jax.custom_vjp
    def double(x):
        return x @ x

    double.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x,))

    def program(x):
        x = jax.jit(lambda x: x @ x)(x)
        x, _ = jax.lax.scan(lambda x, _: (jax.checkpoint(lambda x: x @ x)(x), None), x, length=2)
        x = jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)
        return double(jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x))

    found = equations(jax.make_jaxpr(program)(jnp.ones((2, 2))).jaxpr)
    assert sum(e.primitive.name == "dot_general" for e in found) == 5


@functools.cache
def programs(kind, inputs, precision):
    """The equations of an update and of a decision, and the shapes of what the update returns. The precision `products`
    is bfloat16 as a CPU has it."""
    half = precision == "products"
    agent = KINDS[kind](IMAGE if inputs == "image" else OBS, ACT, "float32" if half else precision)
    state, batch = jax.eval_shape(agent.init, KEY), random_batch(agent, 3)
    function = precise(agent.train, "bfloat16") if half else agent.train
    train, shapes = jax.make_jaxpr(function, return_shape=True)(state, batch)
    rows = {k: v[:, 0] for k, v in batch.items() if not k.startswith(("action/", "out/"))}
    policy = jax.make_jaxpr(functools.partial(agent.policy, mode="train"))(state, agent.init_carry(3, KEY), rows)
    return [*equations(train.jaxpr), *equations(policy.jaxpr)], shapes


def inputs_of(eqn):
    return [(v.aval.shape, str(v.aval.dtype)) for v in eqn.invars if hasattr(v.aval, "dtype")]


def products(found):
    return [inputs_of(e) for e in found if e.primitive.name in ("dot_general", "conv_general_dilated")]


CASES = [(kind, inputs) for kind in KINDS for inputs in ("vector", "image")]


@pytest.mark.parametrize(("kind", "inputs"), CASES)
def test_half_precision_multiplies_in_half_precision(kind, inputs):
    found, (state, out, metrics) = programs(kind, inputs, "bfloat16")
    half = [p for p in products(found) if [d for _, d in p] == ["bfloat16", "bfloat16"]]
    rest = [p for p in products(found) if p not in half]
    assert len(half) > 100
    for product in rest:
        assert [d for _, d in product] == ["float32", "float32"], product
        assert {shape for shape, _ in product} & set(TAPS.values()), product
    # A decision rearranges the kernels of the encoder once more, without a gradient.
    deciding = 2 * 4 if kind == "final" else 0
    assert len(rest) == (REARRANGED[kind] + deciding if inputs == "image" else 0)
    assert {x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)} == {np.dtype("float32")}
    assert {np.dtype(x.dtype).name for x in metrics.values()} == {"float32", "int32"}
    assert all(x.dtype in (jnp.bfloat16, np.uint8) for x in out.values())


@pytest.mark.parametrize(("kind", "inputs"), CASES)
def test_losses_distributions_and_norms_are_never_in_half_precision(kind, inputs):
    found, _ = programs(kind, inputs, "bfloat16")
    exact = [e for e in found if e.primitive.name in EXACT]
    assert len(exact) > 100
    assert [e for e in exact if any(d == "bfloat16" for _, d in inputs_of(e))] == []


@pytest.mark.parametrize(("kind", "inputs"), CASES)
def test_full_precision_only_stores_in_half(kind, inputs):
    found, _ = programs(kind, inputs, "float32")
    assert len(products(found)) > 100
    assert {d for p in products(found) for _, d in p} == {"float32"}
    touched = {e.primitive.name for e in found if any(d == "bfloat16" for _, d in inputs_of(e))}
    assert touched <= MOVES
    assert ("slice" in touched) == (kind == "final"), "the stored latents, which v3-2023 has none of"


@pytest.mark.parametrize(("kind", "inputs"), CASES)
def test_a_cpu_rounds_the_operands_of_products_alone(kind, inputs):
    """Not those of the gradients by weights: they would be no faster."""
    found, (state, _, metrics) = programs(kind, inputs, "products")
    half = [e for e in found if e.primitive.name == "dot_general" and inputs_of(e)[0][1] == "bfloat16"]
    assert len(half) > 60
    assert {e.outvars[0].aval.dtype for e in half} == {np.dtype("float32")}
    assert all({d for _, d in inputs_of(e)} == {"bfloat16"} for e in half)
    touched = {e.primitive.name for e in found if any(d == "bfloat16" for _, d in inputs_of(e))}
    assert touched <= MOVES | {"dot_general", "scan"}
    float32 = [x for x in jax.tree.leaves((state, metrics)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {np.dtype(x.dtype).name for x in float32} == {"float32"}


@pytest.mark.parametrize(("precision", "cpu"), [("bfloat16", False), ("float32", True)])
def test_losses_in_half_precision_are_close_to_the_ones_in_full(precision, cpu):
    metrics = {}
    for name in ("float32", "bfloat16"):
        agent = small_agent(precision="float32" if name == "float32" else precision)
        state = filled_state(agent)
        loss = jax.jit(precise(agent.loss, "bfloat16") if cpu and name == "bfloat16" else agent.loss)
        args = state.model, state, random_batch(agent), KEY
        _, (out, _, metrics[name]) = loss(*args)
        assert np.isfinite(out["out/deter"].astype(jnp.float32)).all()
    for name, value in metrics["bfloat16"].items():
        assert np.isfinite(value), name
    for name in ("decode/vector", "decode/token", "reward", "continue", "dynamics"):
        half, full = (metrics[p][f"loss/{name}"] for p in ("bfloat16", "float32"))
        np.testing.assert_allclose(half, full, rtol=0.1, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "cpu"), [("bfloat16", False), ("float32", True)])
def test_an_agent_in_half_precision_learns_a_batch_by_heart(precision, cpu):
    agent = small_agent(precision=precision)
    train = jax.jit(precise(agent.train, "bfloat16") if cpu else agent.train)
    state, batch, history = jax.jit(agent.init)(KEY), random_batch(agent, 2, 4), []
    for _ in range(40):
        state, out, metrics = train(state, batch)
        history.append(metrics)
    assert all(np.isfinite(v) for h in history for v in h.values())
    assert history[-1]["nonfinite/total"] == 0
    assert out["out/deter"].dtype == jnp.bfloat16
    for name, share in {"decode/vector": 0.5, "decode/token": 0.5, "reward": 0.5}.items():
        assert history[-1][f"loss/{name}"] < share * history[0][f"loss/{name}"], name
