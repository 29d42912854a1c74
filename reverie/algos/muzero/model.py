"""MuZero's networks - representation, dynamics, and the heads that planning reads - and all that training changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reverie.algos import Unsuitable
from reverie.algos.muzero.values import Values
from reverie.envs.base import UNSEEN, Space, Spaces
from reverie.model.canvas import halvings, images
from reverie.model.encode import Coding, boards, planar, width
from reverie.model.heads import FlagHead, LegalHead, PolicyHead, Scalar, ScalarHead, legal_head
from reverie.model.unroll import Hidden, Towers, Vectors
from reverie.nn.dists import OneHot
from reverie.nn.layers import FINAL, Conv

Body = Vectors | Towers
Legal = Bool[Array, "B a"] | None  # the actions that may be taken at every root; None: all


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
        self.classes = width(act_space)
        turns = irregular(obs_space)
        self.gamma = -config.discount if "player" in obs_space and not turns else config.discount
        self.body = make_body(config, seen_space(obs_space, config.stack), moves or self.classes, keys[0])
        scalar: dict[str, Any] = config.scalar()
        read, units = self.body.outputs, config.units
        self.rew = ScalarHead(read, units, config.layers, **scalar, key=keys[1])
        self.val = ScalarHead(read, units, config.layers, **scalar, key=keys[2])
        self.pol = PolicyHead(act_space, read, units, config.layers, unimix=0.0, key=keys[3])
        planes = sum(s.shape[2] for s in boards(obs_space).values())
        self.dec = Conv(config.channels, planes, 1, key=decode_key) if config.chosen().decode_scale else None
        # Until it has learned something it says that the turn goes over.
        self.turn = FlagHead(read, units, config.layers, key=turn_key, scale=0.0) if turns else None
        self.leg = None
        if config.behavior == "actor-critic":
            legal_key = jax.random.fold_in(key, 6)
            self.leg = legal_head(obs_space, act_space, read, units, config.layers, FINAL, legal_key)

    def represent(self, obs: Mapping[str, Array]) -> Hidden:
        """The state of an observation, as `observed` gives it."""
        state = self.body.represent(obs, jnp.dtype(self.dtype))
        batch = state.shape[: state.ndim - self.body.axes]
        return Hidden(state, jnp.zeros(batch, jnp.float32))

    def advance(self, hidden: Hidden, action: Int[Array, "*B"]) -> Hidden:
        """One step of the dynamics."""
        after = self.body.advance(hidden.state, jax.nn.one_hot(action, self.classes))
        return hidden._replace(state=after, reward=self.rew(self.body.read(after)).pred())

    def reward_of(self, hidden: Hidden) -> Scalar:
        """The reward of the step that led to `hidden`, as a distribution."""
        return self.rew(self.body.read(hidden.state))

    def value(self, hidden: Hidden) -> Scalar:
        """The value of a state to the player to move, as a distribution."""
        return self.val(self.body.read(hidden.state))

    def imagine(self, latent: Hidden, action: Int[Array, "*B"], key: PRNGKeyArray) -> Hidden:
        return self.advance(latent, action)

    def predict(self, latent: Hidden) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        return latent.reward, self.discount(latent)

    def discount(self, latent: Hidden) -> Float[Array, "*B"]:
        """Discount of the step that led to `latent`: negative if the other player moves there. The sign is never in
        between, however unsure the head is: a value half one's own and half the other's is nobody's."""
        if self.turn is None:
            return jnp.full_like(latent.reward, self.gamma)
        player_changes = self.turn(self.body.read(latent.state)).logit >= 0
        return jnp.where(player_changes, -self.gamma, self.gamma)

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


class State(eqx.Module):
    """Everything training changes."""

    model: Model
    target: Model  # a copy, some updates old
    optimizer: Any
    key: PRNGKeyArray
    updates: Array  # int32, applied updates
    nonfinite: Array  # int32 [2]: updates skipped in all, and in a row


def make_body(config: Values, seen: Spaces, actions: int, key: PRNGKeyArray) -> Body:
    choices = config.chosen()
    if towering(config, seen):
        sizes = {"blocks": config.blocks, "channels": config.channels, "read_channels": choices.read_channels}
        return Towers(seen, actions, **sizes, scaling=choices.scaling, key=key)
    depths = tuple(8 << min(stage, 2) for stage in range(halvings(seen)))
    coding = Coding(config.units, config.layers, depths, kernel=3)
    return Vectors(seen, actions, config.hidden, coding, scaling=choices.scaling, key=key)


def towering(config: Values, seen: Spaces) -> bool:
    """Whether states are planes."""
    return config.network == "tower" or (config.network == "auto" and bool(boards(seen)))


def check_boards(config: Values, obs_space: Spaces) -> None:
    """Raises Unsuitable unless there is something for a tower to stand on, and boards can be read off it if they are to
    be."""
    scale = config.chosen().decode_scale
    seen = {key: space.describe() for key, space in obs_space.items()}
    if scale and (config.network == "mlp" or not boards(obs_space) or images(obs_space)):
        raise Unsuitable(
            f"decode_scale {scale:g} among --choices reads boards off the planes of a tower, and here the network is "
            f"{config.network} and the env shows {seen}: leave it out"
        )
    if config.network == "tower" and not planar(obs_space):
        raise Unsuitable(f"--network tower needs an image or a board, and the env shows {seen}: type --network mlp")


def seen_space(obs_space: Spaces, stack: int) -> Spaces:
    """The spaces of the networks' input: no rules of the game, and pictures or boards as a stack of frames."""
    pictures = planar(obs_space)
    return {
        k: Space(s.kind, (*s.shape[:2], s.shape[2] * stack)) if k in pictures else s
        for k, s in obs_space.items()
        if s.kind not in UNSEEN
    }


def irregular(obs_space: Spaces) -> bool:
    """Whether two players take part of whom one may move several times in a row, for all that is known."""
    return "player" in obs_space and not obs_space["player"].alternating
