"""The real rows that a dream starts from, and the files of its pictures."""

from __future__ import annotations

import io

import jax
import numpy as np
from PIL import Image

from reverie.agent import Agent, Dream, State
from reverie.config import RunConfig
from reverie.envs.spec import EnvSpec
from reverie.files import Folder
from reverie.replay.rows import Row
from reverie.replay.sequences import Replay
from reverie.run import experience
from reverie.run.collect.base import step
from reverie.run.envs import collector, open_envs
from reverie.run.events import Events
from reverie.run.jitted import JittedAgent
from reverie.view import dream as view
from reverie.view import video


def look(replay: Replay, batch: int, length: int, rng: np.random.Generator) -> Row:
    """`batch` windows of `length` rows, drawn without touching the sampler; for `Agent.report` and `Agent.dream`.

    Where replay holds no stretch that long yet, the last row of a shorter one is repeated as the beginning of an
    episode: dreams are over there, and nothing is compiled for a second shape.
    """
    rows = jax.device_get(replay.look(batch, min(length, replay.longest), rng))
    del rows["id"]
    missing = length - rows["is_first"].shape[1]
    rows = {k: np.concatenate([x, x[:, -1:].repeat(missing, 1)], 1) for k, x in rows.items()}
    rows["is_first"][:, length - missing :] = True
    return rows


def play(run: RunConfig, agent: Agent, state: State, spec: EnvSpec, sequences: int, length: int, seed: int) -> Row:
    """Greedy episodes, one stream of them per sequence, `[sequences, length, ...]`."""
    size = sequences * length
    replay = Replay(experience.fields(agent), streams=sequences, length=length, capacity=size, seed=0, online=False)
    compiled = JittedAgent(agent)
    with open_envs(run, spec, sequences, seed) as envs:
        played = collector(envs, compiled, compiled.decide, replay.add, replay.extend, scan=length)
        played.carry = [agent.init_carry(sequences, jax.random.key(seed))]
        while replay.longest < length:
            step(played, state, "eval")
    return look(replay, sequences, length, np.random.default_rng(seed))


def film(dream: Dream, folder: Folder, step: int, events: Events) -> None:
    """Puts a dream into `folder` and TensorBoard: a video of every image, one plot of all that is observed besides.
    The folder is made if it is missing.

    Raises:
      files.DiskError: the disk will not take it.
    """
    folder.make()
    for key in view.pictures(dream):
        name = f"dream-{key.removeprefix('obs/').replace('/', '-')}"
        folder.replace(f"{name}-{step:09d}{video.BEST}", video.encode(video.BEST, view.frames(dream, key), view.FPS))
        small = view.frames(dream, key, height=64)  # a GIF is ten times an MP4
        gif = video.encode(".gif", small, view.FPS)
        events.picture(step, f"dream/{key.removeprefix('obs/')}", gif, small[0].shape[:2])
    if len(view.curves(dream)) > 1 or not view.pictures(dream):
        png = view.plot(dream)
        folder.replace(f"dream-{step:09d}.png", png)
        width, height = Image.open(io.BytesIO(png)).size
        events.picture(step, "dream/curves", png, (height, width))
