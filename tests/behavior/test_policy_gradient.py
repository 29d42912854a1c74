import jax
import jax.numpy as jnp
import numpy as np

from reverie.behavior.policy_gradient import actor, imagined_losses, replayed_value_loss
from reverie.behavior.returns import ReturnScale
from reverie.nn.dists import BoundedNormal, OneHot, TwoHot
from reverie.nn.transforms import symexp_bins


def imagined(g, value_logits, policy_logits, policy_mean):
    """`imagined_losses` of a golden case, whose arrays are batch-major."""
    s, x = g.spec, {k: jnp.swapaxes(v, 0, 1) for k, v in g.inputs.items()}
    bins, time_major = symexp_bins(s["bins"]), lambda a: jnp.swapaxes(a, 0, 1)
    mean = time_major(policy_mean)
    policy = {
        "discrete": OneHot(time_major(policy_logits), (3,), ()),
        "vector": BoundedNormal(mean, jnp.zeros_like(mean), (2,), s["cont_std"], s["cont_std"]),
    }
    losses, returns = imagined_losses(
        policy,
        {"discrete": x["act_disc"], "vector": x["act_cont"]},
        TwoHot(time_major(value_logits), bins),
        TwoHot(x["slow_logits"], bins).pred(),
        x["rew"],
        x["con"],
        ReturnScale(s["retnorm"]["lo0"], s["retnorm"]["hi0"]),
        lam=s["lam"],
        entropy=s["actent"],
        rate=s["retnorm"]["rate"],
    )
    return {
        "policy_loss": losses.actor.T,
        "value_loss": losses.critic.T,
        "ret": losses.target.T,
        "retnorm_lo": returns.low,
        "retnorm_hi": returns.high,
    }


def test_imagined_losses_match_the_reference(golden):
    g = golden("imag_loss")
    inputs = [g.inputs[k] for k in ("value_logits", "policy_logits", "policy_mean_pretanh")]

    def total(*inputs):
        out = imagined(g, *inputs)
        return out["policy_loss"].sum() + out["value_loss"].sum(), out

    gradients, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*inputs)
    for name, value in out.items():
        g.check(name, value)
    for name, value in zip(("value_logits", "policy_logits", "policy_mean"), gradients, strict=True):
        g.check(f"grad_{name}", value)


def test_the_replayed_value_loss_matches_the_reference(golden):
    g = golden("repl_loss")
    s, x = g.spec, g.inputs
    bins, gamma = symexp_bins(s["bins"]), 1 - 1 / s["horizon"]
    last, alive = x["last"].astype(jnp.float32), 1 - x["term"].astype(jnp.float32)

    def total(logits):
        value, slow = TwoHot(logits, bins), TwoHot(x["slow_logits"], bins).pred()
        loss, target = replayed_value_loss(value, slow, x["rew"], gamma * alive, last, x["boot"], lam=s["lam"])
        return loss.sum(), {"repval_loss": loss, "ret": target}

    gradient, out = jax.jit(jax.grad(total, has_aux=True))(x["value_logits"])
    for name, value in out.items():
        g.check(name, value)
    g.check("grad_value_logits", gradient)


def test_reinforce_raises_what_paid_off_and_entropy():
    logits = jnp.array([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    actions, advantage = {"a": jnp.array([0, 0, 0], jnp.int32)}, jnp.array([1.0, -1.0, 0.0])

    def loss(logits):
        return actor({"a": OneHot(logits, (2,), ())}, actions, advantage, 0.1).sum()

    gradient = jax.grad(loss)(logits)
    assert gradient[0, 0] < 0 < gradient[0, 1]  # descent makes action 0 more likely
    assert gradient[1, 1] < 0 < gradient[1, 0]
    assert gradient[2, 1] < 0 < gradient[2, 0]  # no advantage: entropy alone


def test_several_actions_share_one_advantage():
    policy = {
        "a": OneHot(jnp.zeros((5, 3)), (3,), ()),
        "b": OneHot(jnp.zeros((5, 8)), (4, 4), (2,)),
    }
    actions = {"a": jnp.zeros(5, jnp.int32), "b": jnp.zeros((5, 2), jnp.int32)}
    loss = actor(policy, actions, jnp.full(5, 2.0), 0.5)
    nats = np.log(3) + 2 * np.log(4)
    np.testing.assert_allclose(loss, 2 * nats - 0.5 * nats, rtol=1e-6)
