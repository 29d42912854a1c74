"""The networks of a Dreamer and all that training changes; what they make of replayed rows, and how well they foretell
them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from reverie.agent import Metrics, Row
from reverie.behavior.returns import ReturnScale
from reverie.model.decode import Decoder
from reverie.model.dynamics import Beliefs, Dynamics, Latent, features, flat_stoch
from reverie.model.encode import Encoder, flat
from reverie.model.heads import FlagHead, LegalHead, PolicyHead, ScalarHead
from reverie.nn.dists import Action


class Model(eqx.Module):
    """All trained networks. Answers the `WorldModel` contract: `imagine` and `predict`."""

    enc: Encoder
    dyn: Dynamics
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

    def decode(self, latent: Latent) -> dict[str, Any]:
        """Distributions of the observations that a latent stands for, by key."""
        return self.dec(latent.deter, flat_stoch(latent.stoch))

    def policy(self, feat: Float[Array, "*B f"], legal: Bool[Array, "*B a"] | None = None) -> dict[str, Action]:
        """The actor's distributions over the `legal` actions; None: over those that the model takes to be legal."""
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


class Posterior(NamedTuple):
    """The latents of the trained rows of a batch, `[B, T, ...]`."""

    rows: Row  # with rewards as they are learned from
    latents: Latent
    alive: Float[Array, "B T"]  # float32, 1 - is_terminal
    feat: Any = ()  # features of the latents

    def starts(self) -> Latent:
        """Every replayed latent as the start of an imagined trajectory, `[B * T, ...]`, without a gradient."""
        return jax.tree.map(lambda x: stop_gradient(x).reshape(-1, *x.shape[2:]), self.latents)


def divergences(model: Model, beliefs: Beliefs) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The KL from posterior to prior twice: with a gradient by the prior alone, and by the posterior alone."""
    kind, (posterior, prior) = model.dyn.kind, beliefs
    return kind.kl(stop_gradient(posterior), prior), kind.kl(posterior, stop_gradient(prior))


def prediction_losses(
    model: Model, post: Posterior, targets: Mapping[str, Array], continue_target: Float[Array, "B T"]
) -> tuple[dict[str, Array], Metrics]:
    """How unlikely the model finds what was seen: observations, rewards, whether the world went on, what was legal.

    Args:
      targets: what the decoder is to say of each observation.
      continue_target: what the continue head is to say, if there is one.

    Returns:
      losses, `[B, T]` each, and metrics.
    """
    feat, rows = post.feat, post.rows
    losses: dict[str, Array] = {}
    for name, dist in model.decode(post.latents).items():
        losses[f"decode/{name}"] = dist.loss(targets[name])
    reward = model.rew(feat)
    losses["reward"] = reward.loss(rows["reward"])
    if model.con is not None:
        losses["continue"] = model.con(feat).loss(continue_target)
    metrics: Metrics = {}
    if model.leg is not None:
        chosen = 1 - rows["is_last"].astype(jnp.float32)  # after an end nothing is
        losses["legal"] = chosen * model.leg.loss(feat, rows["obs/legal"])
        wrong = (model.leg.legal(feat) != rows["obs/legal"]).mean(-1)
        metrics["legal/error"] = (chosen * wrong).sum() / jnp.maximum(chosen.sum(), 1)
    metrics |= {
        "replay/reward": rows["reward"].mean(),
        "reward/variance": rows["reward"].var(),
        "reward/error": jnp.square(stop_gradient(reward.pred()) - rows["reward"]).mean(),
    }
    return losses, metrics


def latent_metrics(model: Model, beliefs: Beliefs, kl: Float[Array, "B T"]) -> Metrics:
    """How much the posterior knows that the prior does not, and how sure each is, in nats."""
    kind = model.dyn.kind
    return {
        "kl": kl.mean(),
        "entropy/prior": kind.entropy(beliefs.prior).mean(),
        "entropy/posterior": kind.entropy(beliefs.posterior).mean(),
    }
