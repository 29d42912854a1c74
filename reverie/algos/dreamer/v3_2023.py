"""DreamerV3 as first published (Hafner et al., 2023; arXiv 2301.04104v1; code danijar/dreamerv3@8fa35f8).

What differs from the final version (`v3.py`):

    networks       a dense GRU and LayerNorm, strided convolutions, a learned first state (`Config.paper`)
    rewards        a two-hot code over equal bins of the symlog
    KL             half the weight on the prior
    replay         sequences start from the first state; the critic learns in imagination alone
    discount       gamma stands outside of the continue head, of which the more probable flag counts
    actor          the gradient of continuous actions goes through the model
    optimizer      Adam, one each for world model, actor and critic
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import PRNGKeyArray

from reverie.algos.dreamer import v3
from reverie.algos.dreamer.agent import BehaviorLoss, in_parts
from reverie.algos.dreamer.planning import Improvement
from reverie.algos.dreamer.v3 import ActorGradient, Choices, DreamerV3Model, ModelConfig, dream_losses, through_dynamics
from reverie.algos.dreamer.world import Model, Posterior, State
from reverie.envs.base import Spaces
from reverie.fields import Number, Positive, Share, Weight
from reverie.nn.optim import adam

SIZES = v3.SIZES


@dataclass(frozen=True)
class Config(Improvement, ModelConfig):
    """The values of the first paper, but for the size."""

    size: v3.SIZE_NAMES = "S"
    """Width of all networks; XS to XL are those of this paper."""
    dynamics_scale: Weight = 0.5  # as the next, the final version's with another default
    initial: Literal["zeros", "stored", "stored+refreshed"] = "zeros"
    actor_gradient: ActorGradient = "auto"
    """The score function, or the gradient of the return through the model; auto: the latter for continuous actions."""
    entropy: Weight = 3e-4
    """Weight of the policy's entropy."""
    return_rate: Share = 0.01
    """Share of the new percentiles that moves into the return scale at every update."""

    learning_rate: Positive = 1e-4
    """Step size of the world model after warm-up."""
    lr_warmup: Number = 0
    """Updates over which the learning rates rise from zero."""
    clip: Weight = 1000.0
    """Largest gradient norm of the world model. 0 clips nothing."""
    eps: Positive = 1e-8
    """Smallest divisor of the world model's optimizer."""
    behavior_learning_rate: Positive = 3e-5
    """Step size of actor and critic."""
    behavior_clip: Weight = 100.0
    """Largest gradient norm of the actor, and of the critic."""
    behavior_eps: Positive = 1e-5
    """Smallest divisor of the optimizers of actor and critic."""

    def paper(self) -> Choices:
        return Choices(
            recurrence="dense",
            first_state="learned",
            norm="layer",
            fan="average",
            convolutions="stride",
            kernel=4,
            pixels="shift",
            prior_layers=1,
            vector_layers=5,  # and 1024 units whatever the size: the reference's size flags do not reach these layers
            vector_units=1024,
            policy_scale=1.0,
            scalars="symlog_two_hot",
        )


class DreamerV3(DreamerV3Model):
    continue_knows_gamma = False

    def __init__(self, config: Config, obs_space: Spaces, act_space: Spaces, precision: str):
        super().__init__(config, obs_space, act_space, precision)
        self.differentiable = through_dynamics(act_space, config.actor_gradient)
        world = adam(config.learning_rate, eps=config.eps, clip=config.clip, warmup=config.lr_warmup)
        behavior = adam(
            config.behavior_learning_rate, eps=config.behavior_eps, clip=config.behavior_clip, warmup=config.lr_warmup
        )
        self.optimizer = in_parts(world, behavior, behavior)

    def behavior_loss(self, model: Model, state: State, post: Posterior, key: PRNGKeyArray) -> BehaviorLoss:
        """Actor and critic learn from imagined trajectories alone (eqs. 7 to 11)."""
        known = model.gamma * post.alive.ravel()
        losses, returns, metrics, _ = dream_losses(self, model, state, post, known, key)
        return losses, returns, metrics


make_agent = DreamerV3
