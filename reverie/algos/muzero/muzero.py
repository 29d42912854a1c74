"""MuZero (Schrittwieser et al., Nature 2020; arXiv 1911.08265), with Reanalyse (arXiv 2104.06294).

A model that predicts nothing but what planning needs - reward, value, policy - is unrolled along the actions that were
taken, and learns to predict what a tree search over itself found better, and the returns that came. Acting is search.
The other members of the family are differences from this file.

With `--behavior actor-critic` nothing searches. The policy acts alone, and learns like a Dreamer's: by the score
function, from what comes of it when it plays on inside the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int, PRNGKeyArray

from reverie.agent import Metrics, Row
from reverie.algos import check_choice
from reverie.algos.muzero import report as reports
from reverie.algos.muzero import targets
from reverie.algos.muzero.acting import Acting
from reverie.algos.muzero.frames import observed
from reverie.algos.muzero.imagination import imagination_losses
from reverie.algos.muzero.model import Model, State, check_boards, irregular, seen_space, towering
from reverie.algos.muzero.values import Config as Config
from reverie.behavior.returns import Window, n_step_return
from reverie.envs.base import Spaces
from reverie.health import Symptom, action_blind, constant_reward, cut, policy_certain, policy_random
from reverie.model.canvas import Size, canvas, halvings, images, resized
from reverie.model.encode import boards
from reverie.model.unroll import Hidden, halve_gradient, tower_canvas
from reverie.nn import transforms
from reverie.nn.dists import Binary
from reverie.nn.optim import finite, guarded

Losses = dict[str, tuple[float, Float[Array, "B k"]]]  # name -> its weight, and its value at positions 0 to K


class MuZero(Acting):
    """The `Agent`. Holds only constants; everything that changes is in `State` and `Carry`.

    A batch is windows of C + T rows; the first trained row is the root, K rows are unrolled, n more are for targets:

        row      -C ..  -1 | 0      1    ..   K   ..   K + n          C = stack - 1, T = K + n + 1
                  frames   | root   ---unroll--   ---targets

    `precision` is the compute dtype, `float32` or `bfloat16`.

    Raises:
      Unsuitable: actions that are not one discrete choice, for a search that tries every one of them; or observations
        that the network asked for cannot see.
    """

    minibatches: int = 1
    networks: type[Model] = Model
    enumerated: bool = True  # a number means the same action at every node of a tree

    def __init__(self, config: Any, obs_space: Spaces, act_space: Spaces, precision: str):
        if self.enumerated:
            instead = "`sampled_muzero` draws some of them instead: for continuous actions and many discrete ones"
            check_choice(act_space, instead)
        check_boards(config, obs_space)
        self.config = config
        self.obs_space, self.act_space = obs_space, act_space
        self.precision = precision
        self.context = config.stack - 1
        self.rows = config.unroll + config.n_step + 1
        self.trained = 1  # the replay ratio counts roots
        (self.action,) = sorted(act_space) if len(act_space) == 1 else ("",)
        self.seen_space = seen_space(obs_space, config.stack)
        seen = self.seen_space
        size = tower_canvas(seen) if towering(config, seen) else canvas(images(seen), halvings(seen))
        self.resized: Mapping[str, Size] = resized(obs_space, size)
        self.out_space: Mapping[str, jax.ShapeDtypeStruct] = {
            "policy": jax.ShapeDtypeStruct((self.choices,), jnp.float32),
            "value": jax.ShapeDtypeStruct((), jnp.float32),
            **self.stored(),
            **({"priority": jax.ShapeDtypeStruct((), jnp.float32)} if config.prioritized else {}),
        }
        self.optimizer = make_optimizer(config)
        self.added: tuple[str, ...] = ("turn",) if irregular(obs_space) else ()
        self.symptoms: tuple[Symptom, ...] = (
            constant_reward(),
            action_blind(),
            cut(config.support),
            *(of(name) for name in sorted(act_space) for of in (policy_certain, policy_random)),
        )

    def stored(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays stored beside a step besides policy, value and priority."""
        return {}

    # ---------------------------------------------------------------- acting

    def make_model(self, key: PRNGKeyArray) -> Model:
        return self.networks(self.config, self.obs_space, self.act_space, self.precision, key)

    def init(self, key: PRNGKeyArray) -> State:
        model_key, key = jax.random.split(key)
        model = self.make_model(model_key)
        return State(
            model=model,
            target=jax.tree.map(jnp.copy, model),
            optimizer=self.optimizer.init(model),
            key=key,
            updates=jnp.zeros((), jnp.int32),
            nonfinite=jnp.zeros(2, jnp.int32),
        )

    def parameters(self, state: State) -> dict[str, int]:
        parts = [f.name for f in fields(state.model) if not f.metadata.get("static")]
        return {n: sum(x.size for x in jax.tree.leaves(getattr(state.model, n))) for n in parts}

    # -------------------------------------------------------------- learning

    def train(self, state: State, batch: Row) -> tuple[State, Row, Metrics]:
        key = jax.random.fold_in(state.key, state.updates)
        before = batch
        if self.config.bootstrap != "stored":
            batch = targets.revalue(self, state.target, batch)
        batch, out, found = targets.reanalyse_batch(self, state.target, batch, before, key)
        grad = jax.value_and_grad(self.loss, has_aux=True)
        (loss, (priority, metrics)), grads = grad(state.model, batch, state.updates, key)
        norm = optax.tree.norm(grads)
        changes, optimizer = self.optimizer.update(grads, state.optimizer, state.model)
        model = optax.apply_updates(state.model, changes)
        updates = state.updates + 1
        renew = updates % self.config.target_every == 0
        target = jax.tree.map(lambda new, old: jnp.where(renew, new, old), model, state.target)
        new = State(model, target, optimizer, state.key, updates, state.nonfinite)

        if self.config.prioritized:
            out["out/priority"] = priority[:, None]
        stored = {k: before[k][:, self.context :][:, : v.shape[1]] for k, v in out.items()}
        state, out, counts = guarded(finite((loss, norm)), state, new, out, stored)
        metrics |= found | {"loss/total": loss, "gradient/norm": norm} | counts
        return state, out, metrics

    def loss(
        self, model: Model, batch: Row, updates: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Float[Array, " B"], Metrics]]:
        """The whole objective of one batch.

            k          0      1     ..   K
            state      s0     s1         sK      s0 from the observation, s_k from s_{k-1} and a_{k-1}
            action     a0     a1
            reward            u1         uK      not at the root
            value      z0     z1         zK      n-step returns; z1 to zK perhaps v(o1) to v(oK)
            policy     pi0    pi1        piK     of the searches
            weight     1      1/K        1/K     and the gradient into s_{k-1} is halved at every step

        Returns:
          the loss, and `(priority [B], metrics)`.
        """
        config = self.config
        rows = {k: v[:, self.context :] for k, v in batch.items() if k != "weight"}
        window = n_step_return(
            rows["reward"],
            rows["is_last"],
            rows["is_terminal"],
            rows["out/value"],
            unroll=config.unroll,
            steps=config.n_step,
            discount=config.discount,
            player=rows.get("obs/player"),
            lam=config.lam,
            fewer=self.td_steps_for_age(rows, updates),
        )
        actions = self.taken(rows)[:, : config.unroll]
        if config.unrolled_value == "seen":
            window = targets.observed_values(self, stop_gradient(model), window, batch)
        states = self.unroll(model, batch, actions)
        losses = self.losses(model, states, window, batch)
        imagined: Metrics = {}
        if config.behavior == "actor-critic":
            behavior, imagined = imagination_losses(self, model, states, window, key)
            losses |= behavior
        step = jnp.concatenate([jnp.ones(1), jnp.full(config.unroll, 1 / config.unroll)])[None]
        weight = batch["weight"][:, None] * step if "weight" in batch else step
        means = {name: (weight * each).sum(1).mean() for name, (_, each) in losses.items()}
        loss = jnp.sum(jnp.stack([scale * means[name] for name, (scale, _) in losses.items()]))
        priority = jnp.abs(rows["out/value"][:, 0] - window.value[:, 0])
        known = window.known[:, 1:].astype(jnp.float32)
        reward, target = states.reward[:, 1:], window.reward[:, 1:]
        mean = (known * target).sum() / known.sum()
        metrics = {f"loss/{k}": v for k, v in means.items()} | imagined | reports.diagnose(self, model, states, actions)
        metrics |= {
            "replay/reward": mean,
            "reward/variance": (known * (target - mean) ** 2).sum() / known.sum(),
            "reward/error": (known * (stop_gradient(reward) - target) ** 2).sum() / known.sum(),
            "value/target": window.value[:, 0].mean(),
            "value/error": priority.mean(),
        }
        beyond = lambda x: jnp.abs(transforms.h(x)) > config.support
        metrics |= {
            "value/cut": beyond(window.value[:, 0]).mean(dtype=jnp.float32),
            "reward/cut": (known * beyond(target)).sum() / known.sum(),
        }
        return loss, (priority, metrics)

    def td_steps_for_age(self, rows: Row, updates: Int[Array, ""]) -> Int[Array, " B"] | None:
        """Rewards that a value target may use, if not n everywhere: what was done long ago is not what would be."""
        return None

    def unroll(self, model: Model, batch: Row, actions: Array) -> Hidden:
        """The states 0 to K of the root and the actions after it, `[B, K + 1, ...]`."""
        root = model.represent({k: v[:, 0] for k, v in observed(self, batch, 0, 1).items()})

        def step(hidden: Hidden, action: Array) -> tuple[Hidden, Hidden]:
            after = model.advance(hidden._replace(state=halve_gradient(hidden.state)), action)
            return after, after

        # No loop: on the CPU, the gradient of a convolution inside one takes ten times as long.
        _, rest = lax.scan(step, root, jnp.swapaxes(actions, 0, 1), unroll=True)
        return jax.tree.map(lambda x, xs: jnp.concatenate([x[:, None], jnp.swapaxes(xs, 0, 1)], 1), root, rest)

    def along(self, x: Array) -> Array:
        """Positions 0 to K of an array of a batch."""
        return x[:, self.context : self.context + self.config.unroll + 1]

    def losses(self, model: Any, states: Hidden, window: Window, batch: Row) -> Losses:
        """The losses of all that the model predicts."""
        config, choices = self.config, self.config.chosen()
        value = model.value(states)
        reward = model.reward_of(jax.tree.map(lambda x: x[:, 1:], states))
        known, real = window.known.astype(jnp.float32), window.real.astype(jnp.float32)
        first = jnp.zeros_like(known[:, :1])
        after_root = lambda x: jnp.concatenate([first, x], 1)
        losses = {
            "policy": (choices.policy_scale, -real * self.likelihood(model, states, batch)),
            "value": (config.value_scale, known * value.loss(window.value)),
            "reward": (choices.reward_scale, after_root(known[:, 1:] * reward.loss(self.reward_of(window)[:, 1:]))),
        }
        if model.turn is not None:
            changes = window.player_changes[:, 1:].astype(jnp.float32)
            turn = model.turn(model.body.read(states.state[:, 1:])).loss(changes)
            losses["turn"] = (1.0, after_root(real[:, 1:] * turn))
        if model.leg is not None:
            legal = self.along(batch["obs/legal"])
            losses["legal"] = (1.0, real * model.leg.loss(model.body.read(states.state), legal))
        if model.dec is not None:
            # Every board is read off the states (Anand et al. 2022, "Procedural generalization by planning with
            # self-supervised world models"). What they should be is seen at their rows, also where the world ended.
            there = jnp.concatenate([jnp.ones_like(first), window.same_episode], 1)
            logits = model.dec(states.state).astype(jnp.float32)
            for key, space in boards(self.obs_space).items():
                mine, logits = jnp.split(logits, [space.shape[2]], -1)
                nats = Binary(mine).loss(self.along(batch[f"obs/{key}"]).astype(jnp.float32)).sum((-3, -2, -1))
                losses[f"decode/{key}"] = (choices.decode_scale, there * nats)
        return losses

    def likelihood(self, model: Model, states: Hidden, batch: Row) -> Float[Array, "B k"]:
        """Log-probability of what the searches found, at positions 0 to K."""
        return (self.along(batch["out/policy"]) * model.judge(states)[0].logp[..., 0, :]).sum(-1)

    def taken(self, rows: Row) -> Array:
        """The actions of rows as the dynamics take them, `[B, T, ...]`."""
        return rows[f"action/{self.action}"]

    def other(self, actions: Array) -> Array:
        """Other actions than these, `[B, ...]`."""
        return (actions + 1) % self.choices

    def reward_of(self, window: Window) -> Float[Array, "B k"]:
        """The targets of the model's reward head."""
        return window.reward

    # ------------------------------------------------------------- reporting

    report = reports.report
    dream = reports.dream


def make_optimizer(config: Any) -> optax.GradientTransformation:
    """AdamW or SGD with momentum, behind a bound on the gradient."""
    rate = (
        optax.linear_schedule(0.0, config.learning_rate, config.lr_warmup) if config.lr_warmup else config.learning_rate
    )
    choices = config.chosen()
    if choices.lr_drop_every:
        warm = rate if callable(rate) else optax.constant_schedule(rate)
        rate = lambda count: warm(count) * 0.1 ** (count // choices.lr_drop_every)
    if config.optimizer == "adam":
        return optax.chain(optax.clip_by_global_norm(config.clip), optax.adamw(rate, weight_decay=choices.weight_decay))
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.add_decayed_weights(choices.weight_decay),
        optax.sgd(rate, momentum=0.9),
    )


make_agent = MuZero
