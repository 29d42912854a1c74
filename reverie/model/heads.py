"""Heads that read the features of a latent: scalars, flags and actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from reverie.envs.base import Space, Spaces
from reverie.nn.dists import Action, Binary, BoundedNormal, OneHot, SquaredError, TanhNormal, TruncatedNormal, TwoHot
from reverie.nn.init import Output
from reverie.nn.layers import FINAL, MLP, Linear, Style
from reverie.nn.transforms import SYMLOG, H, even_bins, symexp_bins

Scalars = Literal["symexp_two_hot", "symlog_two_hot", "symlog_squared", "squared", "h_two_hot"]
Continuous = Literal["bounded", "truncated", "tanh"]
NORMALS: dict[Continuous, type[BoundedNormal | TruncatedNormal | TanhNormal]] = {
    "bounded": BoundedNormal,
    "truncated": TruncatedNormal,
    "tanh": TanhNormal,
}


Scalar = TwoHot | SquaredError  # the distribution of a scalar


class ScalarHead(eqx.Module):
    """A reward or a value; starts by predicting exactly 0, unless its output weights have a `scale`.

    `kind`: a two-hot categorical over exponential bins (final version); the same over equal bins of the symlog (2023);
    or the symlog itself, learned by squared error; or the number as it is (V1 and V2). `h_two_hot`: MuZero's, over the
    bins of `h` that lie evenly between minus and plus `limit`.
    """

    mlp: MLP
    out: Linear
    bins: int = eqx.field(static=True)
    kind: Scalars = eqx.field(static=True)
    limit: float = eqx.field(static=True)

    def __init__(
        self,
        features: int,
        units: int,
        layers: int,
        bins: int = 255,
        *,
        key: PRNGKeyArray,
        kind: Scalars = "symexp_two_hot",
        limit: float = 20.0,
        scale: float = 0.0,
        init: Output = "paper",
        style: Style = FINAL,
    ):
        mlp_key, out_key = jax.random.split(key)
        self.limit = limit
        self.bins, self.kind = 1 if kind in ("symlog_squared", "squared") else bins, kind
        self.mlp = MLP(features, units, layers, key=mlp_key, style=style)
        self.out = Linear(units, self.bins, key=out_key, style=style.output(scale, init))

    def __call__(self, feat: Float[Array, "*B f"]) -> Scalar:
        out = self.out(self.mlp(feat))
        if self.bins == 1:
            return SquaredError(out[..., 0], 0, SYMLOG if self.kind == "symlog_squared" else None)
        if self.kind == "symexp_two_hot":
            return TwoHot(out, symexp_bins(self.bins, self.limit))
        return TwoHot(out, even_bins(self.bins, self.limit), H if self.kind == "h_two_hot" else SYMLOG)


class FlagHead(eqx.Module):
    """A probability; with `scale` 0 it starts at a half."""

    mlp: MLP
    out: Linear

    def __init__(
        self, features: int, units: int, layers: int, *, key: PRNGKeyArray, style: Style = FINAL, scale: float = 1.0
    ):
        mlp_key, out_key = jax.random.split(key)
        self.mlp = MLP(features, units, layers, key=mlp_key, style=style)
        self.out = Linear(units, 1, key=out_key, style=style.output(scale))

    def __call__(self, feat: Float[Array, "*B f"]) -> Binary:
        return Binary(self.out(self.mlp(feat))[..., 0])


class LegalHead(eqx.Module):
    """Which classes of a discrete action may be taken: one flag each, the classes of all its elements side by side. At
    first, what it says of all is a half."""

    mlp: MLP
    out: Linear
    classes: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self, space: Space, features: int, units: int, layers: int, *, key: PRNGKeyArray, style: Style = FINAL
    ):
        mlp_key, out_key = jax.random.split(key)
        self.classes = space.classes
        self.mlp = MLP(features, units, layers, key=mlp_key, style=style)
        self.out = Linear(units, space.width, key=out_key, style=style.output(0.0))

    def __call__(self, feat: Float[Array, "*B f"]) -> Binary:
        return Binary(self.out(self.mlp(feat)))

    def loss(self, feat: Float[Array, "*B f"], legal: Bool[Array, "*B width"]) -> Float[Array, "*B"]:
        """Nats that the flags of a state cost."""
        return self(feat).loss(legal.astype("float32")).sum(-1)

    def legal(self, feat: Float[Array, "*B f"]) -> Bool[Array, "*B width"]:
        """The actions that are more likely legal than not, and of every element the likeliest class."""
        parts = jnp.split(self(feat).logit, np.cumsum(self.classes)[:-1], -1)
        return jnp.concatenate([x >= jnp.minimum(x.max(-1, keepdims=True), 0) for x in parts], -1)


def legal_head(
    obs_space: Spaces, act_space: Spaces, features: int, units: int, layers: int, style: Style, key: PRNGKeyArray
) -> LegalHead | None:
    """The head of the legal actions, if the env says which they are."""
    if "legal" not in obs_space:
        return None
    (space,) = act_space.values()
    return LegalHead(space, features, units, layers, key=key, style=style)


class NormalOut(eqx.Module):
    """Mean and standard deviation of a continuous action."""

    mean: Linear
    std: Linear

    def __init__(self, units: int, outputs: int, *, key: PRNGKeyArray, mean: Style, std: Style):
        mean_key, std_key = jax.random.split(key)
        self.mean = Linear(units, outputs, key=mean_key, style=mean)
        self.std = Linear(units, outputs, key=std_key, style=std)


class PolicyHead(eqx.Module):
    """One distribution per action key: categoricals mixed with `unimix` of uniform, or a normal kept within bounds in
    one of the three ways of the three papers."""

    mlp: MLP
    outs: dict[str, Linear | NormalOut]
    spaces: tuple[tuple[str, Space], ...] = eqx.field(static=True)
    unimix: float = eqx.field(static=True)
    continuous: Continuous = eqx.field(static=True)

    def __init__(
        self,
        spaces: Spaces,
        features: int,
        units: int,
        layers: int,
        *,
        key: PRNGKeyArray,
        unimix: float,
        scale: float = 0.01,
        continuous: Continuous = "bounded",
        mean_init: Output = "paper",
        std_init: Output = "paper",
        style: Style = FINAL,
    ):
        mlp_key, *keys = jax.random.split(key, 1 + len(spaces))
        self.mlp = MLP(features, units, layers, key=mlp_key, style=style)
        self.spaces = tuple(sorted(spaces.items()))
        self.unimix, self.continuous = unimix, continuous
        mean, std = style.output(scale, mean_init), style.output(scale, std_init)
        self.outs = {
            name: Linear(units, space.width, key=k, style=mean)
            if space.kind == "discrete"
            else NormalOut(units, space.width, key=k, mean=mean, std=std)
            for (name, space), k in zip(self.spaces, keys, strict=True)
        }

    def __call__(self, feat: Float[Array, "*B f"], legal: Bool[Array, "*B width"] | None = None) -> dict[str, Action]:
        """`legal`: of the one discrete action there is, the classes that may be taken; None: all."""
        x = self.mlp(feat)
        dists: dict[str, Action] = {}
        for name, space in self.spaces:
            out = self.outs[name]
            if isinstance(out, NormalOut):
                dists[name] = NORMALS[self.continuous](out.mean(x), out.std(x), space.shape)
            else:
                dists[name] = OneHot(out(x), space.classes, space.shape, self.unimix, legal)
        return dists


def sample(
    dists: Mapping[str, Action], key: PRNGKeyArray, differentiable: frozenset[str] = frozenset()
) -> dict[str, Array]:
    """One action of each; discrete ones among `differentiable` as codes, which have a gradient (see `OneHot.code`)."""
    keys = dict(zip(dists, jax.random.split(key, len(dists)), strict=True))
    return {
        name: d.code(keys[name]) if isinstance(d, OneHot) and name in differentiable else d.sample(keys[name])
        for name, d in dists.items()
    }
