"""Planning inside a Dreamer, where the actor does not decide alone: by a tree, or by sequences of continuous actions.

`Tree`: the trees of the MuZero family (`behavior/search.py`), grown in the Dreamer's dreams.

    what a search asks     what a Dreamer answers
    imagine                one step of the prior
    predict                predicted reward, and the predicted chance to go on, times gamma
    evaluate               the actor's log-probabilities as prior, the critic's mean as value

A dream is random and a tree is not: when an edge is first taken, the prior is sampled once, and whoever passes there
again finds that one outcome. So a Q-value is the mean over the few dreams that a tree has room for, and a search can
take a lucky dream for a good action. Where the world is hard to foresee, more simulations tell more, at the root above
all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reverie.agent import Mode, Row
from reverie.algos import Unsuitable, check_choice
from reverie.behavior.mppi import mppi
from reverie.behavior.search import SearchResult, gumbel, puct
from reverie.envs.base import Spaces
from reverie.fields import ConfigError, Positive, Weight, Within, check
from reverie.model.dynamics import Latent, features
from reverie.model.encode import flat, unflat, width
from reverie.model.heads import sample
from reverie.nn.dists import OneHot

Rule = Literal["none", "gumbel", "puct", "mppi"]
TREES = ("gumbel", "puct")


@dataclass(frozen=True, kw_only=True)
class Planning:
    """How a Dreamer plans before it acts. Every Dreamer has these values."""

    planner: Rule = "none"
    """Plan in the dream before every action, in training and in evaluation. gumbel, puct: a tree, by the rule of Gumbel
    MuZero or of MuZero, where the actions are one discrete choice. mppi: sequences of continuous actions. none: the
    actor decides alone."""
    simulations: Annotated[int, Within(1, 2**16)] = 16
    """gumbel, puct: imagined steps per decision. mppi: imagined sequences, six times per decision; 64 or more."""
    plan_steps: Annotated[int, Within(1, 2**12)] = 5
    """mppi: steps of a sequence."""
    planner_scale: Positive = 0.1
    """gumbel: how much the values of a search outweigh the actor. Of two actions, the worst and the best of all, the
    log-odds move by this times 50 plus the most visits of an action. The less the values are to be trusted, the
    smaller."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Improvement(Planning):
    """Planning, and an actor that learns from it. Every Dreamer with an actor-critic has these values."""

    improve: Weight = 0.0
    """Weight of a loss that moves the actor to what a search from every replayed state prefers. 0: there is none. It
    costs about as much as imagining --simulations steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.improve and self.planner not in TREES:
            raise ConfigError(
                f"--improve {self.improve} trains the actor towards what a search prefers, and --planner "
                f"{self.planner} does not search: add --planner gumbel, or leave --improve out"
            )


class Place(NamedTuple):
    """A node of the tree: a latent, and what is legal there: at the root as the env says, below it as the model
    predicts. None: everything."""

    latent: Latent
    legal: Bool[Array, "*B a"] | None


class Searchable(eqx.Module):
    """A Dreamer's networks as a `Planner`: actions are the numbers of one discrete choice.

    `networks` has `imagine` and `predict` of the `WorldModel`, and `legal`, `policy` and `val`, which read features.
    """

    networks: Any

    def imagine(self, place: Place, action: Int[Array, " B"], key: PRNGKeyArray) -> Place:
        ((name, space),) = self.networks.actions
        after = self.networks.imagine(place.latent, {name: action.reshape(-1, *space.shape)}, key)
        return Place(after, self.networks.legal(features(after)))

    def predict(self, place: Place) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        return self.networks.predict(place.latent)

    def evaluate(self, place: Place) -> tuple[Float[Array, "*B a"], Float[Array, "*B"]]:
        feat = features(place.latent)
        (policy,) = self.networks.policy(feat, place.legal).values()
        assert isinstance(policy, OneHot)
        return policy.logp[..., 0, :], self.networks.val(feat).pred()


def search(
    config: Planning, networks: Any, latent: Latent, key: PRNGKeyArray, legal: Bool[Array, "B a"] | None, greedy: bool
) -> SearchResult:
    """Plans from `latent`, `[B, ...]`. `greedy`: for evaluation, without noise at the root."""
    model = Searchable(networks)
    if config.planner == "gumbel":
        rule = partial(gumbel, scale=0.0 if greedy else 1.0, value_scale=config.planner_scale)
    else:
        rule = partial(puct, dirichlet_fraction=0.0 if greedy else 0.25, temperature=0.0 if greedy else 1.0)
    return rule(model, Place(latent, legal), key, simulations=config.simulations, legal=legal)


class Tree(NamedTuple):
    """A planner: decides in place of an actor, with a memory between decisions. Searches with `config.planner`;
    remembers nothing."""

    config: Planning
    act_space: Spaces

    def begin(self, batch: int) -> None:
        """The memory of `batch` envs before their first step."""

    def decide(
        self, networks: Any, latent: Latent, memory: None, obs: Row, mode: Mode, key: PRNGKeyArray
    ) -> tuple[dict[str, Array], None]:
        """Actions of N envs after what they show now, and the memory for the next step."""
        found = search(self.config, networks, latent, key, obs.get("obs/legal"), greedy=mode != "train")
        action = found.action
        if mode == "sample":
            action = jax.random.categorical(jax.random.fold_in(key, 1), jnp.log(found.policy)).astype(jnp.int32)
        ((name, space),) = self.act_space.items()
        return {name: action.reshape(-1, *space.shape)}, None


class Sequences(NamedTuple):
    """A planner like `Tree`. Plans with MPPI (`behavior/mppi.py`); remembers the rest of its plan, `[N, H, A]`."""

    config: Planning
    act_space: Spaces

    def begin(self, batch: int) -> Array:
        return jnp.zeros((batch, self.config.plan_steps, width(self.act_space)), jnp.float32)

    def decide(
        self, networks: Any, latent: Latent, memory: Array, obs: Row, mode: Mode, key: PRNGKeyArray
    ) -> tuple[dict[str, Array], Array]:
        flatten = lambda action: flat(self.act_space, action)
        plan_key, act_key = jax.random.split(key)
        plan = mppi(
            networks.dyn.imagine,
            networks.predict,
            lambda latent, key: flatten(sample(networks.policy(features(latent)), key)),
            lambda latent: networks.val(features(latent)).pred(),
            latent,
            jnp.where(obs["is_first"][:, None, None], 0.0, memory),
            plan_key,
            samples=self.config.simulations,
        )
        action = plan.mean[:, 0]
        if mode != "eval":
            action = action + plan.std[:, 0] * jax.random.normal(act_key, action.shape)
        return unflat(self.act_space, jnp.clip(action, -1, 1)), plan.moved_on()


Planner = Tree | Sequences


def make_planner(config: Planning, act_space: Spaces) -> Planner | None:
    """The planner; None: the actor decides.

    Raises:
      Unsuitable: the actions are not what the planner can choose from.
    """
    if config.planner == "none":
        return None
    if config.planner in TREES:
        instead = "--planner none leaves the decision to the actor; --planner mppi plans continuous actions"
        check_choice(act_space, instead)
        return Tree(config, act_space)
    if discrete := [name for name, space in act_space.items() if space.kind != "vector"]:
        raise Unsuitable(
            f"--planner mppi plans continuous actions, and {', '.join(discrete)} is discrete: type --planner gumbel"
        )
    return Sequences(config, act_space)
