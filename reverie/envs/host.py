"""One env and the rows of shared memory it writes to. The same code inline and in a process."""

from __future__ import annotations

import json
import mmap
import os
import struct
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from reverie.envs.base import Arrays, Step, to_json
from reverie.envs.buffers import views
from reverie.envs.build import make_env
from reverie.envs.process import send
from reverie.envs.spec import EnvSpec, UnusableEnv
from reverie.envs.values import Gate, Malformed

# Protocol. To the process: what to do, and the seed. Back: how it went, length of a text that
# follows, and the flags. Observations and actions never travel: they lie in the mapping.
COMMAND = struct.Struct("<cQ")
RESET, STEP = b"r", b"s"
REPLY = struct.Struct("<cIf???")
SUCCESS, MSG_ERROR, UNUSABLE = b"d", b"f", b"u"


class Flags(NamedTuple):
    """A step without its observation; `figures` only of the last one of an episode."""

    reward: float
    is_first: bool
    is_last: bool
    is_terminal: bool
    figures: Mapping[str, float] = {}


class Host:
    """Builds an env and lets only sound steps into the buffers.

    Args:
      seed: of its first reset, if that is known.

    Raises:
      Exception: anything the env's constructor raises, now; anything at all in `reset` and `step`.
    """

    def __init__(self, spec: EnvSpec, seed: int = 0) -> None:
        self.env = make_env(spec, seed)
        self._gate = Gate(self.env.obs_space)
        self._obs: Arrays = {}
        self._action: Arrays = {}

    def bind(self, obs: Arrays, action: Arrays, index: int) -> None:
        """From now on observations go to `obs[key][index]`, actions come from `action`."""
        self._obs = {key: array[index, ...] for key, array in obs.items()}
        self._action = {key: array[index, ...] for key, array in action.items()}

    def reset(self, seed: int) -> Flags:
        return self._shown(self.env.reset(seed), first=True)

    def step(self) -> Flags:
        # Copies: an env may keep its last action, and the buffer will change under it.
        action = {key: array.copy() for key, array in self._action.items()}
        return self._shown(self.env.step(action), first=False)

    def close(self) -> None:
        self.env.close()

    def _shown(self, step: Step, first: bool) -> Flags:
        self._gate.check(step)
        if step.is_first != first:
            raise Malformed(f"is_first is {step.is_first}, expected it on reset and only there")
        for key, view in self._obs.items():
            np.copyto(view, step.obs[key])
        return Flags(step.reward, step.is_first, step.is_last, step.is_terminal, step.figures if step.is_last else {})


def explain(error: BaseException) -> str:
    """The fault of an env, as text: a malformed value needs no traceback, the rest does."""
    if isinstance(error, Malformed):
        return f"it returned a malformed value: {error}"
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return "it raised\n" + "".join(lines)[-8000:].rstrip()


def serve(read: int, write: int, fds: list[int], values: dict[str, Any]) -> None:
    """The life of a worker process: build, then reset and step as told, until the pipe closes."""
    try:
        host = Host(EnvSpec.from_json(values["spec"]), values["seed"])
    except UnusableEnv as error:
        return _reply(write, UNUSABLE, str(error))
    except BaseException as error:  # the border of the user's code: even SystemExit is only a text
        return _reply(write, MSG_ERROR, explain(error))
    spaces = (host.env.obs_space, host.env.act_space)
    _reply(write, SUCCESS, json.dumps([to_json(s) for s in spaces]))
    bound = False
    while len(command := os.read(read, COMMAND.size)) == COMMAND.size:
        what, seed = COMMAND.unpack(command)
        if not bound:  # the parent gives the mapping its size before the first command
            host.bind(*views(mmap.mmap(fds[0], 0), *spaces, values["num"]), values["index"])
            bound = True
        try:
            flags = host.reset(seed) if what == RESET else host.step()
        except BaseException as error:  # as above
            _reply(write, MSG_ERROR, explain(error))
        else:
            _reply(write, SUCCESS, json.dumps(flags.figures) if flags.figures else "", flags[:4])
    host.close()


def _reply(
    write: int, how: bytes, text: str, flags: tuple[float, bool, bool, bool] = (0.0, False, False, False)
) -> None:
    encoded = text.encode("utf-8", "replace")
    send(write, REPLY.pack(how, len(encoded), *flags) + encoded)
