"""Learning from what another run saw, or somebody recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from reverie import config
from reverie.config import ConfigError
from reverie.envs.spec import EnvSpec
from reverie.replay.rows import Field
from reverie.replay.segments import Segments
from reverie.replay.sequences import Replay
from reverie.run import experience, snapshot
from reverie.run.checkpoint import Checkpoints
from reverie.run.collect import dataset
from reverie.run.collect.dataset import Dataset
from reverie.run.directory import RunDirectory
from reverie.saved import reading


class Source:
    """The replay of the run in `path`, as its newest checkpoint counts it."""

    def __init__(self, path: str) -> None:
        self.directory = RunDirectory(Path(path))
        if (saved := config.saved(self.directory.path)) is None:
            raise ConfigError(
                f"--offline {path}: there is no run, it has no config.json; nor are there episodes, *.npz"
            )
        checkpoint = snapshot.latest(Checkpoints(self.directory.checkpoints, run=saved.id))
        if checkpoint is None:
            raise ConfigError(f"--offline {path}: that run has no checkpoint yet")
        self.config, self._manifest = saved, checkpoint.meta["replay"]
        self.rows = int(self._manifest["held"])
        self.streams = len(self._manifest["replay"]["count"])  # envs that they came from
        with reading(self.directory.replay):
            schema = self._manifest["schema"]
            self.fields = {k: Field(tuple(shape), np.dtype(name)) for k, (name, shape) in schema.items()}

    def check(self, fields: Mapping[str, Field], streams: int, search_keys: bool) -> None:
        """Raises ConfigError for other observations, actions or numbers of envs than these.

        Args:
          search_keys: what the policy stored beside a step is learned from (policies and values of a search), so that
            has to be there as well.
        """
        faults = [
            f"{key}: there {self.fields.get(key, 'nothing')}, here {fields.get(key, 'nothing')}"
            for key in sorted(self.fields.keys() | fields.keys())
            if self.fields.get(key) != fields.get(key)
            and (not key.startswith("out/") or (search_keys and key in fields))
        ]
        if faults:
            lacks_search = all(fault.startswith("out/") for fault in faults)
            why = "stored nothing of a search that could be learned from" if lacks_search else "lived in another env"
            hint = ["Give the run of a MuZero with the same search, or train a Dreamer from this one"] * lacks_search
            raise ConfigError("\n".join([f"{self.directory.path} {why}:", *(f"  {fault}" for fault in faults), *hint]))
        if streams != self.streams:
            raise ConfigError(f"{self.directory.path} had {self.streams} envs: type --envs {self.streams}")

    def pour(self, replay: Replay) -> None:
        """Fills an empty `replay` that passes `check` with these rows. What an algorithm stores beside a step (`out/`)
        is zero where this run stored something else."""
        capacity = experience.capacity(self.config.run, self.fields)
        old = Replay(self.fields, streams=self.streams, length=1, capacity=capacity, seed=0, online=False)
        with reading(self.directory.replay):
            Segments(self.directory.replay, self.config.id).load(old, self._manifest)
        replay.take(old)


def source(path: str, spec: EnvSpec, streams: int) -> Source | Dataset:
    """The source of experience in `path`: a run, or episodes that somebody recorded (`dataset`). The run that learns
    has so many `streams` of the env `spec`.

    Raises:
      ConfigError: there is none, it saved nothing yet, or its episodes are not of this env.
      NoSoundCheckpoint, OtherVersion, AnotherRun, Malformed, files.DiskError: it cannot be read.
    """
    return Dataset(path, spec, streams) if dataset.holds(path) else Source(path)
