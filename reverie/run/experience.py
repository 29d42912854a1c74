"""The replay that a run needs: what it stores of a step, how many rows it holds, how often they are learned from."""

from __future__ import annotations

import numpy as np

from reverie.agent import Agent
from reverie.config import RunConfig
from reverie.envs.base import Spaces
from reverie.replay.rows import Field, bytes_per_row
from reverie.replay.sequences import Replay
from reverie.run.ratio import Ratio
from reverie.run.seeds import seeds


def row_fields(obs_space: Spaces, act_space: Spaces) -> dict[str, Field]:
    """The row of one step in these spaces, without what an agent adds."""
    row = {f"obs/{key}": Field(space.shape, space.dtype) for key, space in obs_space.items()}
    row |= {f"action/{key}": Field(space.shape, space.dtype) for key, space in act_space.items()}
    row["reward"] = Field((), np.dtype("float32"))
    return row | {name: Field((), np.dtype(bool)) for name in ("is_first", "is_last", "is_terminal")}


def fields(agent: Agent) -> dict[str, Field]:
    """The row of one step of this agent."""
    own = {f"out/{key}": Field(x.shape, np.dtype(x.dtype)) for key, x in agent.out_space.items()}
    return row_fields(agent.obs_space, agent.act_space) | own


def capacity(run: RunConfig, stored: dict[str, Field]) -> int:
    """Rows of these fields that replay may hold: by their number and by their bytes."""
    return min(run.replay_size, int(run.replay_gb * 1e9) // bytes_per_row(stored))


def window(run: RunConfig, agent: Agent) -> int:
    """Rows of a window that replay serves."""
    return agent.context + (agent.rows or run.length)


def replay_of(run: RunConfig, agent: Agent) -> Replay:
    """The replay of a run, empty."""
    stored = fields(agent)
    return Replay(
        stored,
        streams=run.envs,
        length=window(run, agent),
        capacity=capacity(run, stored),
        seed=seeds(run.seed).replay,
        online=run.online,
        within_episodes=run.within_episodes,
        context=agent.context,
        alpha=run.priority_alpha,
        beta=run.priority_beta,
    )


def beta(run: RunConfig, updates: int) -> float:
    """Power of the importance weights after so many updates."""
    share = min(1.0, updates / run.priority_anneal) if run.priority_anneal else 0.0
    return run.priority_beta + share * (1 - run.priority_beta)


def ratio(run: RunConfig, agent: Agent) -> Ratio:
    """Updates per step. The first is due after warm-up, when some env has filled one window."""
    start = max(run.warmup, run.envs * window(run, agent))
    return Ratio(run.replay_ratio, run.batch * (agent.trained or agent.rows or run.length), start)
