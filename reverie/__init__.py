"""Agents that learn a model of their world and act by imagining it.

run = reverie.train("dreamer_v3", env="CartPole-v1", steps=10_000)
agent = run.load()
action, carry = agent.act(obs, carry)      # carry=None to begin an episode
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reverie.api import Run, check_env, evaluate, import_episodes, list_presets, load, train
    from reverie.envs.build import make_env
    from reverie.envs.spec import EnvSpec
    from reverie.trained import LoadedAgent

__version__ = "0.1.0"
__all__ = [
    "EnvSpec",
    "LoadedAgent",
    "Run",
    "check_env",
    "evaluate",
    "import_episodes",
    "list_presets",
    "load",
    "make_env",
    "train",
]

_HOME = {"LoadedAgent": "reverie.trained", "EnvSpec": "reverie.envs.spec", "make_env": "reverie.envs.build"}


def __getattr__(name: str) -> Any:
    # On demand: a worker process imports `reverie.envs` and must not pay for JAX.
    if name not in __all__:
        raise AttributeError(f"module 'reverie' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME.get(name, "reverie.api")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
