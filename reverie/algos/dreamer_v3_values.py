"""The values of DreamerV3: every decision as a field, the sizes, and the published variants by name.

A variant is a set of values and nothing else: the algorithm asks for values, never for a name. What the answers mean,
and what they cost, is in `docs/choices.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from reverie.algos.planning import Planning
from reverie.behavior.explore import Exploration
from reverie.fields import ConfigError, Count, Layers, Number, Positive, Share, Weight, Within
from reverie.nn.init import Weights


@dataclass(frozen=True)
class Size:
    """Widths and depths of one named size."""

    deter: int
    units: int
    classes: int
    depth: int
    predictors: int = 1
    """Layers of the reward and continue heads."""
    behavior: int = 3
    """Layers of actor and critic."""


SIZES = {
    "200k": Size(deter=256, units=32, classes=4, depth=2),  # ours, for laptops and tests
    # The final version: only widths change (reference `configs.yaml`).
    "1m": Size(deter=512, units=64, classes=4, depth=4),
    "12m": Size(deter=2048, units=256, classes=16, depth=16),
    "25m": Size(deter=3072, units=384, classes=24, depth=24),
    "50m": Size(deter=4096, units=512, classes=32, depth=32),
    "100m": Size(deter=6144, units=768, classes=48, depth=48),
    "200m": Size(deter=8192, units=1024, classes=64, depth=64),
    "400m": Size(deter=12288, units=1536, classes=96, depth=96),
    # 2023 (arXiv v1, table B.1): heads, actor and critic grow deeper together.
    "XS": Size(deter=256, units=256, classes=32, depth=24, predictors=1, behavior=1),
    "S": Size(deter=512, units=512, classes=32, depth=32, predictors=2, behavior=2),
    "M": Size(deter=1024, units=640, classes=32, depth=48, predictors=3, behavior=3),
    "L": Size(deter=2048, units=768, classes=32, depth=64, predictors=4, behavior=4),
    "XL": Size(deter=4096, units=1024, classes=32, depth=96, predictors=5, behavior=5),
}
SIZE_NAMES = Literal["200k", "1m", "12m", "25m", "50m", "100m", "200m", "400m", "XS", "S", "M", "L", "XL"]


@dataclass(frozen=True)
class Config(Planning, Exploration, Weights):
    """The values of the final paper, but for the size. Every one is a flag."""

    # Networks
    size: SIZE_NAMES = "1m"
    """Width of all networks, named after the number of parameters; XS to XL are those of 2023."""
    recurrence: Literal["block", "dense"] = "block"
    """A GRU of eight blocks, or a dense one whose gates are normalised."""
    first_state: Literal["zeros", "learned"] = "zeros"
    """What an episode starts from."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm, or LayerNorm behind layers without bias."""
    fan: Literal["in", "average"] = "in"
    """Variance of initial weights: one over the inputs of a unit, or over the mean of its inputs and outputs."""
    convolutions: Literal["pool", "stride"] = "pool"
    """Stages of the image networks: max-pooling and nearest upsampling, four of them; or strided and transposed
    convolutions, until the image is 4x4."""
    kernel: Annotated[int, Within(1, 64)] = 5
    """Side of the convolutions' kernels. With strides, the code of 2023 has 4, its paper 3."""
    pixels: Literal["sigmoid", "shift"] = "sigmoid"
    """What makes brightness of the image decoder's output: a sigmoid, or adding a half."""
    prior_layers: Layers = 2
    """Hidden layers of the prior."""
    vector_layers: Annotated[int, Within(0, 1000)] = 3
    """Layers that read and write vectors and discrete values. 0: as many as the size gives the reward head."""
    vector_units: Annotated[int, Within(0, 2**16)] = 0
    """Width of these layers. 0: that of the size."""
    policy_scale: Weight = 0.01
    """Scale of the policy's initial output weights."""

    # What is learned from, and how far from right it is
    images: Literal["normalised", "symlogged"] = "normalised"
    """Brightness as it is, or its symlog; both scaled to [0, 1]."""
    image_loss: Literal["squared", "gaussian"] = "squared"
    """Squared error, or the likelihood of a Gaussian with the most likely variance."""
    vectors: Literal["symlogged", "plain"] = "symlogged"
    """Float vectors squashed before they are read and predicted, or not."""
    scalars: Literal["symexp_two_hot", "symlog_two_hot", "symlog_squared"] = "symexp_two_hot"
    """Reward and value: a two-hot code over exponential bins, the same over equal bins of the symlog, or squared
    error of the symlog."""
    kl: Literal["summed", "averaged"] = "summed"
    """KL over the categorical variables, before free nats are granted."""
    free_nats: Weight = 1.0
    """KL below which the dynamics and representation losses are constant."""
    dynamics_scale: Weight = 1.0
    """Weight of the KL that trains the prior."""
    representation_scale: Weight = 0.1
    """Weight of the KL that trains the posterior."""
    unimix: Share = 0.01
    """Share of uniform distribution in the latent categoricals."""
    straight_through: bool = True
    """Whether sampled latents carry the gradient of their probabilities."""
    initial: Literal["zeros", "stored", "stored+refreshed"] = "stored+refreshed"
    """What a replayed sequence starts from: zeros (the first state of an episode), the latent stored by the policy, or
    that latent kept fresh by writing back what training recomputes."""

    # Behaviour
    imagination: Annotated[int, Within(1, 2**12)] = 15
    """Imagined steps from every replayed state."""
    horizon: Count = 333
    """Discount horizon in steps: gamma = 1 - 1 / horizon."""
    discount: Literal["learned", "fixed"] = "learned"
    """Gamma inside the continue head, whose probability is used; or outside of it, times its more probable flag."""
    first_continue: Literal["predicted", "true"] = "predicted"
    """Whether imagination may go on from a replayed state: as the head predicts, or as replay knows."""
    lam: Share = 0.95
    """Lambda of the returns: 0 trusts the critic, 1 the imagined rewards."""
    actor_gradient: Literal["reinforce", "dynamics", "auto"] = "reinforce"
    """The score function, or the gradient of the return through the model; auto: the latter for continuous actions."""
    entropy: Weight = 3e-4
    """Weight of the policy's entropy."""
    policy_unimix: Share = 0.01
    """Share of uniform distribution in discrete actions."""
    replay_value_scale: Weight = 0.3
    """Weight of the critic loss on replayed steps."""
    slow_rate: Share = 0.02
    """Share of the critic that moves into the slow critic at every update."""
    return_rate: Share = 0.01
    """Share of the new percentiles that moves into the return scale at every update."""

    # Optimisation
    optimizer: Literal["laprop", "adam"] = "laprop"
    """LaProp for everything together, or one Adam each for world model, actor and critic."""
    learning_rate: Positive = 4e-5
    """Step size after warm-up."""
    lr_warmup: Number = 1000
    """Updates over which the learning rate rises from zero."""
    clip: Weight = 0.3
    """Largest gradient norm. laprop: of a tensor, as a share of the tensor's own norm. adam: of the whole gradient.
    0 clips nothing."""
    eps: Positive = 1e-20
    """What keeps the optimizer from dividing by zero."""
    behavior_learning_rate: Positive = 3e-5
    """adam: step size of actor and critic."""
    behavior_clip: Weight = 100.0
    """adam: largest gradient norm of the actor, and of the critic."""
    behavior_eps: Positive = 1e-5
    """adam: eps of actor and critic."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kernels = {"pool": (3, 5), "stride": (3, 4, 5)}[self.convolutions]
        if self.kernel not in kernels:
            known = " or ".join(map(str, kernels))
            raise ConfigError(f"--kernel must be {known} with --convolutions {self.convolutions}, got {self.kernel}")
