"""DreamerV3 with `--observe fused`: the same losses and gradients, and where there is no such kernel."""

import dataclasses

import jax
import numpy as np
import pytest
from dreamer import KEY, config_of, filled_state, random_batch, small_agent

from reverie import api, assembly, config, plan
from reverie.algos.dreamer import loops, v3
from reverie.fields import ConfigError
from reverie.model import kernel


def differentiate(observe):
    """The loss of an update, and its gradient."""
    agent = small_agent(observe=observe, free_nats=0.0, imagination=1)
    state, batch = filled_state(agent), random_batch(agent)
    batch["is_first"] = batch["is_first"].at[0, 3].set(True)
    return jax.jit(jax.value_and_grad(lambda model: agent.loss(model, state, batch, KEY)[0]))(state.model)


def test_the_gradient_reaches_every_parameter_and_is_that_of_the_scan():
    (loss, grads), (same, others) = differentiate("scan"), differentiate("fused")
    np.testing.assert_allclose(same, loss, rtol=1e-5)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(others), strict=True):
        name = jax.tree_util.keystr(path)
        assert np.any(y), name
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-4 * np.abs(x).max(), err_msg=name)


@pytest.mark.parametrize(
    ("values", "place", "words"),
    [
        ({"dynamics": "none"}, {}, "--dynamics rssm, not none"),
        ({"size": "12m"}, {}, "--size 200k or 1m, not 12m"),
        ({"recurrence": "dense"}, {}, "the recurrence block, not dense"),
        ({"norm": "layer", "size": "50m"}, {}, "--size 200k or 1m, not 50m, the norm rms"),
        ({}, {"devices": 2}, "--devices 1, not 2"),
        ({}, {"platform": "cpu", "precision": "bfloat16"}, "--precision float32 on a CPU, not bfloat16"),
    ],
)
def test_what_the_kernel_cannot_do_is_refused_and_auto_does_without(values, place, words):
    place = {"platform": "gpu", "devices": 1, "precision": "bfloat16", "batch": 16, "length": 64} | place
    with pytest.raises(ConfigError, match=f"--observe fused needs .*{words}.*; or type --observe scan"):
        loops.settle(config_of(v3, observe="fused", **values), pytest.fail, **place)
    assert loops.settle(config_of(v3, observe="auto", **values), pytest.fail, **place) == "scan"


@pytest.mark.parametrize(("faster", "chosen"), [(True, "fused"), (False, "scan")])
def test_auto_is_what_a_gpu_is_measured_to_do_faster(faster, chosen, monkeypatch):
    asked = []
    monkeypatch.setattr(kernel, "is_faster", lambda dyn, *sizes: asked.append((dyn, *sizes)) or faster)
    conf = config.override(config.default("dreamer_v3"), size="200k", observe="auto", batch=8, length=32)
    conf = config.override(conf, precision="float32", devices=1)
    assert assembly.with_loop(conf, "gpu").agent == dataclasses.replace(conf.agent, observe=chosen)
    ((dyn, *sizes),) = asked
    assert (dyn.deter, dyn.loop) == (256, kernel.fused)
    assert sizes == [8, 32, "float32"]
    assert assembly.with_loop(conf, "cpu").agent.observe == "scan"
    assert len(asked) == 1


def test_a_run_keeps_the_loop_that_it_began_with():
    typed = config.override(config.default("dreamer_v3"), env="CartPole-v1", observe="auto")
    with api.computing(typed) as (_, begun):
        assert begun.agent.observe == "scan"
    saved = config.override(begun, observe="fused")
    assert config.contradictions(saved, typed) == []
    assert config.continuation(saved, typed).agent.observe == "fused"
    assert config.contradictions(saved, begun) == []
    assert config.continuation(saved, begun).agent.observe == "scan"


def test_a_plan_says_that_a_cpu_interprets_the_kernel():
    conf = config.override(config.default("dreamer_v3"), env="CartPole-v1", size="200k", observe="fused")
    with api.computing(conf) as (devices, conf):
        assert "a CPU interprets it: for tests, and slower" in plan.interpretation(conf, devices)
        assert plan.interpretation(config.override(conf, observe="scan"), devices) == ""
