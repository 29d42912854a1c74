"""Sampled MuZero (Hubert et al., ICML 2021; arXiv 2104.06303): planning where actions cannot be enumerated.

What differs from MuZero: every node holds K actions drawn from a proposal, and the search is over these. Its prior
makes up for how they were drawn, `(beta_hat / beta) pi`: uniform if the proposal is the policy itself. What is learned
is the likelihood of the K actions, weighted by the search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reverie.agent import Row, select
from reverie.algos.muzero import model, muzero
from reverie.algos.muzero.model import Legal
from reverie.algos.muzero.values import Puct
from reverie.behavior.actor_critic import log_probability
from reverie.behavior.returns import Window
from reverie.envs.base import Space, Spaces
from reverie.fields import Positive, Share, Weight, Within
from reverie.model.encode import flat, unflat, width
from reverie.model.heads import Scalar, sample
from reverie.model.unroll import Hidden
from reverie.nn.dists import BoundedNormal, OneHot


@dataclass(frozen=True, kw_only=True)
class Config(Puct):
    """The values of the algorithm."""

    candidates: Annotated[int, Within(2, 2**16)] = 16
    """K: actions drawn at every node."""
    broad: Share = 0.25
    """Share of the candidates that is drawn from a broader policy (see `spread`); the prior makes up for it."""
    spread: Positive = 3.0
    """The broader policy has a standard deviation (discrete: a temperature) so many times as large."""
    search: Literal["gumbel", "puct"] = "gumbel"
    """PUCT as in the paper, or Gumbel's improved policy."""
    simulations: Annotated[int, Within(1, 2**16)] = 32  # MuZero's, with another default
    entropy_scale: Weight = 1e-3
    """Weight of the policy's entropy."""


Policy = dict[str, OneHot | BoundedNormal]


class Model(model.Model):
    """MuZero's, whose latents hold the candidates of the next step: `memory` is float32 `[*B, K, a]`, flat actions
    as they were drawn (what lies beyond [-1, 1] acts like its end), and the logarithm of their prior `[*B, K]`."""

    actions: tuple[tuple[str, Any], ...] = eqx.field(static=True)
    candidates: int = eqx.field(static=True)
    broad: float = eqx.field(static=True)
    spread: float = eqx.field(static=True)

    def __init__(self, config: Any, obs_space: Spaces, act_space: Spaces, dtype: str, key: PRNGKeyArray):
        super().__init__(config, obs_space, act_space, dtype, key)
        self.actions = tuple(sorted(act_space.items()))
        self.candidates, self.broad, self.spread = config.candidates, config.broad, config.spread

    def imagine(self, latent: Hidden, action: Int[Array, "*B"], key: PRNGKeyArray) -> Hidden:
        """The step that candidate number `action` leads to, with candidates of its own."""
        taken = jnp.take_along_axis(latent.memory[0], action[..., None, None], -2)[..., 0, :]
        return self.propose(self.advance(latent, taken), key)

    def advance(self, hidden: Hidden, action: Float[Array, "*B a"]) -> Hidden:
        """One step of the dynamics, by an action that is given in full."""
        after = self.body.advance(hidden.state, jnp.clip(action, -1, 1))  # the env clips, too
        return hidden._replace(state=after, reward=self.rew(self.body.read(after)).pred())

    def propose(self, hidden: Hidden, key: PRNGKeyArray, legal: Bool[Array, "*B a"] | None = None) -> Hidden:
        """`hidden` with candidates drawn from a mixture of the policy, among what is legal, and a broader one."""
        policy, _ = self.judge_all(hidden, legal)
        wide = {name: dist.broader(self.spread) for name, dist in policy.items()}
        count = round(self.broad * self.candidates)
        spaces, drawn = dict(self.actions), []
        for i in range(self.candidates):
            source = wide if i < count else policy
            drawn.append(flat(spaces, sample(source, jax.random.fold_in(key, i))))
        codes = jnp.stack(drawn, -2)
        own = self.logp(policy, codes)
        share = count / self.candidates
        mixture = jnp.logaddexp(own + jnp.log1p(-share), self.logp(wide, codes) + jnp.log(share)) if count else own
        return hidden._replace(memory=(codes, own - mixture))

    def logp(self, policy: Policy, codes: Float[Array, "*B k a"]) -> Float[Array, "*B k"]:
        """Log-probability (density) of flat actions."""
        moved = jnp.moveaxis(codes, -2, 0)  # distributions broadcast over leading axes
        parts = jax.vmap(lambda code: log_probability(policy, unflat(dict(self.actions), code)))(moved)
        return jnp.moveaxis(parts, 0, -1)

    def evaluate(self, latent: Hidden) -> tuple[Float[Array, "*B k"], Float[Array, "*B"]]:
        return latent.memory[1], self.judge_all(latent)[1].pred()

    def judge_all(self, latent: Hidden, legal: Bool[Array, "*B a"] | None = None) -> tuple[Policy, Scalar]:
        """Policy, one distribution per action key, and value."""
        feat = self.body.read(latent.state)
        return cast("Policy", self.pol(feat, legal)), self.val(feat)


class SampledMuZero(muzero.MuZero):
    networks = Model
    enumerated = False

    @property
    def choices(self) -> int:
        return int(self.config.candidates)

    def stored(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"candidates": jax.ShapeDtypeStruct((self.choices, width(self.act_space)), jnp.float32)}

    def root_of(self, model: Any, seen: Mapping[str, Array], key: PRNGKeyArray, legal: Legal) -> tuple[Hidden, Legal]:
        return model.propose(model.represent(seen), key, legal), None  # candidates are drawn among what is legal

    def even_root(self, root: Hidden, key: PRNGKeyArray, legal: Legal) -> Hidden:
        _, prior = root.memory
        even = {
            name: even_actions(space, jax.random.fold_in(key, i), prior.shape, legal)
            for i, (name, space) in enumerate(sorted(self.act_space.items()))
        }
        return root._replace(memory=(flat(self.act_space, even), prior))

    def to_env_action(self, root: Hidden, chosen: Int[Array, " N"]) -> dict[str, Array]:
        taken = jnp.take_along_axis(root.memory[0], chosen[:, None, None], 1)[:, 0]
        return unflat(self.act_space, jnp.clip(taken, -1, 1))

    def fresh(self, root: Hidden, policy: Float[Array, "B k"], value: Float[Array, " B"]) -> Row:
        return super().fresh(root, policy, value) | {"candidates": root.memory[0]}

    def taken(self, rows: Row) -> Array:
        return flat(self.act_space, select(rows, "action/"))

    def other(self, actions: Float[Array, "B a"]) -> Float[Array, "B a"]:
        return jnp.roll(actions, 1, 0)  # what was done in another sequence

    def losses(self, model: Any, states: Hidden, window: Window, batch: Row) -> muzero.Losses:
        losses = super().losses(model, states, window, batch)
        legal = self.along(batch["obs/legal"]) if "obs/legal" in batch else None
        policy, _ = model.judge_all(states, legal)
        entropy = sum(dist.entropy() for dist in policy.values())
        losses["entropy"] = (self.config.entropy_scale, -window.real.astype(jnp.float32) * entropy)
        return losses

    def likelihood(self, model: Any, states: Hidden, batch: Row) -> Float[Array, "B k"]:
        policy, _ = model.judge_all(states)
        logp = model.logp(policy, self.along(batch["out/candidates"]))
        return (self.along(batch["out/policy"]) * logp).sum(-1)


def even_actions(
    space: Space, key: PRNGKeyArray, batch: tuple[int, ...], legal: Bool[Array, "B a"] | None = None
) -> Array:
    """Uniform draws, `[*batch, *shape]`, of a discrete action among what is legal."""
    if legal is not None:
        legal = jnp.broadcast_to(legal[:, None], (*batch, space.width))
        return OneHot(jnp.zeros(legal.shape), space.classes, space.shape, legal=legal).sample(key)
    if space.kind == "vector":
        return jax.random.uniform(key, (*batch, *space.shape), minval=-1, maxval=1)
    classes = jnp.array(space.classes, jnp.int32).reshape(*[1] * len(batch), *space.shape)
    return jax.random.randint(key, (*batch, *space.shape), 0, jnp.broadcast_to(classes, (*batch, *space.shape)))


make_agent = SampledMuZero
