"""What the three Dreamers have in common: acting on a belief, learning a model and then a behaviour from every batch,
and showing what the model dreams.

Each paper is a file of its own (`dreamer_v1.py`, `dreamer_v2.py`, `dreamer_v3.py`): its values, its networks, and how
its actor and critic learn. Those files fill in what is marked here as theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from reverie.agent import HORIZONS, SEEN, Dream, Metrics, Mode, Part, Row, prefixed, select
from reverie.algos import Unsuitable, planning
from reverie.behavior.explore import Held, explore, unheld
from reverie.behavior.imagine import rollout
from reverie.behavior.returns import ReturnScale, lambda_return
from reverie.behavior.search import Found
from reverie.envs.base import Spaces
from reverie.health import Symptom, constant_reward, kl_at_floor, policy_certain, policy_random
from reverie.model.canvas import Size, resized
from reverie.model.decode import Decoder
from reverie.model.encode import Encoder, flat, permitted, width
from reverie.model.heads import FlagHead, LegalHead, PolicyHead, ScalarHead, sample
from reverie.model.rssm import RSSM, Latent, features
from reverie.nn.dists import Action, OneHot, randomness
from reverie.nn.layers import Style
from reverie.nn.optim import each, finite, guarded

BEHAVIOR = {"pol": "actor", "val": "critic"}  # the networks that do not belong to the world model


class Model(eqx.Module):
    """All trained networks. Answers the `WorldModel` contract: `imagine` and `predict`."""

    enc: Encoder
    dyn: RSSM
    dec: Decoder
    rew: ScalarHead
    con: FlagHead | None  # None: the world is taken to go on for ever
    leg: LegalHead | None  # None: every action may always be taken
    pol: PolicyHead
    val: ScalarHead
    actions: tuple[tuple[str, Any], ...] = eqx.field(static=True)
    gamma: float = eqx.field(static=True)  # what the continue head does not know of the discount; 1 if it knows all

    def imagine(self, latent: Latent, action: Mapping[str, Array], key: PRNGKeyArray) -> Latent:
        return self.dyn.imagine(latent, flat(dict(self.actions), action), key)

    def predict(self, latent: Latent) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        feat = features(latent)
        return self.rew(feat).pred(), self.discount(feat)

    def discount(self, feat: Float[Array, "*B f"]) -> Float[Array, "*B"]:
        """The head's probability if it knows gamma; else gamma, times the flag to go on, if any."""
        if self.con is None:
            return jnp.full(feat.shape[:-1], self.gamma, jnp.float32)
        flag = self.con(feat)
        return flag.prob() if self.gamma == 1 else self.gamma * flag.mode()

    def legal(self, feat: Float[Array, "*B f"], done: Mapping[str, Array] | None = None) -> Bool[Array, "*B a"] | None:
        """The actions that the model takes to be legal in imagined states; None: all. `done`, what was done there, is
        among them: computed twice, a flag close to a half may come out on either side."""
        if self.leg is None:
            return None
        legal = self.leg.legal(feat)
        return legal if done is None else legal | (flat(dict(self.actions), done) > 0.5)

    def policy(self, feat: Float[Array, "*B f"], legal: Bool[Array, "*B a"] | None = None) -> dict[str, Action]:
        """What the actor would do, among what is `legal`; where nobody says that, among what the model takes to be."""
        return self.pol(feat, self.legal(feat) if legal is None else legal)


class State(eqx.Module):
    """Everything training changes."""

    model: Model
    slow: ScalarHead | None  # a critic that follows the other one; None where the paper has none
    returns: ReturnScale
    optimizer: Any
    key: PRNGKeyArray
    updates: Array  # int32, applied updates
    nonfinite: Array  # int32 [2]: updates skipped in all, and in a row


class Carry(eqx.Module):
    """What the policy remembers between steps: the belief, the action just taken, and random ones that go on."""

    latent: Latent
    action: Float[Array, "N a"]
    key: PRNGKeyArray
    held: Held | None = None  # None: random actions are not repeated


class Seen(NamedTuple):
    """What the model made of the trained rows of a batch, `[B, T, ...]`.

    Attributes:
      alive: float32, 1 - is_terminal.
    """

    rows: Row
    latents: Latent
    alive: Float[Array, "B T"]


class Dreamt(NamedTuple):
    """Imagined trajectories and what became of them, time-major; `H1` is `H + 1`.

        latent      s0   s1   ...   sH       s0 is a replayed state
        action      a0   a1   ...   (aH)     a_t chosen at s_t
        reward      .    r1   ...   rH       predicted from s_t, gained by a_{t-1}
        discount    .    d1   ...   dH       gamma times the chance that s_t is not the end
        weight      1    d1   ...            how likely the trajectory is to get this far; 0 if s0 is known as the end
        target      R0   R1   ...   .        lambda-returns of s_t; sH only bootstraps

    Attributes:
      fixed: features of the latents, without a gradient.
      legal: what the policy chose from (`Model.legal`), if not from everything.
      target: with a gradient by the actions that have one.
    """

    fixed: Float[Array, "H1 M f"]
    actions: dict[str, Array]
    legal: Bool[Array, "H1 M a"] | None
    reward: Float[Array, "H1 M"]
    discount: Float[Array, "H1 M"]
    value: Float[Array, "H1 M"]
    target: Float[Array, "H M"]
    weight: Float[Array, "H M"]

    def figures(self) -> dict[str, Array]:
        """What `behavior_metrics` tells of."""
        names = {"return": self.target, "reward": self.reward, "value": self.value, "discount": self.discount}
        return names | {"length": self.weight.sum(0)}


def check(obs_space: Spaces) -> None:
    """Raises Unsuitable for a game of two players."""
    if any(space.kind == "player" for space in obs_space.values()):
        raise Unsuitable(
            "this is a game of two players, and a Dreamer plays alone: it would count what its opponent wins as its "
            "own. Type `reverie list` for an algorithm that searches, or choose an env of one player (pgx:2048)"
        )


def legal_head(
    obs_space: Spaces, act_space: Spaces, features: int, units: int, layers: int, style: Style, key: PRNGKeyArray
) -> LegalHead | None:
    """What predicts the legal actions, if the env says which they are. `key`: that of all networks."""
    if "legal" not in obs_space:
        return None
    (space,) = act_space.values()
    return LegalHead(space, features, units, layers, key=jax.random.fold_in(key, 7), style=style)


class Dreamer:
    """The `Agent`. Holds only constants; everything that changes is in `State` and `Carry`.

    Args:
      config: the paper's values, with `Planning` among them.
      canvas: height and width at which the networks see images.
      widths: of a latent: deter, stoch, and numbers of a stoch variable.
      differentiable: the actions whose samples carry the gradient of the return.
      scales: the weight of every loss.

    Raises:
      Unsuitable: a planner is asked for, and the actions are not one discrete choice.
    """

    context = 0
    rows = trained = 0
    minibatches: int = 1
    enumerated = True  # a number means the same action at every node of a tree
    parts: tuple[Part, ...] = get_args(Part)

    def __init__(
        self,
        config: Any,
        obs_space: Spaces,
        act_space: Spaces,
        dtype: jnp.dtype,
        *,
        canvas: Size,
        widths: tuple[int, int, int],
        optimizer: optax.GradientTransformation,
        differentiable: frozenset[str],
        scales: Mapping[str, float],
    ):
        self.config, self.optimizer = config, optimizer
        self.obs_space, self.act_space = obs_space, act_space
        self.dtype, self.widths, self.differentiable = dtype, widths, differentiable
        self.resized: Mapping[str, Size] = resized(obs_space, canvas)
        self.out_space: Mapping[str, jax.ShapeDtypeStruct] = {}
        self.added: tuple[str, ...] = ("leg",) if "legal" in obs_space else ()
        self.symptoms: tuple[Symptom, ...] = (
            kl_at_floor(config.free_nats),
            constant_reward(),
            *(of(name) for name in sorted(act_space) for of in (policy_certain, policy_random)),
        )
        self.scales = {**scales, **({"improve": config.improve} if config.improve else {})}
        self.scales |= {"legal": 1.0} if "legal" in obs_space else {}
        if config.planner != "none":
            instead = "--planner none leaves the decision to the actor; `sampled_muzero` searches among drawn actions"
            planning.check_choice(act_space, instead)

    # ------------------------------------------------------- what a paper fills in

    def networks(self, key: PRNGKeyArray) -> Model:
        raise NotImplementedError

    def behave(
        self, model: Model, slow: ScalarHead | None, returns: ReturnScale, seen: Seen, key: PRNGKeyArray
    ) -> tuple[dict[str, Array], ReturnScale, Metrics]:
        """Losses of actor and critic, the moved scale of returns, and metrics."""
        raise NotImplementedError

    def slowed(self, model: Model, slow: ScalarHead | None, updates: Array) -> ScalarHead | None:
        """The slow critic after an update; `updates` were made before it."""
        return None

    def granted(self, kl: Float[Array, "B T"]) -> Float[Array, "..."]:
        """A KL of which the free nats cost nothing: those of the mean over the batch (V1 and V2)."""
        return jnp.maximum(kl.mean(), self.config.free_nats)

    def measured(self, reward: Float[Array, "*B"]) -> Float[Array, "*B"]:
        """Rewards as they are learned from."""
        return reward

    def counted(self, kl: Float[Array, "B T"]) -> Float[Array, "B T"]:
        """KL as it counts."""
        return kl

    def continues(self, alive: Float[Array, "B T"]) -> Float[Array, "B T"]:
        """What the continue head is to say."""
        return alive

    def explored(self, action: dict[str, Array], legal: Array | None, key: PRNGKeyArray) -> dict[str, Array]:
        """Actions of training with noise of the paper's own, among what is legal."""
        return action

    def stored(self, latent: Latent) -> Row:
        """Latents as replay keeps them."""
        return {}

    def restored(self, row: Row) -> Latent:
        """Inverse of `stored`."""
        raise NotImplementedError

    def refreshed(self, latents: Latent) -> Row:
        """What training writes back to replay."""
        return {}

    # ---------------------------------------------------------------- acting

    @property
    def explores(self) -> bool:
        """Whether actions in training are random beyond what the policy draws."""
        return self.config.hold > 1 or self.config.random_moves > 0

    def init(self, key: PRNGKeyArray) -> State:
        model_key, key = jax.random.split(key)
        model = self.networks(model_key)
        return State(
            model=model,
            slow=self.slowed(model, None, jnp.zeros((), jnp.int32)),
            returns=ReturnScale(),
            optimizer=self.optimizer.init(model),
            key=key,
            updates=jnp.zeros((), jnp.int32),
            nonfinite=jnp.zeros(2, jnp.int32),
        )

    def parameters(self, state: State) -> dict[str, int]:
        parts = {name: getattr(state.model, name) for name in ("enc", "dyn", "dec", "rew", "con", "leg", "pol", "val")}
        return {n: sum(x.size for x in jax.tree.leaves(part)) for n, part in parts.items() if part is not None}

    def init_carry(self, batch: int, key: PRNGKeyArray) -> Carry:
        deter, *stoch = self.widths
        return Carry(
            latent=Latent(jnp.zeros((batch, deter), self.dtype), jnp.zeros((batch, *stoch), self.dtype)),
            action=jnp.zeros((batch, width(self.act_space)), jnp.float32),
            key=key,
            held=unheld(self.random_action(batch, None, key)) if self.explores else None,
        )

    def policy(self, state: State, carry: Carry, obs: Row, mode: Mode) -> tuple[Carry, Row, Row]:
        key, belief_key, act_key = jax.random.split(carry.key, 3)
        legal = obs.get("obs/legal")
        latent = self.believe(state.model, carry, obs, belief_key)
        if mode == "random":
            action = self.random_action(len(carry.action), legal, act_key)
        else:
            action = self.decide(state.model, latent, obs, mode, act_key)
            if mode == "train":
                action = self.explored(action, legal, jax.random.fold_in(act_key, 1))
        action, held = self._bounded(action), carry.held
        if held is not None and mode in ("random", "train"):
            draw_key, hold_key = jax.random.split(jax.random.fold_in(act_key, 2))
            drawn = self.random_action(len(carry.action), legal, draw_key)
            share = 1.0 if mode == "random" else self.config.random_moves
            still = permitted(legal, self.act_space, held.action)
            held, action = explore(self.config, held, action, drawn, obs["is_first"], hold_key, share, still)
        carry = Carry(latent, flat(self.act_space, action), key, held)
        return carry, prefixed("action/", action), self.stored(latent)

    def believe(self, model: Model, carry: Carry, obs: Row, key: PRNGKeyArray) -> Latent:
        """The latents of N envs after what they show now."""
        tokens = model.enc(select(obs, "obs/"), self.dtype)
        latents, _ = model.dyn.observe(
            carry.latent,
            tokens[:, None],
            carry.action[:, None],
            obs["is_first"][:, None],
            key,
        )
        return jax.tree.map(lambda x: x[:, 0], latents)

    def decide(self, model: Model, latent: Latent, obs: Row, mode: Mode, key: PRNGKeyArray) -> dict[str, Array]:
        """What the actor does, or what a search finds that it is to do."""
        if self.config.planner != "none":
            found = self.search(model, latent, key, obs.get("obs/legal"), greedy=mode != "train")
            action = found.action
            if mode == "sample":
                action = jax.random.categorical(jax.random.fold_in(key, 1), jnp.log(found.policy)).astype(jnp.int32)
            ((name, space),) = self.act_space.items()
            return {name: action.reshape(-1, *space.shape)}
        dists = model.policy(features(latent), obs.get("obs/legal"))
        return {k: d.pred() for k, d in dists.items()} if mode == "eval" else sample(dists, key)

    def search(self, model: Model, latent: Latent, key: PRNGKeyArray, legal: Array | None, greedy: bool) -> Found:
        return planning.search(self.config, model, latent, key, legal, greedy)

    def think(self, state: State, carry: Carry, obs: Row) -> tuple[dict[str, Array], Found]:
        """What `policy` finds with these arguments of one env, N = 1, in mode `eval`, if there is a planner.

        Returns:
          the actions that it chose from, `[A, ...]` by their key in `act_space`, and what it found, its tree included.
        """
        _, belief_key, act_key = jax.random.split(carry.key, 3)
        latent = self.believe(state.model, carry, obs, belief_key)
        ((name, space),) = self.act_space.items()
        actions = {name: jnp.arange(space.width, dtype=jnp.int32).reshape(-1, *space.shape)}
        return actions, self.search(state.model, latent, act_key, obs.get("obs/legal"), greedy=True)

    def _bounded(self, action: dict[str, Array]) -> dict[str, Array]:
        """Vectors in [-1, 1], as every env takes them."""
        return {k: jnp.clip(a, -1, 1) if self.act_space[k].kind == "vector" else a for k, a in action.items()}

    def random_action(self, batch: int, legal: Array | None, key: PRNGKeyArray) -> dict[str, Array]:
        """Uniform draws of N envs, `[N, ...]`, of discrete actions among what is `legal`."""
        action = {}
        keys = jax.random.split(key, len(self.act_space))
        for name, own_key in zip(sorted(self.act_space), keys, strict=True):
            space = self.act_space[name]
            if space.kind == "discrete":
                even = OneHot(jnp.zeros((batch, space.width)), space.classes, space.shape, legal=legal)
                action[name] = even.sample(own_key)
            else:
                action[name] = jax.random.uniform(own_key, (batch, *space.shape), minval=-1, maxval=1)
        return action

    # -------------------------------------------------------------- learning

    def train(self, state: State, batch: Row, part: Part = "all") -> tuple[State, Row, Metrics]:
        key = jax.random.fold_in(state.key, state.updates)
        grad = jax.value_and_grad(self.loss, has_aux=True)
        (loss, (out, returns, metrics)), grads = grad(state.model, state.slow, state.returns, batch, key, part)
        norm = optax.tree.norm(grads)
        changes, optimizer = self.optimizer.update(grads, state.optimizer, state.model)
        model = optax.apply_updates(state.model, changes)
        if part != "all":  # nothing else moves, not even by its own momentum
            model = jax.tree_util.tree_map_with_path(partial(_belongs, part), model, state.model)
        slow = self.slowed(model, state.slow, state.updates)
        new = State(model, slow, returns, optimizer, state.key, state.updates + 1, state.nonfinite)

        metrics |= {"loss/total": loss, "gradient/norm": norm}
        return self.settled(finite((loss, norm)), state, batch, new, out, metrics)

    def settled(
        self, sound: Array, state: State, batch: Row, new: State, out: Row, metrics: Metrics
    ) -> tuple[State, Row, Metrics]:
        """What `train` returns: `new`, `out` and `metrics`, or where not all is finite what there was before."""
        sound &= finite(new.returns)
        state, out, counts = guarded(sound, state, new, out, {k: batch[k][:, self.context :] for k in out})
        return state, out, metrics | counts

    def renew(self, state: State) -> State:
        return eqx.tree_at(lambda s: s.optimizer, state, self.optimizer.init(state.model))

    def loss(
        self,
        model: Model,
        slow: ScalarHead | None,
        returns: ReturnScale,
        batch: Row,
        key: PRNGKeyArray,
        part: Part = "all",
    ) -> tuple[Float[Array, ""], tuple[Row, ReturnScale, Metrics]]:
        """The whole objective of one batch, or that of one part.

            row          0 | 1    2    3    ...  T       row 0, if there is one, is context: its latent is the start
            obs              o1   o2   o3        oT
            action       a0  a1   a2   a3        aT      latent t needs action t-1
            latent      (s0) s1   s2   s3        sT
            reward           r1   r2   r3        rT      arrived with obs t: predicted from latent t
            continue         c1   c2   c3        cT      1 - is_terminal, times gamma if it carries the discount

        Returns:
          the loss, and `(out, returns, metrics)`: refreshed latents, the moved return scale, scalars.
        """
        observe_key, imagine_key = jax.random.split(key)
        losses, seen, metrics = self.learn(model, batch, observe_key)  # what was, from what was seen
        if part == "behavior":
            losses, seen, metrics = {}, stop_gradient(seen), {}
        if part != "model":  # what could be, from every replayed state
            behave, returns, more = self.behave(model, slow, returns, seen, imagine_key)
            losses, metrics = losses | behave, metrics | more
            if self.config.improve:
                losses["improve"], more = self.improved(model, seen, jax.random.fold_in(imagine_key, 1))
                metrics |= more
        loss, parts = self.weighed(losses)
        return loss, (self.refreshed(seen.latents), returns, metrics | parts)

    def weighed(self, losses: Mapping[str, Array]) -> tuple[Float[Array, ""], Metrics]:
        """The sum of the means of all losses, each with its scale; and the means as metrics."""
        assert losses.keys() <= self.scales.keys(), (sorted(losses), sorted(self.scales))
        means = {k: v.mean() for k, v in losses.items()}
        loss = jnp.sum(jnp.stack([self.scales[k] * v for k, v in means.items()]))
        return loss, {f"loss/{k}": v for k, v in means.items()}

    def learn(self, model: Model, batch: Row, key: PRNGKeyArray) -> tuple[dict[str, Array], Seen, Metrics]:
        """Losses of the world model, what it made of the batch, and metrics."""
        rows, latents, posterior = self._observe(model, batch, key)
        feat, kind, losses = features(latents), model.dyn.kind, {}
        prior = model.dyn.prior(latents.deter)
        dynamics = self.counted(kind.kl(stop_gradient(posterior), prior))
        representation = self.counted(kind.kl(posterior, stop_gradient(prior)))
        losses["dynamics"] = self.granted(dynamics)
        losses["representation"] = self.granted(representation)
        for name, dist in self._decode(model, latents).items():
            losses[f"decode/{name}"] = dist.loss(self._target(name, rows))
        reward = model.rew(feat)
        losses["reward"] = reward.loss(rows["reward"])
        alive = 1 - rows["is_terminal"].astype(jnp.float32)
        if model.con is not None:
            losses["continue"] = model.con(feat).loss(self.continues(alive))
        metrics: Metrics = {}
        if model.leg is not None:
            chosen = 1 - rows["is_last"].astype(jnp.float32)  # after an end nothing is
            losses["legal"] = chosen * model.leg.loss(feat, rows["obs/legal"])
            wrong = (model.leg.legal(feat) != rows["obs/legal"]).mean(-1)
            metrics["legal/error"] = (chosen * wrong).sum() / jnp.maximum(chosen.sum(), 1)
        metrics |= {
            "kl": dynamics.mean(),
            "entropy/prior": kind.entropy(prior).mean(),
            "entropy/posterior": kind.entropy(posterior).mean(),
            "replay/reward": rows["reward"].mean(),
            "reward/variance": rows["reward"].var(),
            "reward/error": jnp.square(stop_gradient(reward.pred()) - rows["reward"]).mean(),
        }
        return losses, Seen(rows, latents, alive), metrics

    def dreamt(self, model: Model, critic: ScalarHead, seen: Seen, key: PRNGKeyArray) -> Dreamt:
        """What the policy imagines from every replayed state. Actions among `differentiable` carry the gradient of what
        comes of them, through networks that it does not change (DreamerV1, section 3)."""
        config, frozen = self.config, stop_gradient(model)
        act = lambda latent, key: sample(model.policy(stop_gradient(features(latent))), key, self.differentiable)
        imagined, actions = rollout(frozen, act, self.starts(seen), config.imagination, key)
        feat = features(imagined)
        reward, discount = frozen.rew(feat).pred(), frozen.discount(feat)
        value = stop_gradient(critic)(feat).pred()
        target = lambda_return(reward.T, discount.T, jnp.full_like(value.T, config.lam), value.T).T
        weight = stop_gradient(jnp.cumprod(discount.at[0].set(seen.alive.ravel()), 0))[:-1]
        fixed, actions = stop_gradient((feat, actions))
        return Dreamt(fixed, actions, model.legal(fixed, actions), reward, discount, value, target, weight)

    def improved(self, model: Model, seen: Seen, key: PRNGKeyArray) -> tuple[Float[Array, "B T"], Metrics]:
        """Distance of the actor to what a search from every replayed state prefers (cross-entropy), and metrics.

        Searched now, not when the step was taken: a step is replayed hundreds of times, and what a search found then
        would be the preference of a model that no longer exists. So nothing is stored, steps that no search took are
        learned from as well, and so are those of a replay that is trained on without any env.
        """
        starts, legal = self.starts(seen), seen.rows.get("obs/legal")
        legal = None if legal is None else legal.reshape(-1, legal.shape[-1])
        found = self.search(stop_gradient(model), starts, key, legal, greedy=False)
        (policy,) = model.policy(features(starts), legal).values()
        assert isinstance(policy, OneHot)
        target, logp = stop_gradient(found.policy), policy.logp[..., 0, :]
        distance = -(target * logp).sum(-1)
        surplus = stop_gradient(distance) - jax.scipy.special.entr(target).sum(-1)
        alive = seen.alive.ravel()  # after the end of the world nothing is decided
        metrics = {"improve/kl": (alive * surplus).sum() / jnp.maximum(alive.sum(), 1)}
        return (alive * distance).reshape(seen.alive.shape), metrics

    def starts(self, seen: Seen) -> Latent:
        """Every replayed latent as the start of a dream, `[B * T, ...]`."""
        return jax.tree.map(lambda x: stop_gradient(x).reshape(-1, *x.shape[2:]), seen.latents)

    def _observe(self, model: Model, batch: Row, key: PRNGKeyArray) -> tuple[Row, Latent, Array]:
        """Splits off the context and runs the model over the rest; rows and latents `[B, T]`."""
        actions = flat(self.act_space, select(batch, "action/"))
        rows = {k: v[:, self.context :] for k, v in batch.items()}
        resets = rows["is_first"]
        if self.context:
            start = self.restored({k: v[:, 0] for k, v in batch.items() if k.startswith("out/")})
            previous = actions[:, :-1]
        else:
            # Nothing is known of what came before: every sequence starts like an episode.
            start = model.dyn.zeros((resets.shape[0],), self.dtype)
            previous = jnp.concatenate([jnp.zeros_like(actions[:, :1]), actions[:, :-1]], 1)
            resets = resets.at[:, 0].set(True)
        rows["reward"] = self.measured(rows["reward"])
        tokens = model.enc(select(rows, "obs/"), self.dtype)
        latents, posterior = model.dyn.observe(start, tokens, previous, resets, key)
        return rows, latents, posterior

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

    def drive(self, state: State, batch: Row, length: int) -> Row:
        """The policy in its own imagination: it sees the T rows of a batch, then acts greedily for `length` steps.

            row      1 .. T   | T+1   T+2  ...  T+length
            latent   observed | imagined from what the policy does at T, T+1, ...

        Changes nothing; the same state and batch give the same drive. `length` is static under jit.

        Returns:
          decoded `obs/<key>` and `reward`, `[B, T + length, ...]` in the units of `Dream`, and `valid`, bool: False
          after an imagined row of which the model thinks that the world likelier ends there than not.
        """
        model, key = state.model, jax.random.fold_in(state.key, state.updates)
        rows, latents, _ = self._observe(model, batch, key)
        act = lambda latent, _: self._bounded({k: d.pred() for k, d in model.policy(features(latent)).items()})
        imagined, _ = rollout(model, act, jax.tree.map(lambda x: x[:, -1], latents), length, key)
        latents = jax.tree.map(lambda x, y: jnp.concatenate([x, jnp.swapaxes(y[1:], 0, 1)], 1), latents, imagined)
        drive = self._decoded_latents(model, latents)
        seen = rows["reward"].shape[1]
        ended = jnp.zeros_like(drive["reward"], bool)
        if model.con is not None:
            ended = (model.con(features(latents)).prob() < 0.5).at[:, :seen].set(False)
        before = jnp.concatenate([jnp.zeros_like(ended[:, :1]), ended[:, :-1]], 1)
        return drive | {"valid": jnp.cumsum(before, 1) == 0}

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
        dream = self._decoded_latents(model, latents)
        seen = {key: self._target(key.removeprefix("obs/"), rows) for key in dream if key != "reward"}
        return Dream({"reward": rows["reward"]} | seen, dream, valid)

    def _decoded_latents(self, model: Model, latents: Latent) -> Row:
        """What latents `[B, T]` look like: `obs/<key>` and `reward`."""
        reward, _ = model.predict(latents)
        return {"reward": reward} | {f"obs/{k}": dist.pred() for k, dist in self._decode(model, latents).items()}

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


def behavior_metrics(policy: Mapping[str, Action], **figures: Array) -> Metrics:
    """Means of what was imagined, and how sure the policy is."""
    metrics = {f"imagined/{name}": value.mean() for name, value in figures.items()}
    for name, dist in policy.items():
        metrics[f"policy/entropy/{name}"] = dist.entropy().mean()
        metrics[f"policy/randomness/{name}"] = randomness(dist).mean()
    return stop_gradient(metrics)


def in_parts(
    model: optax.GradientTransformation, actor: optax.GradientTransformation, critic: optax.GradientTransformation
) -> optax.GradientTransformation:
    """An optimizer of its own for the world model, the actor and the critic."""
    return each({"model": model, "actor": actor, "critic": critic}, lambda name: BEHAVIOR.get(name, "model"))


def _belongs(part: Part, path: tuple[Any, ...], new: Array, old: Array) -> Array:
    """`new` for parameters of this part, else `old`."""
    behavior = jax.tree_util.keystr(path[:1], simple=True) in BEHAVIOR
    return new if behavior == (part == "behavior") else old
