import jax
import jax.numpy as jnp
import numpy as np

from reverie.behavior.policy_gradient import critic, reinforce
from reverie.behavior.returns import ReturnScale, lambda_return
from reverie.nn.dists import BoundedNormal, OneHot, TwoHot
from reverie.nn.transforms import symexp_bins

# The two compositions below repeat those of `DreamerV3._behave` and `DreamerV3.loss`, batch-major
# as the golden files are.


def imagined_losses(g, value_logits, policy_logits, policy_mean):
    s, x = g.spec, g.inputs
    bins = symexp_bins(s["bins"])
    value, slow = TwoHot(value_logits, bins), TwoHot(x["slow_logits"], bins).pred()
    policy = {
        "discrete": OneHot(policy_logits, (3,), ()),
        "vector": BoundedNormal(policy_mean, jnp.zeros_like(policy_mean), (2,), s["cont_std"], s["cont_std"]),
    }
    actions = {"discrete": x["act_disc"], "vector": x["act_cont"]}
    mean = jax.lax.stop_gradient(value.pred())
    target = lambda_return(x["rew"], x["con"], jnp.full_like(mean, s["lam"]), mean)
    returns = ReturnScale(s["retnorm"]["lo0"], s["retnorm"]["hi0"]).update(target, s["retnorm"]["rate"])
    advantage = (target - mean[:, :-1]) / returns.scale(s["retnorm"]["limit"])
    weight = jnp.cumprod(x["con"], 1)
    padded = jnp.concatenate([advantage, jnp.zeros_like(advantage[:, :1])], 1)
    actor = (weight * reinforce(policy, actions, padded, s["actent"]))[:, :-1]
    padded = jnp.concatenate([target, slow[:, -1:]], 1)
    value_loss = (weight * critic(value, padded, slow, s["slowreg"]))[:, :-1]
    return {
        "policy_loss": actor,
        "value_loss": value_loss,
        "ret": target,
        "retnorm_lo": returns.low,
        "retnorm_hi": returns.high,
    }


def test_imagined_losses_match_the_reference(golden):
    g = golden("imag_loss")
    inputs = [g.inputs[k] for k in ("value_logits", "policy_logits", "policy_mean_pretanh")]

    def total(*inputs):
        out = imagined_losses(g, *inputs)
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
        target = lambda_return(x["rew"], gamma * alive, s["lam"] * (1 - last), x["boot"])
        padded = jnp.concatenate([target, slow[:, -1:]], 1)
        loss = ((1 - last) * critic(value, padded, slow, s["slowreg"]))[:, :-1]
        return loss.sum(), {"repval_loss": loss, "ret": target}

    gradient, out = jax.jit(jax.grad(total, has_aux=True))(x["value_logits"])
    for name, value in out.items():
        g.check(name, value)
    g.check("grad_value_logits", gradient)


def test_reinforce_raises_what_paid_off_and_entropy():
    logits = jnp.array([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    actions, advantage = {"a": jnp.array([0, 0, 0], jnp.int32)}, jnp.array([1.0, -1.0, 0.0])

    def loss(logits):
        return reinforce({"a": OneHot(logits, (2,), ())}, actions, advantage, 0.1).sum()

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
    loss = reinforce(policy, actions, jnp.full(5, 2.0), 0.5)
    nats = np.log(3) + 2 * np.log(4)
    np.testing.assert_allclose(loss, 2 * nats - 0.5 * nats, rtol=1e-6)
