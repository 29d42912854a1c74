"""The config of a run, of all that has a say: the saved one, a preset, the choices for its env, the flags typed.

In rising order: the defaults of the algorithm (of a run that is continued: its own values), a preset, what was chosen
by what the env shows, and what a person typed. The command line and the library both ask here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from reverie import config, fields, presets
from reverie.assembly import spec_of
from reverie.config import Config, ConfigError
from reverie.envs.spec import EnvLike, EnvSpec, env_spec
from reverie.run.trust import check_code


def resolve(
    algorithm: str,
    typed: Callable[[Config], Config],
    *,
    saved: Config | None,
    preset: str = "",
    env: str = "",
    chosen: Mapping[str, Any] | None = None,
    trust: Collection[str] = (),
) -> tuple[Config, str]:
    """The config of a run, and the preset that it has.

    Args:
      typed: puts the values that a person typed in place of those it is given.
      saved: of the run that is continued, if one is.
      preset: that was asked for; else a new run has the one that was made for `env`, if any.
      chosen: values that count less than what is typed (`defaults.choices`).
      trust: names of values that a person typed, and that may therefore name code.

    Raises:
      NeedsTrust: (a ConfigError) the saved config, or a preset in a file, names code that nobody typed.
      ConfigError: an unknown name, a value that cannot be, another algorithm than the run's, or values that
        contradict what is saved; names all that do.
    """
    if saved and saved.algorithm != algorithm:
        raise ConfigError(
            f"this run was begun with {saved.algorithm}, and {algorithm} cannot continue it. Type {saved.algorithm} in "
            f"place of {algorithm} to continue it, or give a new run another directory with --run"
        )
    preset = preset or ("" if saved else config.preset_for(algorithm, env))
    base = config.apply_preset(saved or config.default(algorithm), preset)
    given = typed(config.override(base, **(chosen or {})))
    if saved is None and presets.is_file(preset):
        check_code(trust, spec_of(given.run), given.run.collector, "a preset runs no code that only its file names")
    return settle(saved, given, trust), preset


def settle(saved: Config | None, given: Config, trust: Collection[str] = ()) -> Config:
    """The config to run: `given`, or the saved config with what may change in it. `trust` is as of `resolve`.

    Raises:
      NeedsTrust: (a ConfigError) the saved config names other code.
      ConfigError: no env is named, a new run asks for what its algorithm cannot do, or `given` contradicts what is
        saved; names all that do.
    """
    if not given.run.env:
        raise ConfigError("which env? Type for example --env CartPole-v1")
    if saved is None:
        if given.run.within_episodes and hasattr(given.agent, "n_step"):
            raise ConfigError(
                f"--within-episodes, but {given.algorithm} learns from a row together with those after it: the last "
                "ones of an episode would never be learned from. Leave it out: what lies beyond an end is masked anyway"
            )
        if given.run.rare_share and getattr(given.agent, "prioritized", False):
            raise ConfigError(
                "--rare-share, but sequences are drawn by priority: leave it out, or type --no-prioritized"
            )
        return given
    own = {key: getattr(saved.run, key) for key in config.ON_DISK}
    own = {key: value for key, value in own.items() if config.same_file(getattr(given.run, key), value)}
    given = config.override(given, **own)
    if clashes := config.contradictions(saved, given):
        width = max(len(fields.flag(name)) for name, _, _ in clashes)
        lines = [f"{fields.flag(n):{width}}  saved {s!r}, given {g!r}" for n, s, g in clashes]
        raise ConfigError(
            "this run was begun with other values:\n  "
            + "\n  ".join(lines)
            + "\nLeave them out to continue it, or give a new run another directory with --run"
        )
    check_code(trust, spec_of(saved.run), saved.run.collector)
    return config.continuation(saved, given)


def again(env: EnvLike | None, own: EnvSpec) -> EnvSpec:
    """The env of a run, `own`, as a person gives it again; a name or a function takes over what was said about it.

    Raises ConfigError if the name is another.
    """
    if env is None or (isinstance(env, str) and config.same_file(env, own.id)):
        return own
    if isinstance(env, EnvSpec):
        return env
    if isinstance(env, str):
        raise ConfigError(f"--env {env}, but this run was trained in {own.id}: type that, or leave it out")
    given = env_spec(env)
    return dataclasses.replace(own, factory=given.factory) if given.id == own.id else given


def searching(conf: Config, planner: str | None, simulations: int | None, planner_scale: float | None = None) -> Config:
    """`conf` with another search when acting; what is None stays.

    Raises:
      ConfigError: the algorithm has no planner, there is none that could make simulations, or less than 1 of them.
    """
    search = {"planner": planner, "simulations": simulations, "planner_scale": planner_scale}
    own: dict[str, Any] = {name: value for name, value in search.items() if value is not None}
    if planner is not None:
        if not hasattr(conf.agent, "planner"):
            own_way = "it searches in its own way, and --simulations N says how much"
            has = own_way if hasattr(conf.agent, "simulations") else "it does not search"
            raise ConfigError(f"--planner {planner}, but {conf.algorithm} has no planner: {has}")
        if hasattr(conf.agent, "improve"):
            own["improve"] = 0.0  # which is a loss, and of no concern here
    if simulations is not None and own.get("planner", getattr(conf.agent, "planner", "")) == "none":
        raise ConfigError(f"--simulations {simulations}, but nothing searches: add --planner gumbel")
    try:
        return config.override(conf, **own)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
