"""PPO in the dream: on-policy learning inside a Dreamer's world model, with replayed states as starting points.

One update of the loop is a round:

    model       the batch, split into `model_minibatches` minibatches of sequences, teaches the world model
    encode      the whole batch once, by the model that came of it: start latents, kept on the device
    behavior    `ppo_updates` times: draw `minibatch` of them, imagine what the policy does now, and take `epochs`
                steps of PPO on that (Schulman et al. 2017)

and then the envs again. So there are three dials: how many sequences of what length (`batch`, `length`), the minibatch,
and how many updates before exploring again. `PPO` goes over any `Dreamer`, whose model it learns as its paper says;
what is registered goes over DreamerV3, with its networks and values.

The replay ratio counts the rows that are encoded: a round is due every `batch * length / replay_ratio` env steps, and
brings `ppo_updates * minibatch * imagination` imagined steps, of which each is learned from `epochs` times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reverie.agent import Metrics, Part, Row
from reverie.algos.dreamer.agent import BEHAVIOR, Dreamer, behavior_metrics
from reverie.algos.dreamer.v3 import DreamerV3Model, ModelConfig
from reverie.algos.dreamer.world import Model, Posterior, State
from reverie.behavior.actor_critic import clipped_surrogate, clipped_value_loss, log_probability
from reverie.behavior.imagine import Trajectory
from reverie.behavior.returns import ReturnScale
from reverie.fields import TINY, Positive, Share, Weight, Within
from reverie.model.dynamics import features
from reverie.model.heads import PolicyHead, ScalarHead
from reverie.nn.optim import adam, each


@dataclass(frozen=True)
class Values:
    """The values of PPO, whatever it dreams in."""

    model_minibatches: Annotated[int, Within(1, 2**20)] = 4
    """Updates of the world model in a round: the sequences of a batch are split into so many minibatches."""
    minibatch: Annotated[int, Within(1, 2**24)] = 1024
    """Start latents of a PPO update."""
    ppo_updates: Annotated[int, Within(1, 2**20)] = 8
    """PPO updates before exploring again, each on what the policy imagines at that time."""
    epochs: Annotated[int, Within(1, 2**12)] = 3
    """Gradient steps on each imagined rollout. 1: the policy is always the one that imagined; nothing is clipped."""
    ratio_clip: Positive = 0.2
    """Change of an action's probability, as a share, beyond which PPO rewards no more."""
    value_clip: Weight = 0.0
    """Change of a value, in units of the return scale, beyond which the critic is not drawn to its target by the same
    rollout. 0: none."""
    entropy: Weight = 3e-4
    """Weight of the policy's entropy."""
    return_rate: Share = 0.01
    """Share of the new percentiles that moves into the return scale at every PPO update."""
    start_gb: Annotated[float, Within(TINY, 1e9)] = 1.0
    """Gigabytes (10^9 bytes) of start latents on the device. If there are more, a random share is kept."""
    behavior_learning_rate: Positive = 3e-4
    """Step size of actor and critic."""
    behavior_clip: Weight = 0.5
    """Largest gradient norm of the actor, and of the critic. 0 clips nothing."""
    behavior_eps: Positive = 1e-5
    """Smallest divisor of their optimizers."""


@dataclass(frozen=True)
class Config(Values, ModelConfig):
    """The values of DreamerV3's world model, and those of PPO."""


class Behavior(NamedTuple):
    """The networks that PPO trains."""

    pol: PolicyHead
    val: ScalarHead


class Learner(NamedTuple):
    """Everything that a PPO update changes."""

    behavior: Behavior
    slow: ScalarHead | None
    returns: ReturnScale
    optimizer: Any
    steps: Array  # int32, gradient steps


TOTALS = ("loss/model", "loss/behavior")


class PPO(Dreamer):
    """PPO in place of a Dreamer's actor-critic: `class DreamPPO(PPO, DreamerV3Model)`. The Dreamer's world model
    remains, how that learns, and the slow copy of its critic, if it has one.

    The config has `Values`, `imagination` and `lam`.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        self.differentiable = frozenset()
        self.minibatches = config.model_minibatches
        rule = adam(config.behavior_learning_rate, eps=config.behavior_eps, clip=config.behavior_clip)
        self.behavior_optimizer = each({"actor": rule, "critic": rule}, BEHAVIOR.__getitem__)

    def init(self, key: PRNGKeyArray) -> State:
        return self.renew(super().init(key))

    def renew(self, state: State) -> State:
        world, behavior = apart(state.model)
        optimizers = {"model": self.optimizer.init(world), "behavior": self.behavior_optimizer.init(behavior)}
        return eqx.tree_at(lambda s: s.optimizer, state, optimizers)

    def train(self, state: State, batch: Row, part: Part = "all") -> tuple[State, Row, Metrics]:
        """One round."""
        learn_key, encode_key, behave_key = jax.random.split(jax.random.fold_in(state.key, state.updates), 3)
        minibatches, optimizer = self.split(batch), state.optimizer
        world, behavior = apart(state.model)
        slow, returns, finite = state.slow, state.returns, jnp.array(True)
        metrics: Metrics = {}
        if part != "behavior":
            world, trained, finite, metrics = self.learn_model(world, optimizer["model"], minibatches, learn_key)
            optimizer = optimizer | {"model": trained}
        out, starts = self.encode(world, minibatches, encode_key)
        if part != "model":
            steps = state.updates * (self.config.ppo_updates * self.config.epochs)
            learner = Learner(behavior, slow, returns, optimizer["behavior"], steps)
            learner, able, more = self.learn_behavior(world, learner, starts, behave_key)
            behavior, slow, returns, trained, _ = learner
            optimizer, finite, metrics = optimizer | {"behavior": trained}, finite & able, metrics | more
        metrics["loss/total"] = jnp.sum(jnp.stack([v for k, v in metrics.items() if k in TOTALS]))
        model = join_model(world, behavior)
        new = State(model, slow, returns, optimizer, state.key, state.updates + 1, state.nonfinite)
        return self.accept_finite(finite, state, batch, new, out, metrics)

    def split(self, batch: Row) -> Row:
        """`[B, L, ...]` as `[U, B / U, L, ...]`. Neighbours go to different ones, so that devices that share the
        sequences share every minibatch of them."""
        return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, self.minibatches, *x.shape[1:]), 0, 1), batch)

    # ---------------------------------------------------------------- the model

    def learn_model(
        self, world: Model, optimizer: Any, minibatches: Row, key: PRNGKeyArray
    ) -> tuple[Model, Any, Bool[Array, ""], Metrics]:
        """The world model after one update by every minibatch, its optimizer, whether all was finite, and metrics."""

        def loss(world: Model, rows: Row, key: PRNGKeyArray) -> tuple[Array, Metrics]:
            losses, _, metrics = self.world_loss(world, rows, key)
            total, parts = self.weigh(losses)
            return total, metrics | parts

        def update(carry: tuple[Model, Any], xs: tuple[Row, PRNGKeyArray]) -> tuple[tuple[Model, Any], Any]:
            world, optimizer = carry
            world, optimizer, finite, metrics = gradient_step("model", self.optimizer, loss, world, optimizer, *xs)
            return (world, optimizer), (finite, metrics)

        keys = jax.random.split(key, self.minibatches)
        (world, optimizer), (finite, metrics) = lax.scan(update, (world, optimizer), (minibatches, keys))
        return world, optimizer, finite.all(), {k: v.mean() for k, v in metrics.items()}

    def encode(self, world: Model, minibatches: Row, key: PRNGKeyArray) -> tuple[Row, Posterior]:
        """The latents for replay, `[B, T]`, and those that dreams start from: as sequences of one, `[M, 1]`."""
        updates, sequences, length = minibatches["reward"].shape
        rows = sequences * (length - self.context)
        latent = jax.tree.leaves(jax.eval_shape(lambda: self.dyn.zeros((), self.dtype)))
        bytes_each = sum(x.size * x.dtype.itemsize for x in latent) + 4  # the flag of an end as float32
        kept = max(1, min(rows, int(self.config.start_gb * 1e9) // bytes_each // updates))

        def some(nothing: None, xs: tuple[Row, PRNGKeyArray]) -> tuple[None, tuple[Row, Posterior]]:
            observe_key, choose_key = jax.random.split(xs[1])
            post, _ = self.observe(world, xs[0], observe_key)
            starts = jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), post._replace(rows={}, feat=()))
            if kept < len(starts.alive):
                chosen = jax.random.permutation(choose_key, len(starts.alive))[:kept]
                starts = jax.tree.map(lambda x: x[chosen], starts)
            return nothing, (self.refresh(post.latents), starts)

        _, (out, starts) = lax.scan(some, None, (minibatches, jax.random.split(key, updates)))
        out = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), out)
        return out, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), starts)

    # ------------------------------------------------------------- the behavior

    def learn_behavior(
        self, world: Model, learner: Learner, starts: Posterior, key: PRNGKeyArray
    ) -> tuple[Learner, Bool[Array, ""], Metrics]:
        """The learner after `ppo_updates` PPO updates, whether all of them were finite, and metrics."""
        config = self.config
        draw_key, key = jax.random.split(key)

        def update(learner: Learner, xs: tuple[Array, PRNGKeyArray]) -> tuple[Learner, Any]:
            chosen, key = xs
            model = join_model(world, learner.behavior)
            post = jax.tree.map(lambda x: x[chosen], starts)
            imagined = self.imagine(model, model.val, post, post.alive.ravel(), key)
            return self._ppo_update(model, learner, imagined)

        chosen = drawn(len(starts.alive), config.ppo_updates, config.minibatch, draw_key)
        keys = jax.random.split(key, config.ppo_updates)
        learner, (finite, metrics) = lax.scan(update, learner, (chosen, keys))
        return learner, finite.all(), {k: v.mean() for k, v in metrics.items()}

    def _ppo_update(self, model: Model, learner: Learner, imagined: Trajectory) -> tuple[Learner, Any]:
        """One PPO update on what the learner's own policy did: time-major `[H, M]`, without a gradient."""
        config, errors = self.config, imagined.target - imagined.value[:-1]
        returns = learner.returns.update(imagined.target, config.return_rate)
        feat = stop_gradient(features(imagined.latent))
        feat, action, legal = jax.tree.map(
            lambda x: x[:-1], (feat, imagined.action, model.legal(feat, imagined.action))
        )
        before = log_probability(learner.behavior.pol(feat, legal), action)
        advantage = errors / returns.scale()  # GAE (Schulman et al. 2016, eq. 16): its errors telescope to these
        slow = None if learner.slow is None else learner.slow(feat).pred()
        limit = config.value_clip * returns.scale()  # how far a value may move
        learner = learner._replace(returns=returns)

        def surrogate(behavior: Behavior) -> tuple[Float[Array, ""], Metrics]:
            """PPO's objective (Schulman et al. 2017, eqs. 7 and 9), as a loss, and metrics."""
            weight = imagined.weight[:-1]
            policy, value = behavior.pol(feat, legal), behavior.val(feat)
            logp = log_probability(policy, action)
            entropy = jnp.sum(jnp.stack([dist.entropy() for dist in policy.values()]), 0)
            acting = clipped_surrogate(logp, before, advantage, config.ratio_clip)
            if config.value_clip:
                valuing = clipped_value_loss(value, imagined.target, imagined.value[:-1], limit)
            else:
                valuing = value.loss(imagined.target)
            if slow is not None:
                valuing += value.loss(slow)
            losses = {"policy": weight * (acting - config.entropy * entropy), "value": weight * valuing}
            loss, metrics = self.weigh(losses)
            change = logp - before
            metrics |= behavior_metrics(policy, **imagined.figures())
            metrics["policy/clipped"] = jnp.mean(jnp.abs(jnp.expm1(change)) > config.ratio_clip)
            metrics["policy/kl"] = jnp.mean(jnp.expm1(change) - change)
            return loss, stop_gradient(metrics)

        def epoch(learner: Learner, _: None) -> tuple[Learner, Any]:
            behavior, optimizer, finite, metrics = gradient_step(
                "behavior", self.behavior_optimizer, surrogate, learner.behavior, learner.optimizer
            )
            slow = self.target_critic(join_model(model, behavior), learner.slow, learner.steps)
            return Learner(behavior, slow, returns, optimizer, learner.steps + 1), (finite, metrics)

        learner, (finite, metrics) = lax.scan(epoch, learner, length=config.epochs)
        figures = {
            "policy/return_scale": returns.scale(),
            "policy/advantage": jnp.abs(advantage).mean(),
            "value/explained": 1 - jnp.var(errors) / jnp.var(imagined.target),
        }
        return learner, (finite.all(), {k: v[-1] for k, v in metrics.items()} | figures)


class DreamPPO(PPO, DreamerV3Model):
    """The `Agent`."""


def drawn(count: int, minibatches: int, size: int, key: PRNGKeyArray) -> Int[Array, "minibatches size"]:
    """Minibatches of the numbers below `count`: each is drawn once before any is drawn again."""
    passes = jax.random.split(key, -(-minibatches * size // count))
    order = jax.vmap(lambda key: jax.random.permutation(key, count))(passes).ravel()
    return order[: minibatches * size].reshape(minibatches, size)


def apart(model: Model) -> tuple[Model, Behavior]:
    """The world model without its behaviour, and that."""
    world = eqx.tree_at(lambda m: (m.pol, m.val), model, (None, None))
    return world, Behavior(model.pol, model.val)


def join_model(world: Model, behavior: Behavior) -> Model:
    """Inverse of `apart`."""
    return eqx.tree_at(lambda m: (m.pol, m.val), world, tuple(behavior), is_leaf=lambda x: x is None)


def gradient_step(
    name: str, rule: optax.GradientTransformation, loss: Any, params: Any, optimizer: Any, *args: Any
) -> tuple[Any, Any, Bool[Array, ""], Metrics]:
    """One gradient step of `loss(params, *args) -> (loss, metrics)`: parameters, optimizer, whether loss and gradient
    were finite, and metrics, in which `name` stands for the two."""
    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, *args)
    norm = optax.tree.norm(grads)
    changes, optimizer = rule.update(grads, optimizer, params)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    metrics |= {f"loss/{name}": value, f"gradient/{name}": norm}
    return optax.apply_updates(params, changes), optimizer, finite, metrics


make_agent = DreamPPO
