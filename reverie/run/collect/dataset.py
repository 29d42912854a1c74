"""Episodes that somebody else recorded: a folder of .npz files, or a Minari data set.

An .npz file is one episode of T steps in the env's own words:

    obs         [T + 1, ...]   what was seen, the end included; of a Dict space one array per leaf: obs/<key>
    action      [T, ...]       or action/<key>
    reward      [T]            reward t came with obs t + 1
    terminated  bool [T]       true at most in the last step
    truncated   bool [T]       likewise; an episode that neither ends is one whose recording ended

Every step passes the gate that an env's steps pass.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from reverie.config import ConfigError
from reverie.envs.base import Arrays, Env, Step
from reverie.envs.build import make_env
from reverie.envs.spaces import leaves, normaliser
from reverie.envs.spec import EnvSpec
from reverie.envs.values import Gate, Malformed, problem
from reverie.envs.wrappers import innermost, observe
from reverie.files import Folder
from reverie.replay.rows import Field, Row
from reverie.replay.sequences import Replay

MINARI = "minari:"  # before the name of a data set of Minari
LARGEST = 1 << 34  # bytes of a file of one episode


class Recording(NamedTuple):
    """One episode in the env's own words: nested observations and actions, `[T + 1]` and `[T]` of them."""

    name: str
    obs: Any
    action: Any
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class Dataset:
    """Episodes of an env to learn from, as rows, for a replay of so many streams: a folder of .npz files, or
    `minari:<id>`.

    Raises:
      ConfigError: there is no such data, or it is not of this env; names the episode, the step and what was expected.
    """

    def __init__(self, path: str, spec: EnvSpec, streams: int) -> None:
        self.path, self.streams = path, streams
        with closing(make_env(spec)) as env:
            if innermost(env) is None:
                raise ConfigError(f"{spec.id} is no Gymnasium env, in whose words data could be: run it instead")
            if spec.action_repeat > 1:
                raise ConfigError("--action-repeat cannot be applied to what was recorded: leave it out")
            self.obs_space, self.act_space = env.obs_space, env.act_space  # as an agent sees them
            self.episodes = [_rows(recording, env) for recording in _recordings(path)]  # `[T + 1, ...]` of each
        if not self.episodes:
            raise ConfigError(f"{path}: there are no episodes, expected files such as episode-0.npz")

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(len(episode["reward"]) for episode in self.episodes)

    def check(self, fields: Mapping[str, Field], streams: int, search_keys: bool) -> None:
        """Raises ConfigError where what a search found is to be learned from: nobody recorded that."""
        if search_keys and any(key.startswith("out/") for key in fields):
            raise ConfigError(
                f"{self.path} holds nothing of a search that could be learned from. Train a Dreamer from it"
            )

    def pour(self, replay: Replay) -> None:
        """Fills an empty replay, every episode into the stream that has the fewest rows; `out/` is zero."""
        lengths = np.zeros(self.streams, np.int64)
        for episode in self.episodes:
            stream = int(lengths.argmin())
            steps = len(episode["reward"])
            rows: Row = {key: np.zeros((steps, 1, *field.shape), field.dtype) for key, field in replay.fields.items()}
            for key, value in episode.items():
                rows[key][:, 0] = value
            replay.extend(np.array([stream]), rows)
            lengths[stream] += steps


def holds(path: str) -> bool:
    """Whether a path is one of recorded episodes, and no run."""
    return path.startswith(MINARI) or (Path(path).is_dir() and any(Path(path).glob("*.npz")))


def _recordings(path: str) -> Iterator[Recording]:
    if path.startswith(MINARI):
        yield from _minari(path.removeprefix(MINARI))
        return
    folder = Folder(Path(path))
    for name in folder.names():
        if name.endswith(".npz"):
            yield _npz(name, folder.read(name, LARGEST))


def _npz(name: str, data: bytes) -> Recording:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{name}: no .npz of plain arrays ({error})") from None
    missing = [key for key in ("reward", "terminated", "truncated") if key not in arrays]
    missing += [key for key in ("obs", "action") if not any(x == key or x.startswith(f"{key}/") for x in arrays)]
    if missing:
        raise ConfigError(f"{name}: {', '.join(missing)} missing, among {sorted(arrays)}")
    ends = (np.asarray(arrays[key]) for key in ("reward", "terminated", "truncated"))
    return Recording(name, _nest("obs", arrays), _nest("action", arrays), *ends)


def _nest(top: str, arrays: Mapping[str, np.ndarray]) -> Any:
    """`obs/arm/grip` as `{"arm": {"grip": ...}}`."""
    if top in arrays:
        return arrays[top]
    tree: dict[str, Any] = {}
    for key, value in arrays.items():
        first, *path = key.split("/")
        if first == top:
            node = tree
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = value
    return tree


def _minari(name: str) -> Iterator[Recording]:
    try:
        import minari
    except ImportError:
        raise ConfigError('data sets of Minari need its package: type `pip install "reverie[minari]"`') from None
    try:
        found = minari.load_dataset(name)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"{MINARI}{name}: {error}. `minari list local` names what is here") from error
    for one in found.iterate_episodes():
        ends = (np.asarray(x) for x in (one.rewards, one.terminations, one.truncations))
        yield Recording(f"episode {one.id}", one.observations, one.actions, *ends)


def _rows(recording: Recording, env: Env) -> Row:
    """An episode as rows `[T + 1, ...]`, every step of it sound."""
    name, steps = recording.name, len(recording.reward)
    for what, length in (("obs", steps + 1), ("action", steps), ("terminated", steps), ("truncated", steps)):
        given = {len(x) if np.ndim(x) else 0 for x in _flat(getattr(recording, what)).values()}
        if given != {length}:
            wording = " and ".join(str(x) for x in sorted(given)) or "no"
            raise ConfigError(f"{name}: {what} has {wording} rows and reward {steps}, expected {length} of {what}")
    for what, flags in (("terminated", recording.terminated), ("truncated", recording.truncated)):
        if flags.dtype != bool or flags.ndim != 1 or flags[:-1].any():
            raise ConfigError(
                f"{name}: {what} is {flags.dtype} {list(flags.shape)}, expected bool [{steps}], true in the last step "
                "at most: a file is one episode"
            )
    gate = Gate(env.obs_space)
    rewards = np.concatenate([[0.0], recording.reward.astype(np.float64)])
    ended = steps > 0 and bool(recording.terminated[-1])
    seen: list[Arrays] = []
    for t in range(steps + 1):
        try:
            obs = observe(env, _at(recording.obs, t))
            gate.check(Step(obs, float(rewards[t]), t == 0, t == steps, ended and t == steps))
        except (Malformed, ValueError, TypeError) as error:
            raise ConfigError(f"{name}, step {t}: {error}") from error
        seen.append(obs)
    rows = {f"obs/{key}": np.stack([x[key] for x in seen]) for key in env.obs_space}
    number = np.arange(steps + 1)
    rows |= {"reward": rewards.astype(np.float32), "is_first": number == 0, "is_last": number == steps}
    rows["is_terminal"] = rows["is_last"] & ended
    return rows | {f"action/{key}": x for key, x in _actions(recording, env).items()}


def _actions(recording: Recording, env: Env) -> Arrays:
    """Actions `[T + 1, ...]` in [-1, 1] and class numbers; that of the last row has no effect and is zero."""
    inside = innermost(env)
    assert inside is not None, env
    given, out = _flat(recording.action), {}
    for key, leaf in leaves(inside.env.action_space, inside.act_space).items():
        value = given.get(key, given.get("") if len(inside.act_space) == 1 else None)
        if value is None:
            raise ConfigError(f"{recording.name}: action/{key} is missing, among {sorted(given)}")
        space = env.act_space[key]
        each = normaliser(leaf)(value)
        for t in range(len(each)):
            if fault := problem(each[t, ...], space):
                raise ConfigError(f"{recording.name}, step {t}: action/{key}, in [-1, 1] or as a class: {fault}")
        out[key] = np.concatenate([each, np.zeros((1, *space.shape), space.dtype)])
    return out


def _is_array(value: Any) -> bool:
    return not isinstance(value, dict | tuple)


def _flat(tree: Any) -> dict[str, np.ndarray]:
    """Nested arrays by the names that the adapter gives them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_array)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in leaves}


def _at(tree: Any, t: int) -> Any:
    """The element t of nested arrays."""
    return jax.tree.map(lambda x: x[t], tree, is_leaf=_is_array)
