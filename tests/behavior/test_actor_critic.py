import jax
import jax.numpy as jnp
import numpy as np

from reverie.behavior.actor_critic import (
    actor,
    actor_critic_losses,
    clipped_surrogate,
    clipped_value_loss,
    log_probability,
    replayed_value_loss,
)
from reverie.behavior.imagine import rollout, trajectory
from reverie.behavior.returns import ReturnScale
from reverie.nn.dists import BoundedNormal, OneHot, SquaredError, TwoHot
from reverie.nn.transforms import symexp_bins


def imagined(g, value_logits, policy_logits, policy_mean):
    """`actor_critic_losses` of a golden case, whose arrays are batch-major."""
    s, x = g.spec, {k: jnp.swapaxes(v, 0, 1) for k, v in g.inputs.items()}
    bins, time_major = symexp_bins(s["bins"]), lambda a: jnp.swapaxes(a, 0, 1)
    mean = time_major(policy_mean)
    policy = {
        "discrete": OneHot(time_major(policy_logits), (3,), ()),
        "vector": BoundedNormal(mean, jnp.zeros_like(mean), (2,), s["cont_std"], s["cont_std"]),
    }
    value = TwoHot(time_major(value_logits), bins)
    actions = {"discrete": x["act_disc"], "vector": x["act_cont"]}
    mean = jax.lax.stop_gradient(value.pred())
    dreamt = trajectory(None, actions, x["rew"], x["con"], mean, lam=s["lam"])
    losses, returns = actor_critic_losses(
        policy,
        value,
        TwoHot(x["slow_logits"], bins).pred(),
        dreamt,
        dreamt.weight,
        ReturnScale(s["retnorm"]["lo0"], s["retnorm"]["hi0"]),
        entropy=s["actent"],
        rate=s["retnorm"]["rate"],
    )
    return {
        "policy_loss": losses.actor.T,
        "value_loss": losses.critic.T,
        "ret": dreamt.target.T,
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


class Slide:
    """A world on a line: an action pushes a point, which pays for its distance to 1 and may fall off."""

    def imagine(self, x, action, key):
        return 0.8 * x + 0.5 * action["push"][:, 0] + 0.1 * jax.random.normal(key, x.shape)

    def predict(self, x):
        return -jnp.square(x - 1), jax.nn.sigmoid(3 - x)


def slide_loss(push, differentiable):
    """Actor loss of pushing with mean tanh(push), whatever the state: a policy of one number."""
    world, start = Slide(), jnp.array([0.5, -0.3, 2.0])

    def policy(x):
        shape = (*x.shape, 1)
        return {"push": BoundedNormal(jnp.broadcast_to(push.reshape((1,) * len(shape)), shape), jnp.zeros(shape), (1,))}

    def act(x, key):
        action = {"push": policy(x)["push"].sample(key)}
        return action if differentiable else jax.lax.stop_gradient(action)

    states, actions = rollout(world, act, start, 4, jax.random.key(3))
    dreamt = trajectory(states, actions, *world.predict(states), 0.3 * states, lam=0.9)
    losses, _ = actor_critic_losses(
        policy(jax.lax.stop_gradient(dreamt.latent)),
        SquaredError(dreamt.value, 0),
        dreamt.value,
        dreamt,
        dreamt.weight,
        ReturnScale(),
        entropy=0.0,
        rate=0.0,
        differentiable=frozenset({"push"} if differentiable else ()),
    )
    return losses, dreamt.weight


def test_the_dynamics_gradient_is_the_slope_of_the_return():
    push, losses = jnp.array(0.2), jax.jit(lambda p: slide_loss(p, True))
    weight = np.asarray(losses(push)[1])[:-1]

    def weighted_advantage(push):
        # The weights are constants to the actor: those of the point where the slope is taken.
        return float((weight * np.asarray(losses(push)[0].advantage, np.float64)).sum())

    step = 1e-2
    slope = (weighted_advantage(push + step) - weighted_advantage(push - step)) / (2 * step)
    gradient = jax.jit(jax.grad(lambda p: slide_loss(p, True)[0].actor.sum()))(push)
    np.testing.assert_allclose(gradient, -slope, rtol=2e-3)
    assert abs(slope) > 0.1


def test_the_score_function_sees_no_slope_through_the_world():
    gradients = [
        jax.jit(jax.grad(lambda p, through=through: slide_loss(p, through)[0].actor.sum()))(jnp.array(0.2))
        for through in (False, True)
    ]
    assert abs(gradients[0] - gradients[1]) > 0.01


def test_mixed_actions_learn_each_in_its_own_way():
    zero = jnp.zeros((1, 1))
    policy = {"jump": OneHot(jnp.zeros((1, 2)), (2,), ()), "push": BoundedNormal(zero, zero, (1,))}
    actions = {"jump": jnp.zeros(1, jnp.int32), "push": zero}
    loss = lambda advantage: actor(policy, actions, advantage, 0.0, frozenset({"push"})).sum()
    value, slope = jax.value_and_grad(loss)(jnp.array([2.0]))
    np.testing.assert_allclose(value, 2 * np.log(2) - 2, rtol=1e-5)
    np.testing.assert_allclose(slope, [-1.0])


def test_weights_begin_as_they_are_told():
    ones = jnp.ones((4, 2))
    predicted = trajectory(None, None, ones, 0.9 * ones, 0 * ones, lam=0.95)
    np.testing.assert_allclose(predicted.weight[:, 0], [0.9, 0.81, 0.729, 0.6561], rtol=1e-5)
    known = trajectory(None, None, ones, 0.9 * ones, 0 * ones, lam=0.95, first=jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(known.weight[:, 0], [1, 0.9, 0.81, 0.729], rtol=1e-5)
    np.testing.assert_allclose(known.weight[:, 1], 0)


def test_the_clipped_surrogate_by_hand():
    #  ratio     1     1.5   1.5    0.5   0.5    1.1
    before = jnp.log(jnp.full(6, 0.4))
    ratio = jnp.array([1.0, 1.5, 1.5, 0.5, 0.5, 1.1])
    advantage = jnp.array([2.0, 2.0, -2.0, 2.0, -2.0, 2.0])
    logp = before + jnp.log(ratio)
    loss = clipped_surrogate(logp, before, advantage, 0.2)
    np.testing.assert_allclose(loss, [-2.0, -2.4, 3.0, -1.0, 1.6, -2.2], rtol=1e-5)
    # d(-r A) / d logp = -r A. What went far enough in the right direction has none; what went astray is called back.
    slope = jax.grad(lambda logp: clipped_surrogate(logp, before, advantage, 0.2).sum())(logp)
    np.testing.assert_allclose(slope, [-2.0, 0.0, 3.0, -1.0, 0.0, -2.2], rtol=1e-5)
    assert slope[1] == slope[4] == 0
    others = jax.grad(lambda b, a: clipped_surrogate(logp, b, a, 0.2).sum(), (0, 1))(before, advantage)
    assert not np.any(others), "neither the old policy nor the advantage is to be moved"


def test_the_surrogate_begins_as_the_score_function():
    rng = np.random.default_rng(0)
    logits, mean = (jnp.asarray(rng.normal(size=(6, 3)), jnp.float32) for _ in range(2))
    actions = {"a": jnp.arange(6, dtype=jnp.int32) % 3, "b": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)}
    advantage = jnp.asarray(rng.normal(size=6), jnp.float32)

    def policy(logits, mean):
        return {"a": OneHot(logits, (3,), ()), "b": BoundedNormal(mean, 0 * mean, (3,))}

    def clipped(*parameters):
        before = log_probability(policy(logits, mean), actions)
        return clipped_surrogate(log_probability(policy(*parameters), actions), before, advantage, 0.2).sum()

    score = lambda *parameters: actor(policy(*parameters), actions, advantage, 0.0).sum()
    gradients = (jax.jit(jax.grad(f, (0, 1)))(logits, mean) for f in (clipped, score))
    for found, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_values_are_clipped_where_they_ran_ahead():
    #  old value 1, limit 1/2:    to 1.2   to 1.8   to 0.2   past it  the other way
    value = jnp.array([1.2, 1.8, 0.2, 3.2, 1.8])
    target = jnp.array([3.0, 3.0, -1.0, 3.0, -1.0])
    before, limit = jnp.ones(5), 0.5

    def reference(value):
        stopped = jnp.clip(value, before - limit, before + limit)
        return jnp.maximum((value - target) ** 2, (stopped - target) ** 2).sum()

    loss = lambda value: clipped_value_loss(SquaredError(value, 0), target, before, limit).sum()
    found = jax.jit(jax.grad(loss))(value)
    np.testing.assert_allclose(found, [2 * (1.2 - 3), 0, 0, 0, 2 * (1.8 + 1)], rtol=1e-5)
    np.testing.assert_allclose(found, jax.jit(jax.grad(reference))(value), rtol=1e-5)
    # A two-hot code stops at the same places.
    bins = symexp_bins(41)
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(2, 41)), jnp.float32)

    @jax.jit
    def slopes(logits):
        mean = jax.lax.stop_gradient(TwoHot(logits, bins).pred())
        old = mean - jnp.array([1.0, 0.1])
        clipped = jax.grad(lambda x: clipped_value_loss(TwoHot(x, bins), mean + 1, old, 0.5).sum())(logits)
        return clipped, jax.grad(lambda x: TwoHot(x, bins).loss(mean + 1).sum())(logits)

    clipped, free = slopes(logits)
    assert not clipped[0].any()
    np.testing.assert_allclose(clipped[1], free[1])
