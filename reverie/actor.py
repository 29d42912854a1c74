"""An agent that acts in its env's own words. What comes in is held to what training holds an env to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import jax
import numpy as np

from reverie.agent import Agent, Carry, Mode, State, select
from reverie.config import ConfigError
from reverie.envs.base import Arrays, Env, Spaces, Step
from reverie.envs.masks import METHOD_CALL
from reverie.envs.values import Gate, Malformed
from reverie.envs.wrappers import masks, native_action, observe
from reverie.fields import INT64, short
from reverie.replay.rows import Row
from reverie.run.counted_jit import CountedJit
from reverie.run.jitted import JittedAgent

DRAWS: frozenset[Mode] = frozenset({"train", "sample", "random"})  # modes in which episodes are to differ


@partial(jax.tree_util.register_dataclass, data_fields=["inner"], meta_fields=["owner", "envs"])
@dataclass(frozen=True)
class EpisodeMemory:
    """The memory of an agent's open episodes between two decisions."""

    inner: Carry  # of the policy, arrays `[N, ...]` and a random key
    owner: str  # the agent that remembers, in words
    envs: int  # N


class Actor:
    """Decisions of one agent with the parameters of `state`.

    `act` takes anything, hence its annotations `... | Any`, and refuses what is wrong with a sentence.

    Args:
      env: one of the kind that it was trained in; it translates, and is not stepped.
      seed: of random keys, where the caller gives none.
      owner: the agent in words, for a refusal.
    """

    def __init__(self, agent: Agent, state: State, env: Env, seed: int, owner: str) -> None:
        self.agent, self.state, self.env = agent, state, env
        self._seed, self._owner = seed, owner
        self._gate = Gate(env.obs_space)
        # By the number of envs.
        self._policy = defaultdict[int, dict[Mode, CountedJit]](lambda: JittedAgent(agent).policy)
        self._begun = 0  # calls that began episodes in a mode that draws

    def act(
        self,
        obs: Any,
        carry: EpisodeMemory | Any = None,
        mode: Mode | Any = "eval",
        seed: int | Any = None,
        action_mask: Any = None,
    ) -> tuple[Any, EpisodeMemory]:
        """One decision.

        Args:
          obs: an observation of the Gymnasium env itself, without batch axis.
          carry: what the last call returned; None to begin an episode.
          mode: `eval` is greedy, `sample` draws from the policy, `train` explores besides, `random` ignores the
            network.
          seed: of what the episode that begins here draws. Left out, `eval` draws the same in every episode, and the
            other modes anew in each, so that the same program does the same.
          action_mask: what may be done now, where the env says that apart from the observation:
            `info["action_mask"]`, or what its `action_masks()` returns.

        Returns:
          `(action, carry)`; the action is ready for the Gymnasium env's `step`.

        Raises:
          envs.values.Malformed: the observation is none that training would take (not finite, out of bounds, another
            shape, dtype or key, a batch), or the mask is not, or the carry is of another agent or of several envs.
          ConfigError: there is no such mode, or no such seed; or a mask is missing, or there is one too many.
        """
        (action,), held = self._decide([self._observe(obs, action_mask)], carry, mode, seed)
        return native_action(self.env, action), held

    def act_batch(
        self,
        obs: Any,
        carry: EpisodeMemory | Any = None,
        first: Any = None,
        mode: Mode | Any = "eval",
        seed: int | Any = None,
        action_mask: Any = None,
    ) -> tuple[Any, EpisodeMemory]:
        """One decision for each of N envs, such as those of a `gymnasium.vector` env.

            actions, carry = agent.act_batch(obs, carry, first=terminated | truncated)

        Args:
          obs: as a vector env gives it, every array with an axis [N] in front; or a list of N observations.
          carry: what the last call returned; None to begin an episode in every env.
          first: bool `[N]`, envs in which an episode begins with `obs`; none of them if left out.
          mode, seed: as of `act`; the envs draw independently.
          action_mask: N of what `act` takes, stacked or as a list.

        Returns:
          `(actions, carry)`; the actions are stacked, `[N, ...]`, ready for the `step` of a vector env.

        Raises:
          envs.values.Malformed, ConfigError: as `act`; names the env.
        """
        seen, several = [], _apart(obs)
        if action_mask is not None and len(action_mask) != len(several):
            raise Malformed(
                f"action_mask: {len(action_mask)} of them, expected {len(several)}, one for each observation"
            )
        for at, each in enumerate(several):
            try:
                seen.append(self._observe(each, None if action_mask is None else action_mask[at]))
            except Malformed as error:
                raise Malformed(f"env {at}: {error}") from error
        actions, held = self._decide(seen, carry, mode, seed, first)
        return jax.tree.map(lambda *each: np.stack(each), *[native_action(self.env, x) for x in actions]), held

    def _decide(
        self, seen: Sequence[Arrays], carry: Any, mode: Mode | Any, seed: Any = None, first: Any = None
    ) -> tuple[list[Arrays], EpisodeMemory]:
        """Actions in [-1, 1] and class numbers, of what N envs show. Arguments and errors: those of `act_batch`."""
        held, begins = self._memory_of(carry, len(seen), mode, seed)
        if first is not None:
            first = np.asarray(first)
            if first.dtype != bool or first.shape != begins.shape:
                raise Malformed(
                    f"first is {first.dtype} {list(first.shape)}, expected bool [{len(seen)}]: where an episode begins"
                )
            begins = begins | first
        inner, action, _ = self._policy[len(seen)][mode](self.state, held.inner, rows_of(seen, begins))
        action = {key: np.asarray(x) for key, x in select(action, "action/").items()}
        single = [{key: x[at, ...] for key, x in action.items()} for at in range(len(seen))]
        return single, EpisodeMemory(inner, self._owner, len(seen))

    def _observe(self, obs: Any, mask: Any = None) -> Arrays:
        """The agent's observation where the env itself shows `obs`, and allows the actions of `mask`.

        Raises:
          ConfigError: a mask is missing, or there is one too many.
          Malformed: training would not have taken it either; says what it is and what was expected.
        """
        space, source = self.env.obs_space, masks(self.env)
        if source and mask is None:
            given = "mask" if source == METHOD_CALL else source
            raise ConfigError(f"this env says which actions are legal ({source}): act(obs, carry, action_mask={given})")
        if mask is not None and not source:
            where = "they are a part of the observation" if "legal" in space else "it has none"
            raise ConfigError(
                f"this env tells no action masks beside its observations ({where}): leave action_mask out"
            )
        try:
            seen = observe(self.env, obs, mask)
            if not isinstance(seen, Mapping):
                raise Malformed(f"obs: {short(obs)}, expected a dict with the keys {list(space)}")
            seen = {key: np.asarray(x) for key, x in seen.items()}
            self._gate.check(Step(seen, 0.0, True, False, False))
        except Malformed as error:
            raise Malformed(f"{error}{_advice(obs, space)}") from None
        except Exception as error:  # of an object that is anybody's, on its way into arrays
            wording = ", ".join(f"obs/{key} {x.describe()}" for key, x in space.items())
            reason, advice = f"{type(error).__name__}: {short(str(error))}", _advice(obs, space)
            raise Malformed(f"obs: {short(obs)} is no observation ({reason}), expected {wording}{advice}") from error
        return seen

    def _memory_of(self, carry: Any, envs: int, mode: Any, seed: Any = None) -> tuple[EpisodeMemory, np.ndarray]:
        """The carry of `envs` envs, and where an episode begins, bool `[N]`: everywhere or nowhere.

        Raises:
          ConfigError: there is no such mode; or a seed that is none, or that comes too late.
          Malformed: the carry is not of this agent, of another number of envs, or was changed.
        """
        require_mode(mode)
        if seed is not None and not (type(seed) is int and 0 <= seed <= INT64):
            raise ConfigError(f"seed must be a whole number, 0 or more, got {short(seed)}")
        if carry is None:
            key = jax.random.key(self._seed if seed is None else seed)
            if seed is None and mode in DRAWS:
                key = jax.random.fold_in(key, self._begun) if self._begun else key
                self._begun += 1
            return EpisodeMemory(self.agent.init_carry(envs, key), self._owner, envs), np.ones(envs, bool)
        if seed is not None:
            raise ConfigError("seed is of a whole episode: give it where one begins, with carry=None")
        if fault := self._fault(carry, envs):
            raise Malformed(f"carry: {fault}; expected what the last call returned, or None to begin an episode")
        return carry, np.zeros(envs, bool)

    def _fault(self, carry: Any, envs: int) -> str:
        """The fault of a carry that somebody gives; empty if there is none."""
        if not isinstance(carry, EpisodeMemory):
            return f"a {type(carry).__name__}"
        if carry.owner != self._owner:
            return f"of another agent ({carry.owner}), and this is {self._owner}"
        if carry.envs != envs:
            return f"of {carry.envs} envs, and this is an observation of {envs}"
        like = jax.eval_shape(lambda: self.agent.init_carry(envs, jax.random.key(0)))
        if _arrays(like) != _arrays(carry.inner):
            return "it was changed"
        floats = [x for x in jax.tree.leaves(carry.inner) if jax.numpy.issubdtype(x.dtype, np.inexact)]
        if not all(np.isfinite(np.asarray(x, np.float32)).all() for x in floats):
            return "it holds values that are not finite"
        return ""


def require_mode(mode: Any) -> None:
    """Raises ConfigError if there is no such mode."""
    if not isinstance(mode, str) or mode not in get_args(Mode):
        raise ConfigError(f"mode must be one of {', '.join(get_args(Mode))}, got {short(mode)}")


def rows_of(seen: Sequence[Arrays], first: np.ndarray) -> Row:
    """The input of a policy, arrays `[N, ...]`: N observations, and where an episode begins."""
    table = {f"obs/{key}": np.stack([each[key] for each in seen]) for key in seen[0]}
    flags = {"is_first": first, "is_last": np.zeros_like(first), "is_terminal": np.zeros_like(first)}
    return {**table, **flags, "reward": np.zeros(len(seen), np.float32)}


def _arrays(tree: Any) -> list[Any]:
    """Place, shape and dtype of every leaf."""
    return [(path, np.shape(x), getattr(x, "dtype", None)) for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _apart(obs: Any) -> list[Any]:
    """N observations, out of a list of them or of one whose every leaf has an axis [N] in front.

    Raises Malformed if there is no such N.
    """
    if isinstance(obs, list):
        if not obs:
            raise Malformed("obs: an empty list, expected the observations of one env or more")
        return obs
    leaves, structure = jax.tree.flatten(obs, is_leaf=lambda x: not isinstance(x, dict | tuple))
    lengths = {np.shape(x)[:1] if isinstance(x, np.ndarray | jax.Array) else () for x in leaves}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        raise Malformed(
            f"obs: {short(obs)}, expected a list of observations, or one as a vector env gives it, in which every "
            "array has an axis [N] in front; of one env, `act` takes it"
        )
    ((num,),) = lengths
    return [jax.tree.unflatten(structure, [x[at] for x in leaves]) for at in range(num)]


def _advice(obs: Any, space: Spaces) -> str:
    """The nearest known word, as the end of a sentence."""
    if isinstance(obs, tuple) and len(obs) == 2 and isinstance(obs[1], Mapping):
        return ". It looks like (obs, info), as reset() returns it: give obs alone, `obs, info = env.reset()`"
    values = obs if isinstance(obs, Mapping) else dict.fromkeys(space, obs)
    if all(len(getattr(values.get(key), "shape", ())) == len(x.shape) + 1 for key, x in space.items()):
        return ". It looks like a batch: act takes one observation, act_batch those of N envs"
    return ""
