"""Gumbel MuZero (Danihelka et al., ICLR 2022): policy improvement by planning with few simulations.

What differs from MuZero: the root tries actions sampled without replacement and halves them; the target is not the
visits but the improved policy `softmax(logits + sigma(completed Q))`; no Dirichlet noise, no temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from jaxtyping import Array, Bool, Float, PRNGKeyArray

from reverie.algos import muzero
from reverie.behavior.search import Found, gumbel
from reverie.envs.base import Spaces
from reverie.fields import Weight, Within
from reverie.model.unroll import Hidden


@dataclass(frozen=True, kw_only=True)
class Config(muzero.Config):
    """The values of the algorithm."""

    simulations: Annotated[int, Within(1, 2**16)] = 16
    """Of each search: network calls per decision. 2 to 16 are enough."""
    considered: Annotated[int, Within(1, 2**16)] = 16
    """Actions at most that the root tries."""
    visit_scale: Weight = 50.0
    """c_visit of sigma(q) = (c_visit + most visits) c_scale q."""
    q_scale: Weight = 0.1
    """c_scale (0.1 for values rescaled to the range seen in the tree, 1 for Go without that)."""
    q_rescale: bool = True
    """Rescale values to the range seen in the tree."""


DEFAULTS: dict[str, Any] = muzero.DEFAULTS
PRESETS: dict[str, dict[str, Any]] = {
    # Rewards come at every step and the end is far: long returns tell more than a search of 16 steps.
    "cartpole": {
        "env": "CartPole-v1",
        "steps": 40_000,
        "envs": 8,
        "replay_ratio": 16.0,
        "n_step": 30,
        "value_scale": 1.0,
        "support": 20,
        "bootstrap": "stored",
        "prioritized": False,
        "units": 64,
        "log_every": 1000,
        "eval_every": 2000,
        "eval_episodes": 20,
        "eval_envs": 20,
        "report_every": 5000,
        "video_every": 0,
        "stop_return": 475.0,
    },
    # Two good players always play alike; one move in seven is drawn blindly, so that all positions are seen.
    "tic-tac-toe": {
        "env": "pgx:tic_tac_toe",
        "steps": 150_000,
        "envs": 64,
        "replay_ratio": 8.0,
        "replay_size": 60_000,
        "network": "mlp",
        "hidden": 128,
        "units": 256,
        "layers": 2,
        "simulations": 24,
        "unroll": 3,
        "n_step": 4,
        "discount": 1.0,
        "support": 1,
        "value_scale": 1.0,
        "bootstrap": "stored",
        "prioritized": False,
        "random_moves": 0.15,
        "opponent": "perfect",
        "log_every": 10_000,
        "eval_every": 20_000,
        "eval_episodes": 100,
        "eval_envs": 50,
        "report_every": 0,
        "video_every": 0,
    },
    # A line of four is rare and hides in planes: small towers find it (an mlp does not), its reward weighs more, and
    # values are not rescaled, so that a search that knows nothing yet does not teach its noise.
    "connect-four": {
        "env": "pgx:connect_four",
        "steps": 3_000_000,
        "envs": 128,
        "replay_ratio": 1.5,
        "replay_size": 300_000,
        "network": "tower",
        "blocks": 1,
        "channels": 16,
        "units": 64,
        "simulations": 16,
        "unroll": 3,
        "n_step": 42,
        "discount": 1.0,
        "support": 1,
        "value_scale": 2.0,
        "reward_scale": 5.0,
        "learning_rate": 2e-3,
        "bootstrap": "stored",
        "prioritized": False,
        "random_moves": 0.04,
        "q_rescale": False,
        "opponent": "mcts:200",
        "log_every": 50_000,
        "eval_every": 300_000,
        "eval_episodes": 40,
        "checkpoint_every": 300_000,
        "keep": 20,
        "report_every": 0,
        "video_every": 0,
    },
    "catch": {
        "env": "reverie.envs.toy:Catch",
        "image_size": 16,
        "steps": 80_000,
        "envs": 16,
        "batch": 64,
        "replay_ratio": 16.0,
        "network": "mlp",
        "units": 64,
        "simulations": 8,
        "n_step": 8,
        "support": 1,
        "value_scale": 1.0,
        "bootstrap": "stored",
        "prioritized": False,
        "random_moves": 0.1,
        "q_rescale": False,
        "workers": "inline",
        "log_every": 1000,
        "eval_every": 2000,
        "eval_episodes": 50,
        "eval_envs": 50,
        "report_every": 0,
        "video_every": 0,
        "stop_return": 1.0,
    },
}
SUITED = {values["env"]: name for name, values in PRESETS.items()}


class GumbelMuZero(muzero.MuZero):
    """The `Agent`."""

    def search(
        self,
        model: muzero.Model,
        root: Hidden,
        key: PRNGKeyArray,
        legal: Bool[Array, "B a"] | None,
        greedy: bool,
        temperature: Float[Array, " B"],
    ) -> Found:
        config = self.config
        return gumbel(
            model,
            root,
            key,
            simulations=config.simulations,
            legal=legal,
            considered=config.considered,
            scale=0.0 if greedy else 1.0,
            visit_scale=config.visit_scale,
            value_scale=config.q_scale,
            rescale=config.q_rescale,
            least_range=config.least_range,
        )


def make_agent(config: Any, obs_space: Spaces, act_space: Spaces, *, precision: str) -> GumbelMuZero:
    """The agent for these spaces. `precision`: compute dtype, `float32` or `bfloat16`; builds no arrays.

    Raises:
      Unsuitable: actions that are not one discrete choice.
    """
    muzero.check(config, obs_space, act_space)
    return GumbelMuZero(config, obs_space, act_space, precision)
