"""Search inside a Dreamer: the trees of the MuZero family (`behavior/search.py`), grown in the dreams of an RSSM.

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
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reverie.algos import Unsuitable
from reverie.behavior.search import Found, gumbel, puct
from reverie.envs.base import Spaces
from reverie.fields import ConfigError, Positive, Weight, Within, check
from reverie.model.rssm import Latent, features
from reverie.nn.dists import OneHot

Rule = Literal["none", "gumbel", "puct"]


@dataclass(frozen=True, kw_only=True)
class Planning:
    """How a Dreamer looks ahead before it acts. Every Dreamer has these values."""

    planner: Rule = "none"
    """Search in the dream before every action, in training and in evaluation, by the rule of Gumbel MuZero or of
    MuZero; none: the actor decides alone. Needs actions that are one discrete choice."""
    simulations: Annotated[int, Within(1, 2**16)] = 16
    """Of each search: imagined steps per decision."""
    planner_scale: Positive = 0.1
    """gumbel: how much the values of a search outweigh the actor. Of two actions, the worst and the best of all, the
    log-odds move by this times 50 plus the most visits of an action. The less the values are to be trusted, the
    smaller."""
    improve: Weight = 0.0
    """Weight of a loss that moves the actor to what a search from every replayed state prefers. 0: there is none. It
    costs about as much as imagining --simulations steps."""

    def __post_init__(self) -> None:
        check(self)
        if self.improve and self.planner == "none":
            raise ConfigError(
                f"--improve {self.improve} trains the actor towards what a search prefers, and --planner none does "
                "not search: add --planner gumbel, or leave --improve out"
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
        after: Latent = self.networks.imagine(place.latent, {name: action.reshape(-1, *space.shape)}, key)
        return Place(after, self.networks.legal(features(after)))

    def predict(self, place: Place) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        reward, discount = self.networks.predict(place.latent)
        return reward, discount

    def evaluate(self, place: Place) -> tuple[Float[Array, "*B a"], Float[Array, "*B"]]:
        feat = features(place.latent)
        (policy,) = self.networks.policy(feat, place.legal).values()
        assert isinstance(policy, OneHot)
        return policy.logp[..., 0, :], self.networks.val(feat).pred()


def search(
    config: Planning,
    networks: Any,
    latent: Latent,
    key: PRNGKeyArray,
    legal: Bool[Array, "B a"] | None,
    greedy: bool,
) -> Found:
    """Plans from `latent`, `[B, ...]`. `greedy`: for evaluation, without noise at the root."""
    model = Searchable(networks)
    if config.planner == "gumbel":
        rule = partial(gumbel, scale=0.0 if greedy else 1.0, value_scale=config.planner_scale)
    else:
        rule = partial(puct, dirichlet_fraction=0.0 if greedy else 0.25, temperature=0.0 if greedy else 1.0)
    return rule(model, Place(latent, legal), key, simulations=config.simulations, legal=legal)


def check_choice(act_space: Spaces, instead: str) -> None:
    """Raises Unsuitable, with the advice `instead`, unless the actions are one discrete choice."""
    if len(act_space) != 1 or any(s.kind != "discrete" or len(s.classes) != 1 for s in act_space.values()):
        kinds = {k: s.describe() for k, s in act_space.items()}
        raise Unsuitable(
            f"this search tries every action, so there must be one discrete one; the env has {kinds}. {instead}"
        )
