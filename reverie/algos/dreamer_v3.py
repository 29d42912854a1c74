"""DreamerV3 (Hafner et al., Nature 2025; arXiv 2301.04104, v1 of 2023 and v2).

A recurrent model of the world is learned from replayed sequences; an actor and a critic are learned inside it, from
imagined continuations of every replayed state. One backward pass, one set of values for all domains.

The values are in `dreamer_v3_values.py`. Their defaults are the final version; `v3-2023` is another set of them.
Unlike the reference code (danijar/dreamerv3@e3f0224), the discrete policy does mix in 1 % uniform, as the papers say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.lax import stop_gradient
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.agent import HORIZONS, SEEN, Dream, Metrics, Mode, Row, prefixed, select
from reverie.algos import Unsuitable
from reverie.algos.dreamer_v3_values import PRESETS as PRESETS
from reverie.algos.dreamer_v3_values import SIZES, Config
from reverie.behavior.imagine import rollout
from reverie.behavior.policy_gradient import imagined_losses, replayed_value_loss, through_dynamics
from reverie.behavior.returns import ReturnScale
from reverie.envs.base import Spaces
from reverie.health import constant_reward, kl_at_floor, policy_certain, policy_random
from reverie.model.decode import Decoder
from reverie.model.encode import Encoder, flat, halvings, image_resolution, images, width
from reverie.model.heads import FlagHead, PolicyHead, ScalarHead, sample
from reverie.model.rssm import RSSM, Latent, features
from reverie.nn.dists import OneHot, categorical_kl, randomness
from reverie.nn.layers import Style
from reverie.nn.optim import adam, count_nonfinite, each, keep, laprop

DEFAULTS: dict[str, Any] = {}
SUITED: dict[str, str] = {}
STOCH = 32  # categorical variables
BLOCKS = 8  # of the block recurrence, and of the layer from it to an image
DEPTHS = (2, 3, 4, 4)  # channels per pooling stage, in multiples of `depth`; strided stages double them


class Model(eqx.Module):
    """All trained networks. Answers the `WorldModel` contract: `imagine` and `predict`."""

    enc: Encoder
    dyn: RSSM
    dec: Decoder
    rew: ScalarHead
    con: FlagHead
    pol: PolicyHead
    val: ScalarHead
    actions: tuple[tuple[str, Any], ...] = eqx.field(static=True)
    gamma: float = eqx.field(static=True)  # what the continue head does not know of the discount; 1 if it knows all

    def __init__(self, config: Config, obs_space: Spaces, act_space: Spaces, key: PRNGKeyArray):
        size, style = SIZES[config.size], Style(config.norm, config.fan)
        keys = jax.random.split(key, 7)
        stoch = STOCH * size.classes
        feat = size.deter + stoch
        shared: dict[str, Any] = {
            "units": config.vector_units or size.units,
            "layers": config.vector_layers or size.predictors,
            "depths": image_depths(config, obs_space),
            "kernel": config.kernel,
            "convolutions": config.convolutions,
            "symlog_vectors": config.vectors == "symlogged",
            "symlog_images": config.images == "symlogged",
            "style": style,
        }
        self.actions = tuple(sorted(act_space.items()))
        self.gamma = 1.0 if config.discount == "learned" else 1 - 1 / config.horizon
        self.enc = Encoder(obs_space, **shared, key=keys[0])
        self.dyn = RSSM(
            action=width(act_space),
            tokens=self.enc.outputs,
            deter=size.deter,
            stoch=STOCH,
            classes=size.classes,
            hidden=size.units,
            blocks=BLOCKS if config.recurrence == "block" else 0,
            unimix=config.unimix,
            prior_layers=config.prior_layers,
            first=config.first_state,
            straight_through=config.straight_through,
            style=style,
            key=keys[1],
        )
        self.dec = Decoder(
            obs_space,
            deter=size.deter,
            stoch=stoch,
            map_units=size.units,
            blocks=BLOCKS,
            pixels=config.pixels,
            image_loss=config.image_loss,
            **shared,
            key=keys[2],
        )
        scalar: dict[str, Any] = {"kind": config.scalars, "style": style}
        self.rew = ScalarHead(feat, size.units, size.predictors, **scalar, key=keys[3])
        self.con = FlagHead(feat, size.units, size.predictors, style=style, key=keys[4])
        self.pol = PolicyHead(
            act_space,
            feat,
            size.units,
            size.behavior,
            unimix=config.policy_unimix,
            scale=config.policy_scale,
            style=style,
            key=keys[5],
        )
        self.val = ScalarHead(feat, size.units, size.behavior, **scalar, key=keys[6])

    def imagine(self, latent: Latent, action: Mapping[str, Array], key: PRNGKeyArray) -> Latent:
        return self.dyn.imagine(latent, flat(dict(self.actions), action), key)

    def predict(self, latent: Latent) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        feat = features(latent)
        return self.rew(feat).pred(), self.discount(feat)

    def discount(self, feat: Float[Array, "*B f"]) -> Float[Array, "*B"]:
        """Gamma times the chance that the world goes on, or times the flag that it does."""
        flag = self.con(feat)
        return flag.prob() if self.gamma == 1 else self.gamma * flag.mode()


class State(eqx.Module):
    """Everything training changes."""

    model: Model
    slow: ScalarHead  # moving average of the critic
    returns: ReturnScale
    optimizer: Any
    key: PRNGKeyArray
    updates: Array  # int32, applied updates
    nonfinite: Array  # int32 [2]: updates skipped in all, and in a row


class Carry(eqx.Module):
    """What the policy remembers between steps: the belief, and the action just taken."""

    latent: Latent
    action: Float[Array, "N a"]
    key: PRNGKeyArray


def make_agent(config: Config, obs_space: Spaces, act_space: Spaces, *, precision: str) -> DreamerV3:
    """The agent for these spaces. `precision`: compute dtype, `float32` or `bfloat16`; builds no arrays.

    Raises:
      Unsuitable: images of a size that cannot be halved, actions that have no gradient where one is asked for, or a
        game of two players.
    """
    if any(space.kind == "player" for space in obs_space.values()):
        raise Unsuitable(
            "this is a game of two players, and a Dreamer plays alone: it would count what its opponent wins as its "
            "own. Type `reverie list` for an algorithm that searches, or choose an env of one player (pgx:2048)"
        )
    try:
        if pictures := images(obs_space):
            image_resolution(pictures, len(image_depths(config, obs_space)))
        return DreamerV3(config, obs_space, act_space, jnp.dtype(precision))
    except ValueError as error:
        raise Unsuitable(str(error)) from error


def image_depths(config: Config, obs_space: Spaces) -> tuple[int, ...]:
    """Channels after each stage of the image networks: four with pooling; with strides, until 4x4 is reached."""
    multiples = DEPTHS if config.convolutions == "pool" else [1 << stage for stage in range(halvings(obs_space))]
    return tuple(SIZES[config.size].depth * multiple for multiple in multiples)


class DreamerV3:
    """The `Agent`. Holds only constants; everything that changes is in `State` and `Carry`."""

    def __init__(self, config: Config, obs_space: Spaces, act_space: Spaces, dtype: jnp.dtype):
        self.config = config
        self.obs_space, self.act_space = obs_space, act_space
        self.dtype = dtype
        size = SIZES[config.size]
        stored = config.initial != "zeros"
        self.context = 1 if stored else 0
        # Latents in replay cost more than a vector observation: half precision for h, one byte per code of z.
        self.out_space = (
            {
                "deter": jax.ShapeDtypeStruct((size.deter,), jnp.bfloat16),
                "stoch": jax.ShapeDtypeStruct((STOCH,), jnp.uint8),
            }
            if stored
            else {}
        )
        self.rows = self.trained = 0
        self.differentiable = through_dynamics(act_space, config.actor_gradient)
        self.optimizer = make_optimizer(config)
        self.symptoms = (
            kl_at_floor(config.free_nats),
            constant_reward(),
            *(of(name) for name in sorted(act_space) for of in (policy_certain, policy_random)),
        )
        self.scales = {
            "dynamics": config.dynamics_scale,
            "representation": config.representation_scale,
            "reward": 1.0,
            "continue": 1.0,
            "policy": 1.0,
            "value": 1.0,
            **({"replay_value": config.replay_value_scale} if config.replay_value_scale else {}),
            **{f"decode/{key}": 1.0 for key in obs_space},
        }

    # ---------------------------------------------------------------- acting

    def init(self, key: PRNGKeyArray) -> State:
        model_key, key = jax.random.split(key)
        model = Model(self.config, self.obs_space, self.act_space, model_key)
        return State(
            model=model,
            slow=jax.tree.map(jnp.copy, model.val),
            returns=ReturnScale(),
            optimizer=self.optimizer.init(model),
            key=key,
            updates=jnp.zeros((), jnp.int32),
            nonfinite=jnp.zeros(2, jnp.int32),
        )

    def parameters(self, state: State) -> dict[str, int]:
        names = ("enc", "dyn", "dec", "rew", "con", "pol", "val")
        return {n: sum(x.size for x in jax.tree.leaves(getattr(state.model, n))) for n in names}

    def init_carry(self, batch: int, key: PRNGKeyArray) -> Carry:
        size = SIZES[self.config.size]
        return Carry(
            latent=Latent(
                jnp.zeros((batch, size.deter), self.dtype),
                jnp.zeros((batch, STOCH, size.classes), self.dtype),
            ),
            action=jnp.zeros((batch, width(self.act_space)), jnp.float32),
            key=key,
        )

    def policy(self, state: State, carry: Carry, obs: Row, mode: Mode) -> tuple[Carry, Row, Row]:
        model = state.model
        key, belief_key, act_key = jax.random.split(carry.key, 3)
        tokens = model.enc(select(obs, "obs/"), self.dtype)
        latents, _ = model.dyn.observe(
            carry.latent,
            tokens[:, None],
            carry.action[:, None],
            obs["is_first"][:, None],
            belief_key,
        )
        latent = jax.tree.map(lambda x: x[:, 0], latents)
        dists = model.pol(features(latent))
        if mode == "eval":
            action = {k: d.pred() for k, d in dists.items()}
        elif mode == "random":
            action = self._random_action(len(tokens), act_key)
        else:
            action = sample(dists, act_key)
        action = {k: jnp.clip(a, -1, 1) if self.act_space[k].kind == "vector" else a for k, a in action.items()}
        carry = Carry(latent, flat(self.act_space, action), key)
        return carry, prefixed("action/", action), self._stored(latent)

    def _random_action(self, batch: int, key: PRNGKeyArray) -> dict[str, Array]:
        action = {}
        keys = jax.random.split(key, len(self.act_space))
        for name, own_key in zip(sorted(self.act_space), keys, strict=True):
            space = self.act_space[name]
            if space.kind == "discrete":
                action[name] = OneHot(jnp.zeros((batch, space.width)), space.classes, space.shape).sample(own_key)
            else:
                action[name] = jax.random.uniform(own_key, (batch, *space.shape), minval=-1, maxval=1)
        return action

    def _stored(self, latent: Latent) -> Row:
        """Latents as replay keeps them."""
        if not self.context:
            return {}
        stoch = jnp.argmax(latent.stoch, -1).astype(jnp.uint8)
        return {"out/deter": latent.deter.astype(jnp.bfloat16), "out/stoch": stoch}

    def _restored(self, row: Row) -> Latent:
        """Inverse of `_stored`."""
        classes = SIZES[self.config.size].classes
        return Latent(
            row["out/deter"].astype(self.dtype),
            jax.nn.one_hot(row["out/stoch"], classes, dtype=self.dtype),
        )

    # -------------------------------------------------------------- learning

    def train(self, state: State, batch: Row) -> tuple[State, Row, Metrics]:
        key = jax.random.fold_in(state.key, state.updates)
        grad = jax.value_and_grad(self.loss, has_aux=True)
        (loss, (out, returns, metrics)), grads = grad(state.model, state.slow, state.returns, batch, key)
        norm = optax.tree.norm(grads)
        changes, optimizer = self.optimizer.update(grads, state.optimizer, state.model)
        model = optax.apply_updates(state.model, changes)
        slow = optax.incremental_update(model.val, state.slow, self.config.slow_rate)
        new = State(model, slow, returns, optimizer, state.key, state.updates + 1, state.nonfinite)

        # One poisoned batch must not destroy a run: keep the old state, on the device, without asking the host.
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        counts = count_nonfinite(state.nonfinite, finite)
        state = eqx.tree_at(lambda s: s.nonfinite, keep(finite, new, state), counts)
        if self.config.initial == "stored+refreshed":
            out = keep(finite, out, {k: batch[k][:, self.context :] for k in out})
        else:
            out = {}
        metrics |= {"loss/total": loss, "gradient/norm": norm}
        metrics |= {"nonfinite/total": counts[0], "nonfinite/streak": counts[1]}
        return state, out, metrics

    def loss(
        self, model: Model, slow: ScalarHead, returns: ReturnScale, batch: Row, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Row, ReturnScale, Metrics]]:
        """The whole objective of one batch.

            row          0 | 1    2    3    ...  T       row 0 is context: its stored latent starts the sequence
            obs              o1   o2   o3        oT
            action       a0  a1   a2   a3        aT      latent t needs action t-1
            latent      (s0) s1   s2   s3        sT
            reward           r1   r2   r3        rT      arrived with obs t: predicted from latent t
            continue         c1   c2   c3        cT      1 - is_terminal, times gamma if it carries the discount

        Returns:
          the loss, and `(out, returns, metrics)`: refreshed latents, the moved return scale, scalars.
        """
        config = self.config
        observe_key, imagine_key = jax.random.split(key)
        losses: dict[str, Array] = {}

        # World model: what was, from what was seen.
        rows, latents, posterior = self._observe(model, batch, observe_key)
        feat = features(latents)
        prior = model.dyn.prior(latents.deter)
        dynamics = categorical_kl(stop_gradient(posterior), prior)
        representation = categorical_kl(posterior, stop_gradient(prior))
        if config.kl == "averaged":
            dynamics, representation = dynamics / STOCH, representation / STOCH
        losses["dynamics"] = jnp.maximum(dynamics, config.free_nats)
        losses["representation"] = jnp.maximum(representation, config.free_nats)
        for name, dist in self._decode(model, latents).items():
            losses[f"decode/{name}"] = dist.loss(self._target(name, rows))
        reward = model.rew(feat)
        losses["reward"] = reward.loss(rows["reward"])
        gamma = 1 - 1 / config.horizon
        alive = 1 - rows["is_terminal"].astype(jnp.float32)
        losses["continue"] = model.con(feat).loss(gamma * alive if config.discount == "learned" else alive)

        # Behaviour: what could be, from every replayed state.
        behave, returns, imagined_returns, metrics = self._behave(model, slow, returns, latents, alive, imagine_key)
        losses |= {k: v.reshape(rows["reward"].shape) for k, v in behave.items()}

        # The critic also learns from what really happened; this gradient reaches the world model.
        if config.replay_value_scale:
            losses["replay_value"], target = replayed_value_loss(
                model.val(feat),
                slow(stop_gradient(feat)).pred(),
                rows["reward"],
                gamma * alive,
                rows["is_last"].astype(jnp.float32),
                imagined_returns.reshape(alive.shape),
                lam=config.lam,
            )
            metrics["replay/return"] = target.mean()

        assert losses.keys() == self.scales.keys(), (sorted(losses), sorted(self.scales))
        means = {k: v.mean() for k, v in losses.items()}
        loss = jnp.sum(jnp.stack([self.scales[k] * v for k, v in means.items()]))
        metrics |= {f"loss/{k}": v for k, v in means.items()}
        metrics |= {
            "kl": dynamics.mean(),
            "entropy/prior": -jnp.sum(jnp.exp(prior) * prior, (-2, -1)).mean(),
            "entropy/posterior": -jnp.sum(jnp.exp(posterior) * posterior, (-2, -1)).mean(),
            "replay/reward": rows["reward"].mean(),
            "reward/variance": rows["reward"].var(),
            "reward/error": jnp.square(stop_gradient(reward.pred()) - rows["reward"]).mean(),
        }
        return loss, (self._stored(latents), returns, metrics)

    def _observe(self, model: Model, batch: Row, key: PRNGKeyArray) -> tuple[Row, Latent, Array]:
        """Splits off the context and runs the model over the rest; rows and latents `[B, T]`."""
        actions = flat(self.act_space, select(batch, "action/"))
        rows = {k: v[:, self.context :] for k, v in batch.items()}
        resets = rows["is_first"]
        if self.context:
            start = self._restored({k: v[:, 0] for k, v in batch.items() if k.startswith("out/")})
            previous = actions[:, :-1]
        else:
            # Nothing is known of what came before: every sequence starts like an episode.
            start = model.dyn.zeros((resets.shape[0],), self.dtype)
            previous = jnp.concatenate([jnp.zeros_like(actions[:, :1]), actions[:, :-1]], 1)
            resets = resets.at[:, 0].set(True)
        tokens = model.enc(select(rows, "obs/"), self.dtype)
        latents, posterior = model.dyn.observe(start, tokens, previous, resets, key)
        return rows, latents, posterior

    def _behave(
        self,
        model: Model,
        slow: ScalarHead,
        returns: ReturnScale,
        latents: Latent,
        alive: Float[Array, "B T"],
        key: PRNGKeyArray,
    ) -> tuple[dict[str, Array], ReturnScale, Array, Metrics]:
        """Actor and critic losses `[M]` of imagining from every replayed state, the moved return scale, the return
        `[M]` of those states, and metrics.

        Two ways for the actor to learn. Score function: what is imagined is data, and nothing flows through it.
        Dynamics: actions are functions of the policy, and the return's gradient reaches them through the imagined
        latents and the frozen networks that judge them, but not through the policy's own inputs.
        """
        config, frozen = self.config, stop_gradient(model)
        start = jax.tree.map(lambda x: stop_gradient(x).reshape(-1, *x.shape[2:]), latents)
        actor = model.pol if self.differentiable else frozen.pol
        act = lambda latent, key: sample(actor(stop_gradient(features(latent))), key)
        imagined, actions = rollout(frozen, act, start, config.imagination, key)
        feat = features(imagined)  # [H + 1, M, F]; time-major, as the loop leaves it
        seen = stop_gradient(feat)
        reward, discount = frozen.rew(feat).pred(), frozen.discount(feat)
        if config.first_continue == "true":
            discount = discount.at[0].set(model.gamma * alive.ravel())
        policy, value, slow_value = model.pol(seen), model.val(seen), slow(seen).pred()
        losses, returns = imagined_losses(
            policy,
            actions,
            value,
            slow_value,
            reward,
            discount,
            returns,
            lam=config.lam,
            entropy=config.entropy,
            rate=config.return_rate,
            gamma=model.gamma,
            baseline=frozen.val(feat).pred() if self.differentiable else None,
            differentiable=self.differentiable,
        )
        metrics = {
            "imagined/return": losses.target.mean(),
            "imagined/reward": reward.mean(),
            "imagined/value": slow_value.mean(),
            "imagined/discount": discount.mean(),
            "imagined/length": losses.weight.sum(0).mean(),
            "policy/return_scale": returns.scale(),
            "policy/advantage": jnp.abs(losses.advantage).mean(),
        }
        for name, dist in policy.items():
            metrics[f"policy/entropy/{name}"] = dist.entropy().mean()
            metrics[f"policy/randomness/{name}"] = randomness(dist).mean()
        means = {"policy": losses.actor.mean(0), "value": losses.critic.mean(0)}
        return means, returns, losses.target[0], stop_gradient(metrics)

    # ------------------------------------------------------------- reporting

    def report(self, state: State, batch: Row) -> Metrics:
        """How well the model sees, and how well it dreams.

        Returns:
          `open_loop/<key>/<h>`: error of the decoded observation (summed squares; symlog space for vectors;
          cross-entropy for discrete values) `h` steps after the last row seen, `open_loop/reward/<h>` the squared
          error of the reward, and `closed_loop/<key>` the same with the observations seen. Sequences in which an
          episode begins after the first five rows are left out from there on; NaN if that leaves none.
          `open_loop/<key>/unexplained`: over all dreamt rows, the error's share of the signal's variance in time
          (`Dream.squares`), for images, vectors and the reward.
        """
        steps = batch["reward"].shape[1] - self.context
        if steps <= SEEN:
            return {}
        rows, seen, latents, valid = self._open_loop(state, batch, SEEN)
        metrics: Metrics = {}
        for name, error in self._errors(state.model, latents, rows).items():
            for h in HORIZONS:
                if SEEN + h <= steps:
                    there = valid[:, SEEN + h - 1].astype(jnp.float32)
                    metrics[f"open_loop/{name}/{h}"] = jnp.sum(there * error[:, SEEN + h - 1]) / there.sum()
        for name, error in self._errors(state.model, seen, rows).items():
            metrics[f"closed_loop/{name}"] = error.mean()
        dream = self._decoded(state.model, rows, latents, valid)
        for key, value in dream.dream.items():
            if jnp.issubdtype(value.dtype, jnp.floating):
                error, variance = dream.squares(key)
                metrics[f"open_loop/{key.removeprefix('obs/')}/unexplained"] = error.sum() / variance.sum()
        return metrics

    def dream(self, state: State, batch: Row, seen: int = SEEN) -> Dream:
        rows, _, latents, valid = self._open_loop(state, batch, seen)
        return self._decoded(state.model, rows, latents, valid)

    def _open_loop(self, state: State, batch: Row, seen: int) -> tuple[Row, Latent, Latent, Array]:
        """The rows, their latents with every row seen, their latents in the dream, and where the dream is valid.

        row      1 .. 5   | 6    7    8  ...  T
        latent   observed | imagined from the actions a5, a6, ... that were really taken
        horizon           | 1    2    3
        """
        steps = batch["reward"].shape[1] - self.context
        if not 0 < seen < steps:
            raise ValueError(f"a dream of {steps} rows can be shown 1 to {steps - 1} of them, got seen={seen}")
        key = jax.random.fold_in(state.key, state.updates)
        rows, latents, _ = self._observe(state.model, batch, key)

        def step(latent: Latent, xs: tuple[dict[str, Array], PRNGKeyArray]) -> tuple[Latent, Latent]:
            latent = state.model.imagine(latent, *xs)
            return latent, latent

        taken = {k: jnp.swapaxes(v[:, seen - 1 : -1], 0, 1) for k, v in select(rows, "action/").items()}
        start = jax.tree.map(lambda x: x[:, seen - 1], latents)
        _, imagined = lax.scan(step, start, (taken, jax.random.split(key, steps - seen)))
        joined = jax.tree.map(lambda x, y: jnp.concatenate([x[:, :seen], jnp.swapaxes(y, 0, 1)], 1), latents, imagined)
        begun = rows["is_first"].at[:, :seen].set(False)  # what is seen may begin an episode
        return rows, latents, joined, jnp.cumsum(begun, 1) == 0

    def _decoded(self, model: Model, rows: Row, latents: Latent, valid: Array) -> Dream:
        """Rows and latents `[B, T]` as a person can look at them."""
        reward, _ = model.predict(latents)
        truth, dream = {"reward": rows["reward"]}, {"reward": reward}
        for name, dist in self._decode(model, latents).items():
            truth[f"obs/{name}"], dream[f"obs/{name}"] = self._target(name, rows), dist.pred()
        return Dream(truth, dream, valid)

    def _errors(self, model: Model, latents: Latent, rows: Row) -> dict[str, Array]:
        """Error `[B, T]` of every decoded observation and of the reward."""
        reward, _ = model.predict(latents)
        errors = {"reward": jnp.square(reward - rows["reward"])}
        for name, dist in self._decode(model, latents).items():
            errors[name] = dist.loss(self._target(name, rows))
        return errors

    def _decode(self, model: Model, latents: Latent) -> dict[str, Any]:
        return model.dec(latents.deter, latents.stoch.reshape(*latents.stoch.shape[:-2], -1))

    def _target(self, name: str, rows: Row) -> Array:
        """What the decoder is to say: images in [0, 1], planes as floats, everything else as it is."""
        value, kind = rows[f"obs/{name}"], self.obs_space[name].kind
        if kind == "image":
            return value.astype(jnp.float32) / 255
        return value.astype(jnp.float32) if kind == "planes" else value


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """LaProp over all parameters; or three times Adam, over the world model, the actor and the critic."""
    if config.optimizer == "laprop":
        return laprop(config.learning_rate, warmup=config.lr_warmup, agc=config.clip, eps=config.eps)
    behavior = adam(
        config.behavior_learning_rate,
        eps=config.behavior_eps,
        clip=config.behavior_clip,
        warmup=config.lr_warmup,
    )
    model = adam(config.learning_rate, eps=config.eps, clip=config.clip, warmup=config.lr_warmup)
    parts = {"pol": "actor", "val": "critic"}
    return each({"model": model, "actor": behavior, "critic": behavior}, lambda name: parts.get(name, "model"))
