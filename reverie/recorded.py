"""Recorded episodes, made into replay that a run can learn from: `reverie import`."""

from __future__ import annotations

import dataclasses
import os
import uuid
from pathlib import Path

from reverie import config
from reverie.assembly import spec_values
from reverie.config import ConfigError
from reverie.envs.spec import EnvLike, env_spec
from reverie.replay.segments import Segments
from reverie.replay.sequences import Replay
from reverie.run import experience
from reverie.run.checkpoint import Checkpoints
from reverie.run.collect import dataset
from reverie.run.directory import RunDirectory
from reverie.run.phases import Progress
from reverie.run.snapshot import describe_run


def import_episodes(source: str, env: EnvLike, path: str | os.PathLike[str], envs: int = 4) -> int:
    """Makes replay of recorded episodes, in a directory that `--offline` takes.

    Args:
      source: a folder of .npz files, or `minari:<id>`; `run.collect.dataset` says what is in a file.
      env: that they are of.
      path: of the directory; a new one.
      envs: streams; a run that learns from it has as many.

    Returns:
      the number of rows.

    Raises:
      ConfigError: the directory is there, or the data is none, or not of this env.
      UnusableEnv: the env as named cannot be used.
    """
    spec, path = env_spec(env), Path(path)
    if envs < 1:
        raise ConfigError(f"--envs must be 1 or more, got {envs}")
    if path.exists() and any(path.iterdir()):
        raise ConfigError(f"{path} is there already: give another directory")
    if not dataset.holds(source):
        raise ConfigError(f"{source}: expected a folder of .npz files, or {dataset.MINARI}<id>")
    data = dataset.Dataset(source, spec, envs)
    values = spec_values(spec, {"envs": envs, "replay_size": max(data.rows, 2 * envs) * envs})
    conf = dataclasses.replace(config.override(config.default("dreamer_v3"), **values), id=uuid.uuid4().hex)
    fields = experience.row_fields(data.obs_space, data.act_space)
    replay = Replay(fields, streams=envs, length=1, capacity=conf.run.replay_size, seed=0, online=False)
    data.pour(replay)
    with RunDirectory(path).with_lock() as directory:
        manifest = Segments(directory.replay, conf.id).save(replay)
        facts = describe_run(data.obs_space, data.act_space, Progress(step=data.rows), manifest)
        Checkpoints(directory.checkpoints, run=conf.id).save(data.rows, {}, facts)
        directory.write_config(config.to_text(conf))
    return data.rows
