"""A trained agent in your hands: it acts, dreams, drives and thinks."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from reverie.actor import Actor, EpisodeMemory, require_mode, rows_of
from reverie.agent import CONTEXT_ROWS, DREAMT, Dream, Mode, as_driving, as_searching
from reverie.algos.dreamer.planning import TREES
from reverie.assembly import env_here, make_agent
from reverie.behavior.search import SearchResult
from reverie.behavior.tree import ILLEGAL
from reverie.config import Config, ConfigError
from reverie.envs.base import Arrays, Step
from reverie.envs.spec import EnvSpec
from reverie.envs.workers import episode_seed
from reverie.export import export
from reverie.fields import amount
from reverie.replay.rows import Row
from reverie.replay.segments import Segments
from reverie.resolve import searching
from reverie.run import dreams, experience
from reverie.run.checkpoint import Checkpoint
from reverie.run.directory import RunDirectory
from reverie.run.snapshot import agent_state
from reverie.saved import reading
from reverie.view.tree import Branches, SearchReport

logger = logging.getLogger("reverie")

FILM = 300  # frames after which a video ends with the episode


class LoadedAgent(Actor):
    """A trained agent, from `reverie.load`. Acts in the env's own words: raw observations in, raw actions out.

    Attributes:
      config: of its run, with the search that was asked for.
      step: env steps it was trained for.
      moment: the same, plus the updates if these came after them: of names and random keys.
      env: one of its kind, as the agent sees it.
    """

    def __init__(self, path: Path, conf: Config, spec: EnvSpec, checkpoint: Checkpoint) -> None:
        self.path, self.config, self.spec = path, conf, spec
        self.step, self.moment = checkpoint.meta["progress"]["step"], checkpoint.step
        env = env_here(spec)
        agent = make_agent(conf, env.obs_space, env.act_space)
        with reading(checkpoint.path):
            state = agent_state(agent, checkpoint)
        super().__init__(agent, state, env, conf.run.seed, f"{conf.id or path} after {amount(self.step, 'step')}")
        self._dream = jax.jit(self.agent.dream, static_argnums=2)
        self._think: dict[int | None, Callable[..., Any]] = {}  # by the number of simulations
        self._replay = checkpoint.meta["replay"]

    def export(self, path: str | os.PathLike[str], mode: Mode = "eval", envs: int = 1) -> Path:
        """Writes this agent as StableHLO, which acts with JAX and NumPy alone: `reverie.export` says what lies there.

        Args:
          path: a directory; made if missing, and what an earlier export left in it is replaced.
          mode: in which it acts, as of `act`.
          envs: N, observations that one call takes.

        Returns:
          the directory. `python <path>/example.py` acts once.

        Raises:
          ConfigError: there is no such mode or number.
        """
        if envs < 1:
            raise ConfigError(f"envs must be 1 or more, got {envs}")
        require_mode(mode)
        export(Path(path), self.agent, self.state, self.env, self.config, mode, envs)
        return Path(path)

    def require_pictures(self) -> None:
        """Raises ConfigError if the env draws nothing; begins an episode to see it."""
        self.env.reset(0)
        if self.env.render() is None:
            raise ConfigError(
                f"{self.spec.id} draws no pictures: it needs a render() that returns uint8 "
                f'[H, W, 3], and "rgb_array" in metadata["render_modes"]'
            )

    def film(self, seed: int = 0, mode: Mode = "eval") -> list[np.ndarray]:
        """Frames, uint8 `[H, W, 3]`, of episodes in this mode: as many as make a video of some seconds.

        Raises:
          ConfigError: the env cannot draw.
        """
        self.require_pictures()
        frames: list[np.ndarray] = []
        episode = 0
        while len(frames) < FILM:
            for _ in self._episode(episode_seed(seed, 0, episode), mode):
                frame = self.env.render()
                if frame is None:
                    raise ConfigError(f"{self.spec.id} drew {len(frames)} pictures, and then none")
                frames.append(frame)
            episode += 1
        return frames

    def rows(self, sequences: int = 4, length: int = DREAMT, fresh: bool = False, seed: int = 0) -> Row:
        """Sequences to dream from: the agent's rows of context (`agent.context`), then `length` rows.

        Args:
          sequences: how many, B.
          length: T, without the context.
          fresh: play greedy episodes, one stream of them per sequence, from their first row on. Otherwise the
            sequences come from the run's own replay, as it was at the checkpoint; if it is gone, they are played too.
          seed: of the draw, or of the episodes.

        Returns:
          key of a row -> `[B, C + T, ...]` (`docs/shapes.md`), what `dream` and `Agent.report` take. Where the
          replay holds no stretch that long, a shorter one is filled up with rows that begin an episode.
        """
        for name, value in (("sequences", sequences), ("length", length)):
            if value < 1:
                raise ConfigError(f"{name} must be 1 or more, got {value}")
        run, total = self.config.run, self.agent.context + length
        if not fresh:
            replay = experience.replay_of(replace(run, replay_on="host"), self.agent)
            directory = RunDirectory(self.path).replay
            with reading(directory):
                Segments(directory, self.config.id).load(replay, self._replay)
            if replay.longest > self.agent.context + 1:
                return dreams.look(replay, sequences, total, np.random.default_rng(seed))
            logger.warning("the replay of %s is gone: fresh episodes are played instead", self.path)
        return dreams.play(run, self.agent, self.state, self.spec, sequences, total, seed)

    def dream(
        self,
        sequences: int = 4,
        length: int = DREAMT,
        seen: int = CONTEXT_ROWS,
        fresh: bool = False,
        seed: int = 0,
        rows: Row | None = None,
    ) -> Dream:
        """The model's open-loop predictions of real sequences: it sees their first rows, then only the actions.

            dream = agent.dream()
            error = dream.dream["obs/image"] - dream.truth["obs/image"]   # float32 [B, T, H, W, C]
            error[~dream.valid] = numpy.nan                               # there an episode had begun

        Args:
          sequences, length, fresh, seed: of `rows`, B and T; not looked at if `rows` is given.
          seen: rows the model is shown, 1 to T - 1.
          rows: the sequences to dream from, `[B, C + T, ...]`, as `rows()` returns them.

        Returns:
          numpy arrays `[B, T, ...]` under `obs/<key>` and `reward`, in `truth` and in `dream`, and `valid` `[B, T]`;
          `Dream` says more.

        Raises:
          ConfigError: there are fewer than two rows, or not 1 to T - 1 of them are seen.
        """
        rows = self.rows(sequences, length, fresh, seed) if rows is None else rows
        _require_rest(seen, rows["reward"].shape[1] - self.agent.context, "dreamt")
        dream: Dream = jax.device_get(self._dream(self.state, rows, seen))
        return dream

    def drive(
        self, sequences: int = 4, length: int = DREAMT, seen: int = CONTEXT_ROWS, fresh: bool = False, seed: int = 0
    ) -> Row:
        """The policy's trajectory in the model's imagination alone, after a few real rows.

        Args:
          sequences, fresh, seed: of `rows`.
          length: T of what comes back, of which the first `seen` rows are real; then the policy acts greedily.

        Returns:
          numpy arrays `[B, T, ...]`: decoded `obs/<key>`, `reward`, and `valid`; `Dreamer.drive` says more.

        Raises:
          ConfigError: not 1 to T - 1 rows are seen, or the algorithm decodes nothing.
        """
        agent = as_driving(self.agent)
        if agent is None:
            raise ConfigError(f"{self.config.algorithm} cannot show what it imagines: a Dreamer decodes its latents")
        _require_rest(seen, length, "imagined")
        rows, drive = self.rows(sequences, seen, fresh, seed), jax.jit(agent.drive, static_argnums=2)
        driven: Row = jax.device_get(drive(self.state, rows, length - seen))
        return driven

    def think(
        self,
        step: int = 0,
        seed: int = 0,
        simulations: int | None = None,
        obs: Any = None,
        carry: EpisodeMemory | None = None,
        action_mask: Any = None,
    ) -> SearchReport:
        """The search behind one greedy decision: what the network proposed, what was looked at, what came of it.

        Args:
          step: of a greedy episode, 0 its beginning; in games of two the agent moves for both.
          seed: of the episode.
          simulations: of this search; those of the run if left out. What led here was played with those of the run.
          obs, carry, action_mask: instead of playing to a step: what `act` takes.

        Raises:
          ConfigError: the algorithm does not search, or the episode ends before this step.
        """
        agent = as_searching(self.agent)
        if agent is None or getattr(self.config.agent, "planner", TREES[0]) not in TREES:
            raise ConfigError(
                f"{self.config.algorithm} does not search, so there is no tree of what it thinks: "
                f"`reverie dream {shlex.quote(str(self.path))}` shows what it imagines, and where actions are one "
                "discrete choice --planner gumbel has a Dreamer search"
            )
        if step < 0:
            raise ConfigError(f"--step must be 0 or more, got {step}")
        if simulations is not None:
            more = searching(self.config, None, simulations)
            agent = as_searching(make_agent(more, self.env.obs_space, self.env.act_space))
            assert agent is not None, more
        if simulations not in self._think:
            self._think[simulations] = jax.jit(agent.think)
        seen, carry = self._reach(step, seed) if obs is None else (self._observe(obs, action_mask), carry)
        held, first = self._memory_of(carry, 1, "eval")
        rows = rows_of([seen], first)
        actions, found = jax.device_get(self._think[simulations](self.state, held.inner, rows))
        player = rows.get("obs/player")
        return search_report(agent.enumerated, actions, found, None if player is None else int(player[0]))

    def _reach(self, step: int, seed: int) -> tuple[Arrays, EpisodeMemory | None]:
        """The observation at a step of a greedy episode, and the carry with which it is decided."""
        for played, (now, carry) in enumerate(self._episode(episode_seed(seed, 0, 0), "eval")):
            if played == step and not now.is_last:
                return now.obs, carry
        raise ConfigError(
            f"the greedy episode of --seed {seed} has {played} decisions, and there is no --step {step} in it: "
            f"type --step 0 to {played - 1}, or another --seed"
        )

    def _episode(self, seed: int, mode: Mode) -> Iterator[tuple[Step, EpisodeMemory | None]]:
        """Plays an episode: what is seen, its end included, and the carry with which is decided what to do."""
        now, carry = self.env.reset(seed), None
        while True:
            yield now, carry
            if now.is_last:
                return
            (action,), carry = self._decide([now.obs], carry, mode)
            now = self.env.step(action)


def _require_rest(seen: int, length: int, what: str) -> None:
    if not 0 < seen < length:
        raise ConfigError(f"of {length} rows 1 to {length - 1} can be seen, got seen={seen}: the rest is {what}")


def search_report(
    enumerated: bool, actions: Mapping[str, np.ndarray], found: SearchResult, player: int | None
) -> SearchReport:
    """A search of one root, in numpy arrays.

    Args:
      enumerated: as of `Searches`.
      actions: that the root chose among, `[A, ...]` by key.
      player: who moves there, in a game of two.
    """
    tree = jax.tree.map(lambda x: x[0], found.tree)
    policy, visits, q = (np.asarray(x[0]) for x in (found.policy, found.visits, found.q))
    names = [_name_of({k: x[a, ...] for k, x in actions.items()}) for a in range(len(policy))]
    inside = names if enumerated else [f"#{a}" for a in range(len(names))]

    # Slots that a limit of depth left empty have no parent either.
    nodes = np.flatnonzero((tree.parent >= 0) | (np.arange(len(tree.parent)) == 0))
    parents, taken = tree.parent[nodes], tree.action[nodes]
    label = [
        "" if parent < 0 else f"c{a}" if tree.chance[parent] else inside[a] if parent else names[a]
        for parent, a in zip(parents, taken, strict=True)
    ]
    logits = tree.logits[0, : len(policy)]
    return SearchReport(
        actions=names,
        legal=logits > ILLEGAL,
        prior=np.where(logits > ILLEGAL, np.exp(logits), 0.0),
        policy=policy,
        visits=visits[: len(policy)],
        q=q[: len(policy)],
        chosen=int(found.action[0]),
        player=player,
        raw=float(tree.raw[0]),
        value=float(found.value[0]),
        tree=Branches(
            parent=np.searchsorted(nodes, parents).astype(np.int32) - (parents < 0),
            action=taken,
            name=label,
            visits=tree.visits[nodes],
            q=np.where(parents < 0, tree.value[0], tree.q[parents, taken]),
            chance=tree.chance[nodes],
        ),
    )


def _name_of(action: Mapping[str, np.ndarray]) -> str:
    """An action as text: class numbers, and vectors in [-1, 1]."""
    number = lambda x: f"{x:+.2f}" if np.issubdtype(np.asarray(x).dtype, np.floating) else str(x)
    parts = {k: " ".join(number(x) for x in np.ravel(value)) for k, value in action.items()}
    return next(iter(parts.values())) if len(parts) == 1 else ", ".join(f"{k} {text}" for k, text in parts.items())
