"""PPO and DQN of stable-baselines3 on tasks of the suite, with the values of its zoo, beside `bench.experiments.suite`.

    pip install -e '.[dev,peers,box2d]'
    python -m bench.experiments.peers --out results/peers.jsonl
    python -m bench.experiments.peers --tasks LunarLander-v3 --algorithms ppo --seeds 1

One core each, until the steps of the zoo are done or ten minutes of processor time are over; its own evaluations count
in both. Prints one record per run: its score is of greedy episodes of fresh seeds, and `curve` has minutes beside the
steps, so that it can be read at equal steps and at equal minutes. The zoo has its values for LunarLander-v2, and none
of DQN for continuous actions.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro

from bench.common import Record, commit, machine, records, tell
from bench.experiments.suite import threshold

WIDE = {"policy_kwargs": {"net_arch": [256, 256]}}
ROLLOUT = {"gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0}
OFF = {"gamma": 0.99, "exploration_final_eps": 0.1, "exploration_fraction": 0.12} | WIDE
STEADY = {"learning_rate": 6.3e-4, "batch_size": 128, "buffer_size": 50_000, "learning_starts": 0, "train_freq": 4,
          "target_update_interval": 250, "gradient_steps": -1}  # fmt: skip


@dataclass(frozen=True)
class Zoo:
    """Values of the zoo's files for one task (`hyperparams/ppo.yml` and `dqn.yml`, 2023).

    Attributes:
      steps: of the env, in all.
      envs: stepped together.
      normalize: whether observations and rewards are.
      values: of the algorithm's constructor.
    """

    steps: int
    values: dict[str, Any]
    envs: int = 1
    normalize: bool = False


def falling(start: float) -> Callable[[float], float]:
    """From `start` to 0 over the run."""
    return lambda left: left * start


ZOO: dict[tuple[str, str], Zoo] = {
    ("ppo", "CartPole-v1"): Zoo(100_000, {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98,
        "n_epochs": 20, "ent_coef": 0.0, "learning_rate": falling(1e-3), "clip_range": falling(0.2)}, 8),
    ("ppo", "Acrobot-v1"): Zoo(1_000_000, {"n_steps": 256} | ROLLOUT, 16, normalize=True),
    ("ppo", "LunarLander-v3"): Zoo(1_000_000, {"n_steps": 1024, "batch_size": 64, "gae_lambda": 0.98, "gamma": 0.999,
        "n_epochs": 4, "ent_coef": 0.01}, 16),
    ("ppo", "MountainCarContinuous-v0"): Zoo(20_000, {"batch_size": 256, "n_steps": 8, "gamma": 0.9999,
        "learning_rate": 7.77e-5, "ent_coef": 0.00429, "clip_range": 0.1, "n_epochs": 10, "gae_lambda": 0.9,
        "max_grad_norm": 5, "vf_coef": 0.19, "use_sde": True,
        "policy_kwargs": {"log_std_init": -3.29, "ortho_init": False}}, normalize=True),
    ("ppo", "Pendulum-v1"): Zoo(100_000, {"n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10,
        "ent_coef": 0.0, "learning_rate": 1e-3, "clip_range": 0.2, "use_sde": True, "sde_sample_freq": 4}, 4),
    ("dqn", "CartPole-v1"): Zoo(50_000, OFF | {"learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000,
        "learning_starts": 1000, "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128,
        "exploration_fraction": 0.16, "exploration_final_eps": 0.04}),
    ("dqn", "Acrobot-v1"): Zoo(100_000, OFF | STEADY),
    ("dqn", "LunarLander-v3"): Zoo(100_000, OFF | STEADY),
}  # fmt: skip


@dataclass(frozen=True)
class Args:
    tasks: tuple[str, ...] = tuple(dict.fromkeys(task for _, task in ZOO))
    algorithms: tuple[str, ...] = ("ppo", "dqn")
    seeds: int = 3
    minutes: float = 10.0
    """Of processor time, for one run, its evaluations included."""
    episodes: int = 20
    """Greedy episodes that decide."""
    every: int = 10_000
    """Steps between evaluations of 5 episodes."""
    core: int = 0
    """The one core."""
    out: Path | None = None
    """File to which every line is added."""


def measure(name: str, task: str, seed: int, args: Args) -> Record:
    """One run and its score."""
    import stable_baselines3 as sb3
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    zoo, start = ZOO[name, task], time.process_time()
    curve: dict[str, list[float]] = {"step": [], "value": [], "minutes": []}

    def envs(count: int, seed: int, *, training: bool) -> Any:
        made = make_vec_env(task, n_envs=count, seed=seed)
        return VecNormalize(made, training=training, norm_reward=training) if zoo.normalize else made

    def played(model: Any, episodes: int, seed: int) -> tuple[float, float]:
        env = envs(1, seed, training=False)
        if zoo.normalize:
            env.obs_rms = model.get_env().obs_rms
        mean, std = evaluate_policy(model, env, n_eval_episodes=episodes, deterministic=True)
        return float(mean), float(std)

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps // args.every >= len(curve["step"]) + 1:
                curve["value"].append(round(played(self.model, 5, 500_000 + seed)[0], 3))
                curve["step"].append(self.num_timesteps)
                curve["minutes"].append(round((time.process_time() - start) / 60, 2))
            return time.process_time() - start < 60 * args.minutes

    make = {"ppo": sb3.PPO, "dqn": sb3.DQN}[name]
    model = make("MlpPolicy", envs(zoo.envs, seed, training=True), seed=seed, device="cpu", **zoo.values)
    model.learn(zoo.steps, callback=Watch())
    used = time.process_time() - start
    value, std = played(model, args.episodes, 1_000_000 + seed)
    return Record(
        env=task,
        algorithm=f"stable-baselines3 {name}",
        preset="zoo",
        seed=seed,
        value=value,
        std=std,
        episodes=args.episodes,
        threshold=round(threshold(task), 3),
        steps=model.num_timesteps,
        updates=model._n_updates,
        minutes=round(used / 60, 1),
        cores=1,
        command=f"python -m bench.experiments.peers --tasks {task} --algorithms {name} --minutes {args.minutes:g}",
        commit=commit(),
        machine=machine() | {"stable-baselines3": version("stable-baselines3"), "torch": version("torch")},
        curve=curve,
    )


def main(args: Args) -> None:
    os.sched_setaffinity(0, {args.core})
    kept = records(args.out) if args.out and args.out.exists() else []
    done = {(x.env, x.algorithm, x.seed) for x in kept}
    for seed, task, name in itertools.product(range(args.seeds), args.tasks, args.algorithms):
        if (name, task) in ZOO and (task, f"stable-baselines3 {name}", seed) not in done:
            tell(measure(name, task, seed, args), args.out)


if __name__ == "__main__":
    main(tyro.cli(Args))
