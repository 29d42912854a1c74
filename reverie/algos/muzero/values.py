"""The values of the MuZero family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from reverie.algos.choices import HasChoices
from reverie.behavior.explore import Exploration
from reverie.fields import Count, Number, Positive, Share, Weight, Width, Within, check


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Constants of the networks, the loss and the optimizer."""

    read_channels: Width = 4
    """Planes that policy, value and reward see of a tower's hidden state, by a 1x1 convolution."""
    scaling: Literal["range", "normal"] = "range"
    """Hidden states lie in [0, 1] by their extremes, as in the paper; or have mean 0 and variance 1, with which what is
    hard to see in a board is learned several times faster."""
    policy_scale: Weight = 1.0
    """Weight of the loss."""
    reward_scale: Weight = 1.0
    """Weight of the loss."""
    decode_scale: Weight = 0.0
    """Weight of reading the board off every state, in training only; of boards on towers, not of pictures or vectors.
    At 0 a state says nothing but what planning needs; where that is hard to find, its dynamics learn from little."""
    weight_decay: Weight = 1e-4
    """adam: decoupled decay of AdamW; sgd: a squared penalty in the gradient."""
    lr_drop_every: Number = 0
    """Updates after which the step size falls to a tenth, again and again. 0: never."""

    def __post_init__(self) -> None:
        check(self, str)


@dataclass(frozen=True, kw_only=True)
class PuctChoices(Choices):
    """And those of PUCT at the root."""

    root_alpha: Positive = 0.3
    """Concentration (alpha) of the Dirichlet noise at the root."""
    half_heat: Number = 20_000
    """Actions are drawn from the visits with temperature 1, and from this number of updates on with 0.5."""
    quarter_heat: Number = 40_000
    """From this number of updates on the temperature is 0.25."""


@dataclass(frozen=True, kw_only=True)
class Values(Exploration, HasChoices):
    """The values of every member of the family."""

    behavior = "search"  # a flag where the policy can act alone (`Playable`)
    search = "puct"  # or "gumbel"; a flag where a paper has both

    network: Literal["auto", "mlp", "tower"] = "auto"
    """Hidden states are vectors (any observation) or planes (boards, pictures). auto: planes for boards."""
    hidden: Width = 64
    """Width of a hidden state that is a vector."""
    units: Width = 128
    """Width of hidden layers."""
    layers: Annotated[int, Within(0, 1000)] = 1
    """Hidden layers of representation, dynamics and heads of the mlp."""
    blocks: Annotated[int, Within(0, 1000)] = 2
    """Residual blocks of each tower."""
    channels: Width = 32
    """Planes of a tower's hidden state."""
    stack: Annotated[int, Within(1, 1000)] = 1
    """Pictures or boards that are seen at once, this one and those before."""
    simulations: Annotated[int, Within(1, 2**16)] = 50
    """Network calls of each search."""
    least_range: Weight = 0.0
    """A search moves the values of sibling actions to [0, 1]. Where they differ by less than this, it divides by this
    instead: the noise of values that are not learned yet is no reason to prefer an action."""
    unroll: Annotated[int, Within(1, 1000)] = 5
    """K: steps along which the model is trained."""
    n_step: Annotated[int, Within(1, 2**16)] = 10
    """Rewards in a value target before it bootstraps from a search."""
    lam: Share = 1.0
    """Below 1: value targets mix returns of 1 to n steps."""
    discount: Share = 0.997
    """Per step. For two players the sign is added."""
    support: Annotated[int, Within(1, 2**16)] = 300
    """Rewards and values are categoricals over the integers from minus to plus this, of h(x): 601 bins. Above 300 the
    bins lie further apart instead of being more. Targets beyond are cut (metrics `value/cut`, `reward/cut`)."""
    value_scale: Weight = 0.25
    """Weight of the loss (1 in the first paper, 0.25 with Reanalyse)."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """AdamW, or SGD with momentum 0.9."""
    learning_rate: Positive = 1e-3
    """Step size after warm-up."""
    lr_warmup: Number = 100
    """Updates over which the learning rate rises."""
    clip: Positive = 5.0
    """Largest norm of the gradient."""
    reanalyse: Share = 0.0
    """Share of every batch whose policies and values are searched again, with the target network."""
    bootstrap: Literal["stored", "network", "search"] = "network"
    """Values that n-step targets end with: stored, of the search when the agent acted; of the target network, without a
    search; or of a fresh search in the reanalysed share, and of the target network in the rest."""
    unrolled_value: Literal["return", "seen"] = "return"
    """Value targets of states 1 to K: the returns that came, as the root's does; or what the network itself
    says of the observations that came, which is less noisy, and as good as the values of roots are."""
    target_every: Count = 100
    """Updates after which the target network is a copy of the trained one again."""
    prioritized: bool = True
    """Draw sequences by the error of their value: |search value - target|."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)

    def paper(self) -> Choices:
        return Choices()

    def sigma(self) -> dict[str, Any]:
        """Arguments of `gumbel` that say how much its values count."""
        return {"least_range": self.least_range}

    def scalar(self) -> dict[str, Any]:
        """Arguments of a `ScalarHead` for rewards or values."""
        return {"kind": "h_two_hot", "bins": 2 * min(self.support, 300) + 1, "limit": self.support}


@dataclass(frozen=True, kw_only=True)
class Puct(Values):
    """And those of the members that search with PUCT."""

    root_noise: Share = 0.25
    """Share of Dirichlet noise in the prior of the root."""
    temperature_moves: Number = 0
    """If above 0: temperature 1 for so many moves of an episode, then greedy (board games)."""

    def paper(self) -> PuctChoices:
        return PuctChoices()


@dataclass(frozen=True, kw_only=True)
class Playable(Values):
    """And those of the members whose model the policy can play in."""

    behavior: Literal["search", "actor-critic"] = "search"
    """Decides and teaches: a search; or the policy alone, which learns from imagined returns."""
    imagination: Annotated[int, Within(1, 2**12)] = 5
    """actor-critic: imagined steps from every state of the unroll."""
    imagined_lam: Share = 0.95
    """actor-critic: lambda of the imagined returns: 0 trusts the critic, 1 the imagined rewards."""
    entropy: Weight = 1e-2
    """actor-critic: weight of the policy's entropy."""


@dataclass(frozen=True, kw_only=True)
class Config(Playable, Puct):
    """The values of MuZero."""
