"""What reads the features of a latent: scalars, flags and actions."""

from __future__ import annotations

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.envs.base import Space, Spaces
from reverie.nn.dists import Binary, BoundedNormal, OneHot, TwoHot
from reverie.nn.layers import MLP, Linear
from reverie.nn.transforms import symexp_bins


class ScalarHead(eqx.Module):
    """A reward or a value as a two-hot categorical over exponential bins; starts by predicting exactly 0."""

    mlp: MLP
    out: Linear
    bins: int = eqx.field(static=True)

    def __init__(self, features: int, units: int, layers: int, bins: int = 255, *, key: PRNGKeyArray):
        mlp_key, out_key = jax.random.split(key)
        self.mlp = MLP(features, units, layers, key=mlp_key)
        self.out = Linear(units, bins, key=out_key, scale=0.0)
        self.bins = bins

    def __call__(self, feat: Float[Array, "*B f"]) -> TwoHot:
        return TwoHot(self.out(self.mlp(feat)), symexp_bins(self.bins))


class FlagHead(eqx.Module):
    """A probability."""

    mlp: MLP
    out: Linear

    def __init__(self, features: int, units: int, layers: int, *, key: PRNGKeyArray):
        mlp_key, out_key = jax.random.split(key)
        self.mlp = MLP(features, units, layers, key=mlp_key)
        self.out = Linear(units, 1, key=out_key)

    def __call__(self, feat: Float[Array, "*B f"]) -> Binary:
        return Binary(self.out(self.mlp(feat))[..., 0])


class NormalOut(eqx.Module):
    """Mean and standard deviation of a continuous action."""

    mean: Linear
    std: Linear

    def __init__(self, units: int, outputs: int, *, key: PRNGKeyArray, scale: float):
        mean_key, std_key = jax.random.split(key)
        self.mean = Linear(units, outputs, key=mean_key, scale=scale)
        self.std = Linear(units, outputs, key=std_key, scale=scale)


class PolicyHead(eqx.Module):
    """One distribution per action key: categoricals mixed with `unimix` of uniform, or a bounded normal."""

    mlp: MLP
    outs: dict[str, Linear | NormalOut]
    spaces: tuple[tuple[str, Space], ...] = eqx.field(static=True)
    unimix: float = eqx.field(static=True)

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
    ):
        mlp_key, *keys = jax.random.split(key, 1 + len(spaces))
        self.mlp = MLP(features, units, layers, key=mlp_key)
        self.spaces = tuple(sorted(spaces.items()))
        self.unimix = unimix
        self.outs = {
            name: Linear(units, space.width, key=k, scale=scale)
            if space.kind == "discrete"
            else NormalOut(units, space.width, key=k, scale=scale)
            for (name, space), k in zip(self.spaces, keys, strict=True)
        }

    def __call__(self, feat: Float[Array, "*B f"]) -> dict[str, OneHot | BoundedNormal]:
        x = self.mlp(feat)
        dists: dict[str, OneHot | BoundedNormal] = {}
        for name, space in self.spaces:
            out = self.outs[name]
            if isinstance(out, NormalOut):
                dists[name] = BoundedNormal(out.mean(x), out.std(x), space.shape)
            else:
                dists[name] = OneHot(out(x), space.classes, space.shape, self.unimix)
        return dists


def sample(dists: dict[str, OneHot | BoundedNormal], key: PRNGKeyArray) -> dict[str, Array]:
    keys = jax.random.split(key, len(dists))
    return {name: d.sample(k) for (name, d), k in zip(dists.items(), keys, strict=True)}
