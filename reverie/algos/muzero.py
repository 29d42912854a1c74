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

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reverie.agent import SEEN, Dream, Metrics, Mode, Row, prefixed, select
from reverie.algos import Unsuitable
from reverie.algos.muzero_values import Config as Config
from reverie.algos.planning import check_choice
from reverie.behavior.explore import Held, explore, unheld
from reverie.behavior.imagine import rollout
from reverie.behavior.policy_gradient import actor
from reverie.behavior.returns import ReturnScale, Window, lambda_return, n_step_return
from reverie.behavior.search import Found, puct
from reverie.envs.base import UNSEEN, Space, Spaces
from reverie.health import Symptom, action_blind, constant_reward, cut, policy_certain, policy_random
from reverie.model.canvas import Size, canvas, halvings, images, resized
from reverie.model.encode import boards, permitted, planar
from reverie.model.heads import FlagHead, LegalHead, PolicyHead, Scalar, ScalarHead
from reverie.model.unroll import Hidden, Towers, Vectors, halve_gradient, tower_canvas
from reverie.nn import transforms
from reverie.nn.dists import Binary, OneHot, randomness
from reverie.nn.layers import Conv
from reverie.nn.optim import finite, guarded

Body = Vectors | Towers


class Model(eqx.Module):
    """All trained networks. Answers `WorldModel`, and what a search asks besides (`Planner`)."""

    body: Body
    rew: ScalarHead
    pol: PolicyHead
    val: ScalarHead
    dec: Conv | None  # a state to logits of the boards
    turn: FlagHead | None  # whether the step gave the turn to the other player; None: it never does, or always
    leg: LegalHead | None  # which actions may be taken, where the policy plays on alone; None: nobody asks, or all
    gamma: float = eqx.field(static=True)  # negative where two players take strict turns
    classes: int = eqx.field(static=True)
    dtype: str = eqx.field(static=True)

    def __init__(
        self, config: Any, obs_space: Spaces, act_space: Spaces, dtype: str, key: PRNGKeyArray, moves: int = 0
    ):
        """`moves`: width of what the dynamics take, if not the actions."""
        keys, decode_key, turn_key = jax.random.split(key, 4), *(jax.random.fold_in(key, i) for i in (4, 5))
        self.dtype = dtype
        self.classes = sum(s.width for s in act_space.values())
        turns = irregular(obs_space)
        self.gamma = -config.discount if "player" in obs_space and not turns else config.discount
        self.body = make_body(config, seen_space(obs_space, config.stack), moves or self.classes, keys[0])
        scalar: dict[str, Any] = config.scalar()
        read, units = self.body.outputs, config.units
        self.rew = ScalarHead(read, units, config.layers, **scalar, key=keys[1])
        self.val = ScalarHead(read, units, config.layers, **scalar, key=keys[2])
        self.pol = PolicyHead(act_space, read, units, config.layers, unimix=0.0, key=keys[3])
        planes = sum(s.shape[2] for s in boards(obs_space).values())
        self.dec = Conv(config.channels, planes, 1, key=decode_key) if config.decode_scale else None
        # Until it has learned something it says that the turn goes over.
        self.turn = FlagHead(read, units, config.layers, key=turn_key, scale=0.0) if turns else None
        self.leg = None
        if config.behavior == "actor-critic" and "legal" in obs_space:
            (space,) = act_space.values()
            self.leg = LegalHead(space, read, units, config.layers, key=jax.random.fold_in(key, 6))

    def represent(self, obs: Mapping[str, Array]) -> Hidden:
        """The state of an observation, as `observed` gives it."""
        state = self.body.represent(obs, jnp.dtype(self.dtype))
        batch = state.shape[: state.ndim - self.body.axes]
        return Hidden(state, jnp.zeros(batch, jnp.float32))

    def advance(self, hidden: Hidden, action: Int[Array, "*B"]) -> Hidden:
        """One step of the dynamics."""
        after = self.body.advance(hidden.state, jax.nn.one_hot(action, self.classes))
        return hidden._replace(state=after, reward=self.rew(self.body.read(after)).pred())

    def rewarded(self, hidden: Hidden) -> Scalar:
        """The reward of the step that led to `hidden`, as a distribution."""
        return self.rew(self.body.read(hidden.state))

    def imagine(self, latent: Hidden, action: Int[Array, "*B"], key: PRNGKeyArray) -> Hidden:
        return self.advance(latent, action)

    def predict(self, latent: Hidden) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        return latent.reward, self.discount(latent)

    def discount(self, latent: Hidden) -> Float[Array, "*B"]:
        """Of the step that led to `latent`: negative if the other player moves there. The sign is never in between,
        however unsure the head is: a value half one's own and half the other's is nobody's."""
        if self.turn is None:
            return jnp.full_like(latent.reward, self.gamma)
        turned = self.turn(self.body.read(latent.state)).logit >= 0
        return jnp.where(turned, -self.gamma, self.gamma)

    def evaluate(self, latent: Hidden) -> tuple[Float[Array, "*B a"], Float[Array, "*B"]]:
        policy, value = self.judge(latent)
        return policy.logp[..., 0, :], value.pred()

    def legal(self, latent: Hidden, done: Int[Array, "*B"] | None = None) -> Bool[Array, "*B a"] | None:
        """The actions that the model takes to be legal; None: all. `done`, what was done there, is among them: computed
        twice, a flag close to a half may come out on either side."""
        if self.leg is None:
            return None
        legal = self.leg.legal(self.body.read(latent.state))
        return legal if done is None else legal | jax.nn.one_hot(done, self.classes, dtype=bool)

    def judge(self, latent: Hidden, legal: Bool[Array, "*B a"] | None = None) -> tuple[OneHot, Scalar]:
        """Policy, among what is legal, and value as distributions."""
        feat = self.body.read(latent.state)
        (policy,) = self.pol(feat, legal).values()
        assert isinstance(policy, OneHot)
        return policy, self.val(feat)


def make_body(config: Config, seen: Spaces, actions: int, key: PRNGKeyArray) -> Body:
    if towering(config, seen):
        return Towers(
            seen,
            actions,
            blocks=config.blocks,
            channels=config.channels,
            read_channels=config.read_channels,
            scaling=config.scaling,
            key=key,
        )
    return Vectors(
        seen,
        actions,
        width=config.hidden,
        units=config.units,
        layers=config.layers,
        depths=tuple(8 << min(stage, 2) for stage in range(halvings(seen))),
        scaling=config.scaling,
        key=key,
    )


def towering(config: Config, seen: Spaces) -> bool:
    """Whether states are planes."""
    return config.network == "tower" or (config.network == "auto" and bool(boards(seen)))


class State(eqx.Module):
    """Everything training changes."""

    model: Model
    target: Model  # a copy, some updates old
    optimizer: Any
    key: PRNGKeyArray
    updates: Array  # int32, applied updates
    nonfinite: Array  # int32 [2]: updates skipped in all, and in a row


class Carry(eqx.Module):
    """What the policy remembers between steps: the frames before this one, how many moves were made, and random actions
    that go on."""

    frames: dict[str, Array]  # [N, stack - 1, ...], the oldest first; 0 where the episode had not begun
    moves: Int[Array, " N"]
    key: PRNGKeyArray
    held: Held | None = None  # None: random actions are not repeated


def make_agent(config: Any, obs_space: Spaces, act_space: Spaces, *, precision: str) -> MuZero:
    """The agent for these spaces. `precision`: compute dtype, `float32` or `bfloat16`; builds no arrays.

    Raises:
      Unsuitable: actions that are not one discrete choice.
    """
    check(config, obs_space, act_space)
    return MuZero(config, obs_space, act_space, precision)


def check(config: Config, obs_space: Spaces, act_space: Spaces) -> None:
    """Raises Unsuitable unless the spaces suit a search over all actions."""
    instead = "`sampled_muzero` draws some of them instead: for continuous actions and many discrete ones"
    check_choice(act_space, instead)
    check_states(config, obs_space)


def check_states(config: Config, obs_space: Spaces) -> None:
    """Raises Unsuitable unless there is something for a tower to stand on, and boards can be read off it if they are to
    be."""
    if config.decode_scale and (config.network == "mlp" or not boards(obs_space) or images(obs_space)):
        seen = {key: space.describe() for key, space in obs_space.items()}
        raise Unsuitable(
            f"--decode-scale {config.decode_scale:g} reads boards off the planes of a tower, and here the network is "
            f"{config.network} and the env shows {seen}: leave it out"
        )
    if config.network == "tower" and not planar(obs_space):
        seen = {key: space.describe() for key, space in obs_space.items()}
        raise Unsuitable(f"--network tower needs an image or a board, and the env shows {seen}: type --network mlp")


class MuZero:
    """The `Agent`. Holds only constants; everything that changes is in `State` and `Carry`.

    A batch is windows of C + T rows; the first trained row is the root, K rows are unrolled, n more are for targets:

        row      -C ..  -1 | 0      1    ..   K   ..   K + n          C = stack - 1, T = K + n + 1
                  frames   | root   ---unroll--   ---targets
    """

    def __init__(self, config: Any, obs_space: Spaces, act_space: Spaces, precision: str):
        self.config = config
        self.obs_space, self.act_space = obs_space, act_space
        self.precision = precision
        if config.behavior == "actor-critic":
            self.check_imagination()
        self.context = config.stack - 1
        self.rows = config.unroll + config.n_step + 1
        self.trained = 1  # the replay ratio counts roots
        (self.action,) = sorted(act_space) if len(act_space) == 1 else ("",)
        self.seen_space = seen_space(obs_space, config.stack)
        self.resized: Mapping[str, Size] = resized(obs_space, self.canvas()) if images(obs_space) else {}
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

    def canvas(self) -> Size:
        """Height and width at which the networks see images."""
        seen = self.seen_space
        return tower_canvas(seen) if towering(self.config, seen) else canvas(images(seen), halvings(seen))

    minibatches: int = 1
    searched: tuple[str, ...] = ("policy", "value")  # what a search gives to be stored
    enumerated: bool = True  # a number means the same action at every node of a tree
    played: bool = True  # a step of the model is one of the env, by an action of the policy: it can be played in

    def stored(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What is stored beside a step besides policy, value and priority."""
        return {}

    @property
    def choices(self) -> int:
        """Actions that a search tells apart."""
        return sum(s.width for s in self.act_space.values())

    def check_imagination(self) -> None:
        """Raises Unsuitable unless the policy can play on in the model alone."""
        if not self.played:
            raise Unsuitable(
                "--behavior actor-critic plays on in the model, one action of the policy after the other, and this "
                "algorithm's model takes drawn candidates or codes of chance: `muzero`, `gumbel_muzero` and "
                "`efficientzero` have such a model; --behavior search searches"
            )

    # ---------------------------------------------------------------- acting

    def make_model(self, key: PRNGKeyArray) -> Model:
        return Model(self.config, self.obs_space, self.act_space, self.precision, key)

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

    def init_carry(self, batch: int, key: PRNGKeyArray) -> Carry:
        frames = {
            k: jnp.zeros((batch, self.context, *s.shape), s.dtype)
            for k, s in self.obs_space.items()
            if self.context and k in planar(self.obs_space)
        }
        action = {k: jnp.zeros((batch, *s.shape), s.dtype) for k, s in self.act_space.items()}
        held = unheld(action) if self.config.hold > 1 else None
        return Carry(frames, jnp.zeros(batch, jnp.int32), key, held)

    def policy(self, state: State, carry: Carry, obs: Row, mode: Mode) -> tuple[Carry, Row, Row]:
        key, root_key, search_key = jax.random.split(carry.key, 3)
        seen, carry = self._see(carry, obs)
        given = obs.get("obs/legal")
        root, legal = self.rooted(state.model, seen, root_key, given), self.choosable(given)
        if mode == "random":
            root = self.unguided(root, root_key, given)
            policy = uniform(legal, (obs["is_first"].shape[0], self.choices))
            chosen = jax.random.categorical(search_key, jnp.log(policy)).astype(jnp.int32)
            fresh = self.fresh(root, policy, jnp.zeros(chosen.shape, jnp.float32))
        else:
            greedy = mode != "train"  # a search without noise
            temperature = jnp.zeros_like(carry.moves, jnp.float32) if greedy else self._temperature(state, carry)
            chosen, policy, value = self.decide(state.model, root, search_key, legal, greedy, temperature)
            fresh = self.fresh(root, policy, value)
            if mode == "sample":
                chosen = jax.random.categorical(jax.random.fold_in(search_key, 1), jnp.log(policy)).astype(jnp.int32)
            if mode == "train" and self.config.random_moves and carry.held is None:
                coin_key, even_key = jax.random.split(root_key)
                coin = jax.random.bernoulli(coin_key, self.config.random_moves, chosen.shape)
                chosen = jnp.where(coin, self._even(legal, chosen.shape[0], even_key), chosen)
        if self.config.prioritized:
            fresh |= {"priority": jnp.zeros_like(fresh["value"])}  # replay knows the largest so far
        action, held = self.acted(root, chosen), carry.held
        if held is not None and mode in ("random", "train"):
            draw_key, hold_key = jax.random.split(jax.random.fold_in(root_key, 1))
            even = self._even(legal, chosen.shape[0], draw_key)
            drawn = self.acted(self.unguided(root, draw_key, given), even)
            share = 1.0 if mode == "random" else self.config.random_moves
            still = permitted(given, self.act_space, held.action)
            held, action = explore(self.config, held, action, drawn, obs["is_first"], hold_key, share, still)
        carry = Carry(carry.frames, carry.moves + 1, key, held)
        return carry, prefixed("action/", action), prefixed("out/", fresh)

    def think(self, state: State, carry: Carry, obs: Row) -> tuple[dict[str, Array], Found]:
        """What `policy` finds with these arguments of one env, N = 1, in mode `eval`, or would if it searched.

        Returns:
          the actions that it chose from, `[A, ...]` by their keys in `act_space`, and what it found, its tree included.
        """
        _, root_key, search_key = jax.random.split(carry.key, 3)
        seen, carry = self._see(carry, obs)
        legal = obs.get("obs/legal")
        root = self.rooted(state.model, seen, root_key, legal)
        cold = jnp.zeros_like(carry.moves, jnp.float32)
        found = self.search(state.model, root, search_key, self.choosable(legal), True, cold)
        numbers = jnp.arange(self.choices, dtype=jnp.int32)
        return self.acted(jax.tree.map(lambda x: x.repeat(self.choices, 0), root), numbers), found

    def choosable(self, legal: Bool[Array, "B a"] | None) -> Bool[Array, "B a"] | None:
        """Which of the `choices` at a root may be taken where these actions are legal; None: all."""
        return legal

    def unguided(self, root: Hidden, key: PRNGKeyArray, legal: Bool[Array, "B a"] | None) -> Hidden:
        """A root whose actions do not depend on the networks."""
        return root

    def _even(self, legal: Bool[Array, "N a"] | None, envs: int, key: PRNGKeyArray) -> Int[Array, " N"]:
        """Numbers of actions, drawn evenly from what is legal."""
        return jax.random.categorical(key, jnp.log(uniform(legal, (envs, self.choices)))).astype(jnp.int32)

    def acted(self, root: Hidden, chosen: Int[Array, " N"]) -> dict[str, Array]:
        """The env's actions for what a search chose."""
        return {self.action: chosen}

    def decide(
        self,
        model: Model,
        root: Hidden,
        key: PRNGKeyArray,
        legal: Bool[Array, "B a"] | None,
        greedy: bool,
        temperature: Float[Array, " B"],
    ) -> tuple[Int[Array, " B"], Float[Array, "B a"], Float[Array, " B"]]:
        """What to do at `root`, and the policy and value to be stored: of a search, or of the networks themselves."""
        if self.config.behavior == "search":
            found = self.search(model, root, key, legal, greedy, temperature)
            return found.action, found.policy, found.value
        policy, value = model.judge(root, legal)
        logits = policy.logp[..., 0, :]
        action = jnp.argmax(logits, -1) if greedy else jax.random.categorical(key, logits)
        return action.astype(jnp.int32), jnp.exp(logits), value.pred()

    def search(
        self,
        model: Model,
        root: Hidden,
        key: PRNGKeyArray,
        legal: Bool[Array, "B a"] | None,
        greedy: bool,
        temperature: Float[Array, " B"],
    ) -> Found:
        """Plans from `root`. `greedy`: for evaluation, without noise."""
        config = self.config
        return puct(
            model,
            root,
            key,
            simulations=config.simulations,
            legal=legal,
            dirichlet_alpha=config.root_alpha,
            dirichlet_fraction=0.0 if greedy else config.root_noise,
            temperature=temperature,
            least_range=config.least_range,
        )

    def _temperature(self, state: State, carry: Carry) -> Float[Array, " N"]:
        config = self.config
        if config.temperature_moves:
            return (carry.moves < config.temperature_moves).astype(jnp.float32)
        half, quarter = (state.updates >= u for u in (config.half_heat, config.quarter_heat))
        return jnp.full(carry.moves.shape, jnp.where(quarter, 0.25, jnp.where(half, 0.5, 1.0)), jnp.float32)

    def _see(self, carry: Carry, obs: Row) -> tuple[dict[str, Array], Carry]:
        """What the networks see of these rows, and the carry that remembers them."""
        first = obs["is_first"]
        moves = jnp.where(first, 0, carry.moves)
        seen, frames = self._raw(obs), {}
        for key, before in carry.frames.items():
            before = jnp.where(first.reshape(-1, *[1] * (before.ndim - 1)), jnp.zeros_like(before), before)
            both = jnp.concatenate([before, seen[key][:, None]], 1)
            seen[key], frames[key] = as_channels(both), both[:, 1:]
        return seen, Carry(frames, moves, carry.key, carry.held)

    def _raw(self, rows: Mapping[str, Array]) -> dict[str, Array]:
        return {k: v for k, v in select(rows, "obs/").items() if k in self.seen_space}

    def observed(self, batch: Row, first: int, count: int) -> dict[str, Array]:
        """What the networks see at positions `first` to `first + count - 1`, `[B, count, ...]`, as `_see` has it."""
        begin = self.context + first
        at = lambda x, back: x[:, begin - back : begin - back + count]
        seen = {k: at(v, 0) for k, v in self._raw(batch).items()}
        episode = jnp.cumsum(batch["is_first"], 1)
        for key in planar(self.obs_space) if self.context else ():
            whole = batch[f"obs/{key}"]
            frames = []
            for back in range(self.context, -1, -1):
                same = at(episode, back) == at(episode, 0)
                frame = at(whole, back)
                frames.append(jnp.where(same.reshape(*same.shape, 1, 1, 1), frame, jnp.zeros_like(frame)))
            seen[key] = as_channels(jnp.stack(frames, 2))
        return seen

    # -------------------------------------------------------------- learning

    def train(self, state: State, batch: Row) -> tuple[State, Row, Metrics]:
        key = jax.random.fold_in(state.key, state.updates)
        before = batch
        if self.config.bootstrap != "stored":
            batch = self._revalued(state.target, batch)
        batch, out, found = self._reanalysed(state.target, batch, before, key)
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
            value      z0     z1         zK      n-step returns; z1 to zK perhaps v(o1) to v(oK) (`_as_seen`)
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
            fewer=self.trusted(rows, updates),
        )
        actions = self.taken(rows)[:, : config.unroll]
        if config.unrolled_value == "seen":
            window = self._as_seen(stop_gradient(model), window, batch)
        states = self.unroll(model, batch, actions)
        losses, reward = self.losses(model, states, window, batch)
        imagined: Metrics = {}
        if config.behavior == "actor-critic":
            behavior, imagined = self.imagined(model, states, window, key)
            losses |= behavior
        step = jnp.concatenate([jnp.ones(1), jnp.full(config.unroll, 1 / config.unroll)])[None]
        weight = batch["weight"][:, None] * step if "weight" in batch else step
        means = {name: (weight * each).sum(1).mean() for name, (_, each) in losses.items()}
        loss = jnp.sum(jnp.stack([scale * means[name] for name, (scale, _) in losses.items()]))
        priority = jnp.abs(rows["out/value"][:, 0] - window.value[:, 0])
        known = window.known[:, 1:].astype(jnp.float32)
        target = window.reward[:, 1:]
        mean = (known * target).sum() / known.sum()
        metrics = {f"loss/{k}": v for k, v in means.items()} | imagined | self._diagnosed(model, states, actions)
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

    def _as_seen(self, model: Model, window: Window, batch: Row) -> Window:
        """The window whose values at positions 1 to K are the model's own of the observations there, 0 from the end of
        the world on.

        The returns of one game differ by far more than the moves of one position do. The value of a root sees through
        that, for boards are alike; the state that a move leads to inherits it this way, with no noise but that of
        chance in one step (in the spirit of self-consistent models, Farquhar et al. 2021).
        """
        seen = model.represent(self.observed(batch, 1, self.config.unroll))
        value = jnp.where(window.real[:, 1:], model.val(model.body.read(seen.state)).pred(), 0.0)
        return window._replace(value=window.value.at[:, 1:].set(value))

    def trusted(self, rows: Row, updates: Int[Array, ""]) -> Int[Array, " B"] | None:
        """Rewards that a value target may use, if not n everywhere: what was done long ago is not what would be."""
        return None

    def unroll(self, model: Model, batch: Row, actions: Array) -> Hidden:
        """The states 0 to K of the root and the actions after it, `[B, K + 1, ...]`."""
        root = model.represent({k: v[:, 0] for k, v in self.observed(batch, 0, 1).items()})

        def step(hidden: Hidden, action: Array) -> tuple[Hidden, Hidden]:
            after = self.step(model, hidden._replace(state=halve_gradient(hidden.state)), action)
            return after, after

        # No loop: on the CPU, the gradient of a convolution inside one takes ten times as long.
        _, rest = lax.scan(step, root, jnp.swapaxes(actions, 0, 1), unroll=True)
        return jax.tree.map(lambda x, xs: jnp.concatenate([x[:, None], jnp.swapaxes(xs, 0, 1)], 1), root, rest)

    def losses(
        self, model: Any, states: Hidden, window: Window, batch: Row
    ) -> tuple[dict[str, tuple[float, Float[Array, "B k"]]], Float[Array, "B u"]]:
        """Name -> its weight, and its value `[B, K + 1]`; and the rewards predicted for steps 1 to K."""
        config = self.config
        value = model.val(model.body.read(states.state))
        reward = model.rewarded(jax.tree.map(lambda x: x[:, 1:], states))
        known, real = window.known.astype(jnp.float32), window.real.astype(jnp.float32)
        first = jnp.zeros_like(known[:, :1])
        losses = {
            "policy": (config.policy_scale, -real * self.likelihood(model, states, batch)),
            "value": (config.value_scale, known * value.loss(window.value)),
            "reward": (
                config.reward_scale,
                jnp.concatenate([first, known[:, 1:] * reward.loss(self.rewarded(window)[:, 1:])], 1),
            ),
        }
        if model.turn is not None:
            turn = model.turn(model.body.read(states.state[:, 1:])).loss(window.turned[:, 1:].astype(jnp.float32))
            losses["turn"] = (1.0, jnp.concatenate([first, real[:, 1:] * turn], 1))
        if model.leg is not None:
            seen = batch["obs/legal"][:, self.context : self.context + config.unroll + 1]
            losses["legal"] = (1.0, real * model.leg.loss(model.body.read(states.state), seen))
        if model.dec is not None:
            # What a state should be is seen at its row, also where the world ended there.
            there = jnp.concatenate([jnp.ones_like(first), window.followed], 1)
            for key, nats in self.misread(model.dec, states, batch).items():
                losses[f"decode/{key}"] = (config.decode_scale, there * nats)
        return losses, states.reward[:, 1:]

    def misread(self, decode: Conv, states: Hidden, batch: Row) -> dict[str, Float[Array, "B k"]]:
        """Nats that each board costs at positions 0 to K when it is read off the states (Anand et al. 2022, "Procedural
        generalization by planning with self-supervised world models")."""
        logits, cost = decode(states.state).astype(jnp.float32), {}
        for key, space in boards(self.obs_space).items():
            mine, logits = jnp.split(logits, [space.shape[2]], -1)
            seen = batch[f"obs/{key}"][:, self.context : self.context + self.config.unroll + 1].astype(jnp.float32)
            cost[key] = Binary(mine).loss(seen).sum((-3, -2, -1))
        return cost

    def imagined(
        self, model: Model, states: Hidden, window: Window, key: PRNGKeyArray
    ) -> tuple[dict[str, tuple[float, Float[Array, "B k"]]], Metrics]:
        """Losses of policy and value, in place of those of a search, from playing on inside the model; and metrics.

            state      s0   s1   ...   sH        s0: any of the K + 1 states of the unroll, the root among them
            action     a0   a1   ...   (aH)      a_t ~ policy(s_t)
            reward          r1   ...   rH
            return     R0   R1   ...             lambda-returns; sH only bootstraps
            advantage  R_t - v_t, over the range of the batch's returns from the 5th to the 95th percentile, at least 1

        The model is data here: it learns from what really happened alone, and the value from both. Where the world ends
        the model goes on, with rewards and values that it learned to be 0. The losses are means over H steps, and
        stand where they began.
        """
        config, frozen = self.config, stop_gradient(model)
        starts = jax.tree.map(lambda x: stop_gradient(x).reshape(-1, *x.shape[2:]), states)

        def act(latent: Hidden, key: PRNGKeyArray) -> Array:
            policy, _ = frozen.judge(latent, frozen.legal(latent))
            return policy.sample(key).reshape(latent.reward.shape)

        latents, actions = rollout(frozen, act, starts, config.imagination, key)  # [H + 1, B * (K + 1)]
        feat = frozen.body.read(latents.state)
        legal = jax.tree.map(lambda x: x[:-1], frozen.legal(latents, actions))
        policy, value = model.pol(feat[:-1], legal), model.val(feat[:-1])
        reward, discount = frozen.predict(latents)
        baseline = frozen.val(feat).pred()
        target = lambda_return(reward.T, discount.T, jnp.full_like(reward.T, config.imagined_lam), baseline.T).T
        spread = ReturnScale().update(target, rate=1.0).scale()
        advantage = (target - baseline[:-1]) / spread
        taken = actions[:-1].reshape(*target.shape, *self.act_space[self.action].shape)
        acting = actor(policy, {self.action: taken}, advantage, config.entropy)
        real = window.real.astype(jnp.float32)
        begun = lambda x: real * x.mean(0).reshape(real.shape)
        metrics = {
            "imagined/return": target.mean(),
            "imagined/reward": reward[1:].mean(),
            "imagined/value": baseline.mean(),
            "policy/return_scale": spread,
            "policy/advantage": jnp.abs(advantage).mean(),
        }
        return {
            "policy": (config.policy_scale, begun(acting)),
            "imagined_value": (config.value_scale, begun(value.loss(target))),
        }, metrics

    def likelihood(self, model: Model, states: Hidden, batch: Row) -> Float[Array, "B k"]:
        """Log-probability of what the searches found, at positions 0 to K."""
        target = batch["out/policy"][:, self.context : self.context + self.config.unroll + 1]
        return (target * model.judge(states)[0].logp[..., 0, :]).sum(-1)

    def taken(self, rows: Row) -> Array:
        """The actions of rows as the dynamics take them, `[B, T, ...]`."""
        return rows[f"action/{self.action}"]

    def step(self, model: Model, hidden: Hidden, action: Array) -> Hidden:
        """One step of the dynamics along what was done."""
        return model.advance(hidden, action)

    def other(self, actions: Array) -> Array:
        """Other actions than these, `[B, ...]`."""
        return (actions + 1) % self.choices

    def rooted(
        self, model: Model, seen: Mapping[str, Array], key: PRNGKeyArray, legal: Bool[Array, "B a"] | None
    ) -> Hidden:
        """What a search starts from, where these actions are legal."""
        return model.represent(seen)

    def fresh(self, root: Hidden, policy: Float[Array, "B a"], value: Float[Array, " B"]) -> Row:
        """What is stored of a search, by its key in `out_space`."""
        return {"policy": policy, "value": value}

    def rewarded(self, window: Window) -> Float[Array, "B k"]:
        """What the model's reward head is to say."""
        return window.reward

    def _diagnosed(self, model: Model, states: Hidden, actions: Array) -> Metrics:
        """How random the policy is, and whether actions matter to the dynamics at all."""
        root = jax.tree.map(lambda x: stop_gradient(x[:, 0]), states)
        frozen = stop_gradient(model)
        policies = frozen.pol(frozen.body.read(root.state))
        taken, other = (
            self.step(frozen, root, a).state.astype(jnp.float32) for a in (actions[:, 0], self.other(actions[:, 0]))
        )
        spread = jnp.abs(taken - jnp.roll(taken, 1, 0)).mean()  # between unrelated states
        return {
            **{f"policy/entropy/{k}": dist.entropy().mean() for k, dist in policies.items()},
            **{f"policy/randomness/{k}": randomness(dist).mean() for k, dist in policies.items()},
            "action/influence": jnp.abs(taken - other).mean() / jnp.maximum(spread, 1e-6),
        }

    def _reanalysed(self, target: Model, batch: Row, before: Row, key: PRNGKeyArray) -> tuple[Row, Row, Metrics]:
        """The batch with fresh policies and values in its reanalysed share, what of it is to be written back
        (`[B, T, ...]`, position by position; elsewhere what replay holds, `before`), and metrics.

        Policies are searched where they are targets, positions 0 to K; with `bootstrap` search all positions are, since
        a target may bootstrap from any of them: from the last row of an episode that is cut, or by lambda, or by age.
        """
        config = self.config
        share = round(config.reanalyse * batch["reward"].shape[0])
        if not share:
            return batch, {}, {}
        count = self.rows if config.bootstrap == "search" else config.unroll + 1
        part = {k: v[:share] for k, v in batch.items()}
        flat = lambda x: x.reshape(-1, *x.shape[2:])
        root_key, search_key = jax.random.split(jax.random.fold_in(key, 1))
        seen = {k: flat(v) for k, v in self.observed(part, 0, count).items()}
        at = slice(self.context, self.context + count)
        legal = flat(part["obs/legal"][:, at]) if "obs/legal" in part else None
        root, legal = self.rooted(target, seen, root_key, legal), self.choosable(legal)
        _, policy, value = self.decide(target, root, search_key, legal, False, jnp.ones(share * count, jnp.float32))
        new = self.fresh(root, policy, value)
        used, out = {}, {}
        for name in self.searched:
            held = before[f"out/{name}"]
            fresh = new[name].reshape(share, count, *new[name].shape[1:]).astype(held.dtype)
            used[f"out/{name}"] = batch[f"out/{name}"].at[:share, at].set(fresh)
            out[f"out/{name}"] = held.at[:share, at].set(fresh)[:, self.context :]
        span = slice(self.context, self.context + config.unroll + 1)
        moved = jnp.abs(used["out/value"][:share, span] - before["out/value"][:share, span]).mean()
        return batch | used, out, {"reanalyse/value_moved": moved}

    def _revalued(self, target: Model, batch: Row) -> Row:
        """The whole batch, all of whose values are the target network's. They are not written back: no search found
        them."""
        seen = target.represent(self.observed(batch, 0, self.rows))
        value = batch["out/value"].at[:, self.context :].set(target.val(target.body.read(seen.state)).pred())
        return batch | {"out/value": value}

    # ------------------------------------------------------------- reporting

    def report(self, state: State, batch: Row) -> Metrics:
        """`open_loop/reward/<h>`, `open_loop/value/<h>`: squared errors of the reward, and of the value against that
        of the search, `h` steps after the last row seen, where no episode begins in between."""
        dream = self.dream(state, batch)
        metrics: Metrics = {}
        for name in dream.dream:
            error = jnp.square(dream.dream[name] - dream.truth[name])
            for h in range(1, min(self.config.unroll, error.shape[1] - SEEN) + 1):
                there = dream.valid[:, SEEN + h - 1].astype(jnp.float32)
                metrics[f"open_loop/{name}/{h}"] = jnp.sum(there * error[:, SEEN + h - 1]) / there.sum()
        return metrics

    def dream(self, state: State, batch: Row, seen: int = SEEN) -> Dream:
        """Rewards and values: all that this model can tell of the future. Of rows seen, the value is the network's."""
        rows = {k: v[:, self.context :] for k, v in batch.items()}
        steps = rows["reward"].shape[1]
        if not 0 < seen < steps:
            raise ValueError(f"a dream of {steps} rows can be shown 1 to {steps - 1} of them, got seen={seen}")
        latents = state.model.represent(self.observed(batch, 0, seen))
        start = jax.tree.map(lambda x: x[:, -1], latents)

        def step(hidden: Hidden, action: Array) -> tuple[Hidden, Hidden]:
            after = self.step(state.model, hidden, action)
            return after, after

        _, ahead = lax.scan(step, start, jnp.swapaxes(self.taken(rows)[:, seen - 1 : -1], 0, 1))
        value = lambda hidden: state.model.val(state.model.body.read(hidden.state)).pred()
        dream = {
            "reward": jnp.concatenate([rows["reward"][:, :seen], ahead.reward.T], 1),
            "value": jnp.concatenate([value(latents), value(ahead).T], 1),
        }
        truth = {"reward": rows["reward"], "value": rows["out/value"]}
        begun = rows["is_first"].at[:, :seen].set(False)
        return Dream(truth, dream, jnp.cumsum(begun, 1) == 0)


def seen_space(obs_space: Spaces, stack: int) -> Spaces:
    """What the networks see: no rules of the game, and pictures or boards as a stack of frames."""
    pictures = planar(obs_space)
    return {
        k: Space(s.kind, (*s.shape[:2], s.shape[2] * stack)) if k in pictures else s
        for k, s in obs_space.items()
        if s.kind not in UNSEEN
    }


def irregular(obs_space: Spaces) -> bool:
    """Whether two players take part of whom one may move several times in a row, for all that is known."""
    return "player" in obs_space and not obs_space["player"].alternating


def as_channels(frames: Array) -> Array:
    """`[*B, F, H, W, C] -> [*B, H, W, F * C]`."""
    moved = jnp.moveaxis(frames, -4, -2)
    return moved.reshape(*moved.shape[:-2], -1)


def uniform(legal: Bool[Array, "B a"] | None, shape: tuple[int, ...]) -> Float[Array, "B a"]:
    """Equal probabilities of what is legal; of everything, where nothing is (the end of a game)."""
    if legal is None:
        return jnp.full(shape, 1 / shape[-1])
    allowed = (legal | ~legal.any(-1, keepdims=True)).astype(jnp.float32)
    return allowed / allowed.sum(-1, keepdims=True)


def make_optimizer(config: Any) -> optax.GradientTransformation:
    """AdamW or SGD with momentum, behind a bound on the gradient."""
    rate = (
        optax.linear_schedule(0.0, config.learning_rate, config.lr_warmup) if config.lr_warmup else config.learning_rate
    )
    if config.lr_drop_every:
        warm = rate if callable(rate) else optax.constant_schedule(rate)
        rate = lambda count: warm(count) * 0.1 ** (count // config.lr_drop_every)
    if config.optimizer == "adam":
        return optax.chain(optax.clip_by_global_norm(config.clip), optax.adamw(rate, weight_decay=config.weight_decay))
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(rate, momentum=0.9),
    )
