"""The Dreamers' agent: acts on what it has observed, and learns a model and then a behaviour from every batch.

Each paper is a file beside this one (`v1.py`, `v2.py`, `v3.py`): its values, its networks, its loss. Those files fill
in what is marked here as theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.agent import Metrics, Part, Row, select
from reverie.algos import Unsuitable
from reverie.algos.dreamer import planning
from reverie.algos.dreamer import report as reports
from reverie.algos.dreamer.acting import Acting
from reverie.algos.dreamer.world import Model, Posterior, State
from reverie.behavior.imagine import Trajectory, rollout, trajectory
from reverie.behavior.returns import ReturnScale
from reverie.envs.base import Spaces
from reverie.health import Symptom, constant_reward, kl_at_floor, policy_certain, policy_random
from reverie.model.canvas import Size, resized
from reverie.model.dynamics import Beliefs, Latent, features
from reverie.model.encode import flat
from reverie.model.heads import ScalarHead, sample
from reverie.nn.dists import Action, OneHot, randomness
from reverie.nn.optim import each, finite, guarded

WorldLoss = tuple[dict[str, Array], Posterior, Metrics]
BehaviorLoss = tuple[dict[str, Array], ReturnScale, Metrics]
BEHAVIOR = {"pol": "actor", "val": "critic"}  # the networks that do not belong to the world model


class Dreamer(Acting):
    """The `Agent`. Holds only constants; everything that changes is in `State` and `Carry`.

    Args:
      config: the paper's values, with `Planning`, `imagination`, `gamma` and `lam` among them.
      precision: compute dtype, `float32` or `bfloat16`.
      canvas: height and width at which the networks see images.
      scales: the weight of every loss, but for those that depend on the env or on a planner.

    Raises:
      Unsuitable: a game of two players, or actions that the planner cannot choose from.
    """

    optimizer: optax.GradientTransformation  # of all parameters; a paper's constructor makes it
    differentiable: frozenset[str] = frozenset()  # the actions whose samples carry the gradient of the return
    rows = trained = 0
    minibatches: int = 1
    enumerated = True  # a number means the same action at every node of a tree
    parts: tuple[Part, ...] = get_args(Part)

    def __init__(
        self,
        config: Any,
        obs_space: Spaces,
        act_space: Spaces,
        precision: str,
        canvas: Size,
        scales: Mapping[str, float],
    ):
        if any(space.kind == "player" for space in obs_space.values()):
            raise Unsuitable(
                "this is a game of two players, and a Dreamer plays alone: it would count what its opponent wins as "
                "its own. Type `reverie list` for an algorithm that searches, or choose an env of one player (pgx:2048)"
            )
        self.config, self.dtype = config, jnp.dtype(precision)
        self.obs_space, self.act_space = obs_space, act_space
        self.resized: Mapping[str, Size] = resized(obs_space, canvas)
        self.out_space: Mapping[str, jax.ShapeDtypeStruct] = {}
        self.added: tuple[str, ...] = ("leg",) if "legal" in obs_space else ()
        self.symptoms: tuple[Symptom, ...] = (
            kl_at_floor(config.free_nats),
            constant_reward(),
            *(of(name) for name in sorted(act_space) for of in (policy_certain, policy_random)),
        )
        self.scales = dict(scales)
        if "legal" in obs_space:
            self.scales["legal"] = 1.0
        if isinstance(config, planning.Improvement) and config.improve:
            self.scales["improve"] = config.improve
        self.planner = planning.make_planner(config, act_space)

    # ------------------------------------------------------- what a paper fills in

    def networks(self, key: PRNGKeyArray) -> Model:
        """The networks of the paper."""
        raise NotImplementedError

    def world_loss(self, model: Model, batch: Row, key: PRNGKeyArray) -> WorldLoss:
        """Losses of the world model, what it made of the batch, and metrics."""
        raise NotImplementedError

    def behavior_loss(self, model: Model, state: State, post: Posterior, key: PRNGKeyArray) -> BehaviorLoss:
        """Losses of actor and critic, the moved scale of returns, and metrics; `model` in place of that of `state`."""
        raise NotImplementedError

    def target_critic(self, model: Model, slow: ScalarHead | None, updates: Array) -> ScalarHead | None:
        """The critic that gives the targets, after an update; `updates` were made before it. None: there is none."""
        return None

    def transform_reward(self, reward: Float[Array, "*B"]) -> Float[Array, "*B"]:
        """Rewards as they are learned from."""
        return reward

    refreshes = False  # whether training writes the latents that it computes back to replay

    # ---------------------------------------------------------------- acting

    def refresh(self, latents: Latent) -> Row:
        """The latents that training writes back to replay."""
        return self.to_replay(latents) if self.refreshes else {}

    def init(self, key: PRNGKeyArray) -> State:
        model_key, key = jax.random.split(key)
        model = self.networks(model_key)
        return State(
            model=model,
            slow=self.target_critic(model, None, jnp.zeros((), jnp.int32)),
            returns=ReturnScale(),
            optimizer=self.optimizer.init(model),
            key=key,
            updates=jnp.zeros((), jnp.int32),
            nonfinite=jnp.zeros(2, jnp.int32),
        )

    def parameters(self, state: State) -> dict[str, int]:
        parts = {name: getattr(state.model, name) for name in ("enc", "dyn", "dec", "rew", "con", "leg", "pol", "val")}
        return {n: sum(x.size for x in jax.tree.leaves(part)) for n, part in parts.items() if part is not None}

    # -------------------------------------------------------------- learning

    def train(self, state: State, batch: Row, part: Part = "all") -> tuple[State, Row, Metrics]:
        key = jax.random.fold_in(state.key, state.updates)
        grad = jax.value_and_grad(self.loss, has_aux=True)
        (loss, (out, returns, metrics)), grads = grad(state.model, state, batch, key, part)
        norm = optax.tree.norm(grads)
        changes, optimizer = self.optimizer.update(grads, state.optimizer, state.model)
        model = optax.apply_updates(state.model, changes)
        if part != "all":  # nothing else moves, not even by its own momentum
            belongs = lambda path: (jax.tree_util.keystr(path[:1], simple=True) in BEHAVIOR) == (part == "behavior")
            choose = lambda path, new, old: new if belongs(path) else old
            model = jax.tree_util.tree_map_with_path(choose, model, state.model)
        slow = self.target_critic(model, state.slow, state.updates)
        new = State(model, slow, returns, optimizer, state.key, state.updates + 1, state.nonfinite)

        metrics |= {"loss/total": loss, "gradient/norm": norm}
        return self.accept_finite(finite((loss, norm)), state, batch, new, out, metrics)

    def accept_finite(
        self, sound: Array, state: State, batch: Row, new: State, out: Row, metrics: Metrics
    ) -> tuple[State, Row, Metrics]:
        """The result of `train`: `new`, `out` and `metrics`, or the values of before where not all is finite."""
        sound &= finite(new.returns)
        state, out, counts = guarded(sound, state, new, out, {k: batch[k][:, self.context :] for k in out})
        return state, out, metrics | counts

    def renew(self, state: State) -> State:
        return eqx.tree_at(lambda s: s.optimizer, state, self.optimizer.init(state.model))

    def loss(
        self, model: Model, state: State, batch: Row, key: PRNGKeyArray, part: Part = "all"
    ) -> tuple[Float[Array, ""], tuple[Row, ReturnScale, Metrics]]:
        """The whole objective of one batch, or that of one part, with `model` in place of that of `state`.

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
        returns = state.returns
        losses, post, metrics = self.world_loss(model, batch, observe_key)  # what was, from what was seen
        if part == "behavior":
            losses, post, metrics = {}, stop_gradient(post), {}
        if part != "model":  # what could be, from every replayed state
            behavior, returns, more = self.behavior_loss(model, state, post, imagine_key)
            losses, metrics = losses | behavior, metrics | more
            if "improve" in self.scales:
                losses["improve"], more = self.search_loss(model, post, jax.random.fold_in(imagine_key, 1))
                metrics |= more
        loss, parts = self.weigh(losses)
        return loss, (self.refresh(post.latents), returns, metrics | parts)

    def weigh(self, losses: Mapping[str, Array]) -> tuple[Float[Array, ""], Metrics]:
        """The sum of the means of all losses, each with its scale; and the means as metrics."""
        assert losses.keys() <= self.scales.keys(), (sorted(losses), sorted(self.scales))
        means = {k: v.mean() for k, v in losses.items()}
        loss = jnp.sum(jnp.stack([self.scales[k] * v for k, v in means.items()]))
        return loss, {f"loss/{k}": v for k, v in means.items()}

    def observe(self, model: Model, batch: Row, key: PRNGKeyArray) -> tuple[Posterior, Beliefs]:
        """The posterior of a batch behind its context, and stoch's distributions before and after each observation."""
        actions = flat(self.act_space, select(batch, "action/"))
        rows = {k: v[:, self.context :] for k, v in batch.items()}
        resets = rows["is_first"]
        if self.context:
            stored = {k: v[:, 0] for k, v in select(batch, "out/").items()}
            start = model.dyn.from_replay(stored, len(resets), self.dtype)
            previous = actions[:, :-1]
        else:
            # Nothing is known of what came before: every sequence starts like an episode.
            start = model.dyn.zeros((resets.shape[0],), self.dtype)
            previous = jnp.concatenate([jnp.zeros_like(actions[:, :1]), actions[:, :-1]], 1)
            resets = resets.at[:, 0].set(True)
        rows["reward"] = self.transform_reward(rows["reward"])
        tokens = model.enc(select(rows, "obs/"), self.dtype)
        latents, posterior = model.dyn.observe(start, tokens, previous, resets, key)
        post = Posterior(rows, latents, 1 - rows["is_terminal"].astype(jnp.float32), features(latents))
        return post, Beliefs(posterior, model.dyn.prior(latents))

    def decode_targets(self, rows: Row) -> dict[str, Array]:
        """The decoder's targets: images in [0, 1], planes as floats, everything else as it is."""
        scaled = {"image": lambda x: x.astype(jnp.float32) / 255, "planes": lambda x: x.astype(jnp.float32)}
        return {k: scaled.get(s.kind, lambda x: x)(rows[f"obs/{k}"]) for k, s in self.obs_space.items()}

    def imagine(
        self, model: Model, critic: ScalarHead, post: Posterior, first: Array | None, key: PRNGKeyArray
    ) -> Trajectory:
        """The policy's trajectory in the dream from every replayed state. Actions among `differentiable` carry the
        gradient of what comes of them, through networks that it does not change (DreamerV1, section 3)."""
        config, frozen = self.config, stop_gradient(model)
        actor = model if self.differentiable else frozen

        def act(latent: Latent, key: PRNGKeyArray) -> dict[str, Array]:
            return sample(actor.policy(stop_gradient(features(latent))), key, self.differentiable)

        latent, action = rollout(frozen, act, post.starts(), config.imagination, key)
        feat = features(latent)
        reward, discount, value = frozen.rew(feat).pred(), frozen.discount(feat), stop_gradient(critic)(feat).pred()
        return trajectory(latent, action, reward, discount, value, lam=config.lam, first=first)

    def search_loss(self, model: Model, post: Posterior, key: PRNGKeyArray) -> tuple[Float[Array, "B T"], Metrics]:
        """Distance of the actor to what a search from every replayed state prefers (cross-entropy), and metrics.

        Searched now, not when the step was taken: a step is replayed hundreds of times, and what a search found then
        would be the preference of a model that no longer exists. So nothing is stored, steps that no search took are
        learned from as well, and so are those of a replay that is trained on without any env.
        """
        starts, legal = post.starts(), post.rows.get("obs/legal")
        legal = None if legal is None else legal.reshape(-1, legal.shape[-1])
        found = planning.search(self.config, stop_gradient(model), starts, key, legal, greedy=False)
        (policy,) = model.policy(features(starts), legal).values()
        assert isinstance(policy, OneHot)
        target, logp = stop_gradient(found.policy), policy.logp[..., 0, :]
        distance = -(target * logp).sum(-1)
        surplus = stop_gradient(distance) - jax.scipy.special.entr(target).sum(-1)
        alive = post.alive.ravel()  # after the end of the world nothing is decided
        metrics = {"improve/kl": (alive * surplus).sum() / jnp.maximum(alive.sum(), 1)}
        return (alive * distance).reshape(post.alive.shape), metrics

    # ------------------------------------------------------------- reporting

    report = reports.report
    dream = reports.dream
    drive = reports.drive


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
