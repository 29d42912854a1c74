"""N envs stepped together, supervised: nothing an env does can stop a run or reach the replay.

An env that raises, hangs, dies or returns a malformed value is replaced. Its episode is over, and
the caller is told so (`cut`). What a budget of failures cannot repair ends the run: `EnvError`.

The timeline of one env. `send` and `recv` alternate; between them the env works on its own:

    send   recv     send   recv     send   recv     send    recv
    reset  o0       a0     o1       a1     o2 last  (a2)    o0'      a2 has no effect: a reset
    reset  o0       a0     -- env dies, is rebuilt and reset --   o0'  with cut: o0 was the last
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import numpy as np

from reverie.envs.base import Arrays, Spaces
from reverie.envs.buffers import Buffers, anonymous_file
from reverie.envs.guard import Fault, handlers
from reverie.envs.host import Flags
from reverie.envs.seats import Inline, Mode, Process, Seat, resolve_mode
from reverie.envs.spec import EnvLike, EnvSpec, UnusableEnv, env_spec
from reverie.envs.tape import Tape, split, to_arrays
from reverie.errors import PlainError
from reverie.fields import amount

FIRST_WAIT, LONGEST_WAIT = 0.1, 2.0  # seconds before a rebuild, doubling
_log = logging.getLogger("reverie")


class EnvError(PlainError, RuntimeError):
    """An env failed too often, or could not be built at all. Says which, when, and how."""

    exit_code = 1


class Workers(AbstractContextManager["Workers"]):
    """N supervised envs.

    Args:
      spec: an id, a callable or an `EnvSpec`; or N specs, one for each, of the same spaces.
      num: N.
      seed: episode e of env i begins with `episode_seed(seed, i, e)`, whatever the mode.
      mode: `inline` runs the envs here, `process` one process each; `auto` measures: inline only
        for envs shipped with Gymnasium (and our toys) that step in less than 200 us.
      deadline: seconds allowed for every constructor, reset and step. Inline it works in the main
        thread only, and cannot interrupt compiled code.
      memory: gigabytes (10^9 bytes) that the process of an env may have in RAM, looked at after every step; one that
        has more has failed. 0: no limit.
      max_failures, window: more failures than this within so many steps of one env are too many.

    Attributes:
      obs_space, act_space: of every env.
      mode: `inline` or `process`, as resolved.
      failures: of all envs together, since the beginning.
      figures: of each env: what it says about its last finished episode, name -> value; empty if
        nothing. Whole before the `recv` that gives the `is_last` row returns.

    Raises:
      UnusableEnv: (a ValueError) the env as named cannot be used; the message says what to change.
      EnvError: an env could not be built, or its spaces differ from those of the first.
    """

    def __init__(
        self,
        spec: EnvLike | Sequence[EnvSpec],
        num: int,
        *,
        seed: int,
        mode: Mode = "auto",
        deadline: float = 60.0,
        memory: float = 0.0,
        max_failures: int = 10,
        window: int = 1000,
    ) -> None:
        specs = list(spec) if isinstance(spec, Sequence) and not isinstance(spec, str) else [env_spec(spec)] * num
        self._specs, self.spec = specs, specs[0]
        self.num = num
        self.failures = 0
        self.figures: list[Mapping[str, float]] = [{} for _ in range(num)]
        self.mode: Literal["inline", "process"] = resolve_mode(self.spec, mode, memory)
        self._seed, self._deadline, self._memory = seed, deadline, memory * 1e9
        self._max_failures, self._window = max_failures, window
        self._tapes = [Tape() for _ in range(num)]
        self._cut = np.zeros(num, bool)
        self._fd = anonymous_file() if self.mode == "process" else -1
        self._passing = handlers()  # before the envs could install some of their own
        self._seats: dict[int, Seat] = {}  # but for those that are being replaced
        try:
            self.obs_space, self.act_space = self._build_all()
        except BaseException:
            self.close()
            raise
        self._buffers = Buffers(self.obs_space, self.act_space, num, self._fd)
        for seat in self._seats.values():
            seat.bind(self._buffers.obs, self._buffers.action)

    def send(self, indices: np.ndarray, actions: Arrays) -> None:
        """Begins one step of the envs `indices` [n]; does not wait.

        Args:
          indices: int [n], which envs.
          actions: `[n, ...]` as in `act_space`. Without effect on an env whose last row was
            `is_last`, or that has not begun: it is reset instead.

        Raises:
          ValueError: an action that is not in `act_space`, or not legal: the policy is at fault, not the env.
        """
        self._buffers.check(indices, actions, [tape.ended for tape in self._tapes])
        self._buffers.put(indices, actions)
        for i in indices.tolist():
            tape = self._tapes[i]
            if tape.in_flight:
                raise RuntimeError(f"env {i}: send without recv before it")
            if tape.ended:
                self._begin(i)
            else:
                tape.act(self._buffers.action_of(i))
                self._seats[i].begin()

    def recv(self, indices: np.ndarray) -> tuple[Arrays, np.ndarray]:
        """Waits for the envs `indices` [n].

        Returns:
          `(rows, cut)`. Rows `[n, ...]` hold `obs/<key>`, `reward`, `is_first`, `is_last` and
          `is_terminal`. Where `cut` [n] is true the env failed, so the episode it was in is over
          without another row (a truncation), and the row is the first of the next episode.

        Raises:
          EnvError: the budget of failures is exhausted.
        """
        flags = []
        for i in indices.tolist():
            if not self._tapes[i].in_flight:
                raise RuntimeError(f"env {i}: recv without send before it")
            flags.append(self._receive(i))
        cut = self._cut[indices]
        self._cut[indices] = False
        rows = self._buffers.rows(indices)
        rows["reward"] = np.array([f.reward for f in flags], np.float32)
        for name in ("is_first", "is_last", "is_terminal"):
            rows[name] = np.array([getattr(f, name) for f in flags], bool)
        return rows, cut

    def memory(self) -> list[int]:
        """Bytes that the process of each env has in RAM; 0 for one that runs here, or not at all."""
        return [self._seats[i].memory() if i in self._seats else 0 for i in range(self.num)]

    def state(self) -> Arrays:
        """The argument of `restore`, at any time, also between `send` and `recv`; waits for nothing."""
        tapes = to_arrays(self._tapes, len(self._buffers.action_of(0)))
        return tapes | {"cut": self._cut.copy(), "failures": np.array(self.failures, np.int64)}

    def restore(self, state: Arrays) -> np.ndarray:
        """Brings fresh envs back to where they were, by re-enactment.

        Every open episode is reset with its seed and its actions are taken again; all rows are
        compared with those of the first time. An env that does not repeat itself begins a new
        episode, and says so at its next `recv` (`cut`).

        Args:
          state: of `state`, from Workers of the same env, number and seed. The number of failures
            is restored; the window in which too many end the run begins anew.

        Returns:
          bool [N], the envs that did not repeat themselves.

        Raises:
          ValueError: the state is of other envs.
          EnvError: as `recv`.
        """
        actions, crcs = split(state, self.state())
        if any(tape.in_flight for tape in self._tapes):
            raise RuntimeError("restore after send: expected Workers that have not begun")
        self.failures = int(state["failures"])
        self._cut[:] = state["cut"]
        playing = []
        for i, tape in enumerate(self._tapes):
            tape.clear()
            tape.steps = int(state["steps"][i])
            tape.episode, tape.ended = int(state["episode"][i]), bool(state["ended"][i])
            if not tape.ended:
                tape.episode -= 1  # `_begin` adds it again
                self._begin(i)
                playing.append(i)
        # All envs together, step by step, so that processes re-enact at the same time.
        mismatch = np.zeros(self.num, bool)
        for t in range(max((len(c) for c in crcs), default=0)):
            playing = [i for i in playing if t < len(crcs[i]) and not mismatch[i]]
            for i in playing:
                mismatch[i] = not self._repeats(i, int(crcs[i][t]))
                if not mismatch[i] and t < len(actions[i]):
                    action = actions[i][t].tobytes()
                    self._buffers.put_again(i, action)
                    self._tapes[i].act(action)
                    self._seats[i].begin()
        for i in np.flatnonzero(mismatch).tolist():
            _log.warning(
                f"env {i} of {self.spec.id} did not repeat episode {self._tapes[i].episode} after the resume: the "
                "episode is cut (a truncation). `reverie check-env` says whether the env is deterministic"
            )
            self._cut[i] = True
            self._tapes[i].ended = True
            if state["in_flight"][i]:
                self._begin(i)
        return mismatch

    def close(self) -> None:
        """Ends all envs; processes that do not end by themselves within a second are killed."""
        for seat in self._seats.values():
            seat.hang_up()
        for seat in self._seats.values():
            seat.close()
        self._seats.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __exit__(self, *error: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------- episodes

    def _next_seed(self, i: int) -> int:
        return episode_seed(self._seed, i, self._tapes[i].episode + 1)

    def _begin(self, i: int) -> None:
        seed = self._next_seed(i)
        self._tapes[i].begin()
        self._seats[i].begin(seed)

    def _receive(self, i: int) -> Flags:
        """The result of env i, whatever it takes; notes in `_cut` if the open episode is lost."""
        tape = self._tapes[i]
        while True:
            try:
                flags = self._seats[i].result()
            except Fault as fault:
                # Before its first row an episode has nothing that could be cut.
                self._cut[i] |= len(tape.crcs) > 0
                self._revive(i, fault)
                self._begin(i)
            else:
                break
        tape.steps += 1
        tape.in_flight, tape.ended = False, flags.is_last
        if tape.ended:
            tape.clear()  # nothing to re-enact
            self.figures[i] = flags.figures
        else:
            tape.crcs.append(self._buffers.crc(i, flags[:4]))
        return flags

    def _repeats(self, i: int, crc: int) -> bool:
        """Whether the row that env i yields now is the one recorded as `crc`."""
        self._tapes[i].in_flight = False
        try:
            flags = self._seats[i].result()
        except Fault as fault:
            self._revive(i, fault)
            return False
        self._tapes[i].crcs.append(self._buffers.crc(i, flags[:4]))
        return self._tapes[i].crcs[-1] == crc

    # ------------------------------------------------------------------------------- failures

    def _revive(self, i: int, fault: Fault) -> None:
        """Replaces env i; it can be reset afterwards."""
        while True:
            self._count(i, fault)
            wait = FIRST_WAIT * 2 ** (len(self._tapes[i].failed_at) - 1)
            time.sleep(min(wait, LONGEST_WAIT))
            if i in self._seats:
                self._seats.pop(i).close()
            try:
                spaces = self._begin_build(i).spaces()
            except (Fault, UnusableEnv) as again:
                fault = Fault(f"it could not be built again: {again}")
                continue
            if spaces != (self.obs_space, self.act_space):
                fault = Fault("it came back with other spaces")
                continue
            self._seats[i].bind(self._buffers.obs, self._buffers.action)
            return

    def _count(self, i: int, fault: Fault) -> None:
        tape = self._tapes[i]
        self.failures += 1
        failures = tape.count_failure(self._window)
        last = {key: buffer[i].tolist() for key, buffer in self._buffers.action.items()} if tape.actions else None
        where = (
            f"env {i} of {self.spec.id} failed in episode {tape.episode} after "
            f"{amount(max(len(tape.crcs) - 1, 0), 'step')} of it ({amount(tape.steps, 'row')} in all); "
            f"last action {last or 'none since the reset'}; {fault}"
        )
        if failures > self._max_failures:
            raise EnvError(
                f"{amount(failures, 'failure')} within {amount(self._window, 'step')}, "
                f"{self._max_failures} are allowed. The last one: {where}"
            ) from fault
        _log.warning("%s\nThe episode is cut (a truncation) and the env rebuilt", where)

    # ------------------------------------------------------------------------------- building

    def _build_all(self) -> tuple[Spaces, Spaces]:
        try:
            seats = [self._begin_build(i) for i in range(self.num)]
            first, *others = [seat.spaces() for seat in seats]
        except Fault as fault:
            raise EnvError(f"{self.spec.id} could not be built: {fault}") from fault
        for i, spaces in enumerate(others, 1):
            if spaces != first:
                raise EnvError(f"env {i} of {self.spec.id} has other spaces than env 0: {spaces}, expected {first}")
        return first

    def _begin_build(self, i: int) -> Seat:
        spec, seed = self._specs[i], self._next_seed(i)
        if self.mode == "inline":
            self._seats[i] = Inline(spec, i, seed, self._deadline, self._passing)
        else:
            self._seats[i] = Process(spec, i, self.num, seed, self._fd, self._deadline, self._memory)
        return self._seats[i]


def episode_seed(seed: int, index: int, episode: int) -> int:
    """The seed of one episode of one env: a pure function, so that it can be re-enacted."""
    state = np.random.SeedSequence(seed, spawn_key=(index, episode)).generate_state(1)
    return int(state[0] >> 1)  # 31 bits: some envs keep their seed in a C int
