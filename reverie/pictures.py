"""The verbs that draw: dream and think."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reverie import files
from reverie.config import ConfigError
from reverie.fields import amount
from reverie.flags import Dream, Think, VerbResult, parse
from reverie.help import table


def dream(argv: list[str], console: Console) -> VerbResult:
    flags = parse(Dream, argv, "dream")
    from reverie import api
    from reverie.envs.base import RULES
    from reverie.view import dream as view
    from reverie.view import video

    suffix = Path(flags.out).suffix.lower()
    if flags.out and suffix not in (*video.SUFFIXES, ".png"):
        raise video.NoVideo(
            f"cannot draw a dream into {Path(flags.out).name!r}: expected a name that ends in "
            f"{', '.join(video.SUFFIXES)} for an image, or .png for anything else"
        )
    agent = api.load(flags.run, flags.env or None, trust=flags.trust)
    seen = {name: space for name, space in agent.env.obs_space.items() if space.kind not in RULES}
    images = [name for name, space in seen.items() if space.is_picture]
    if flags.policy:
        key = _subject([*seen, "reward"], images, flags.key, suffix)
        return _drive(flags, console, agent, key if key in images else "")
    rows = agent.rows(flags.sequences, flags.seen + flags.dreamt, flags.fresh, flags.seed)
    dreams = agent.dream(seen=flags.seen, rows=rows)
    # Not every model can say what it would see: MuZero's tells rewards and values.
    dreamt = [name.removeprefix("obs/") for name in view.curves(dreams) + view.pictures(dreams)]
    key = _subject(dreamt, [name for name in images if name in dreamt], flags.key, suffix)
    is_image = key in images
    path = _place(flags.out, agent.path, f"dream-{agent.moment:09d}{video.BEST if is_image else '.png'}")
    name = f"obs/{key}" if key in seen else key
    if is_image:
        video.write(path, view.frames(dreams, name, flags.seen), view.FPS)
    else:
        files.replace(path, view.plot(dreams, name or None, flags.seen))
    errors = view.errors(dreams, flags.seen)
    horizons = [h for h in errors["reward"]["horizons"] if any(e["horizons"][h] is not None for e in errors.values())]
    number = lambda x, form: "-" if x is None else format(x, form)
    cells = {
        name: [number(e["unexplained"], ".1%"), *(number(e["horizons"][h], ".3g") for h in horizons)]
        for name, e in errors.items()
    }
    console.print(
        f"{agent.config.run.env} after {amount(agent.step, 'step')}: {amount(flags.sequences, 'dream')}, "
        f"{amount(flags.seen, 'row')} seen and {flags.dreamt} "
        "imagined. Mean squared errors, of discrete values the share that is wrong:",
        soft_wrap=True,
    )
    console.print(table("", ["error / variance", *(f"after {h}" for h in horizons)], cells))
    console.print(f"picture: {path}", soft_wrap=True)
    return {"path": str(path), "step": agent.step, "seen": flags.seen, "errors": errors}, 0


def _drive(flags: Dream, console: Console, agent: Any, key: str) -> VerbResult:
    """The other half of `dream`: the policy acts in its imagination."""
    from reverie.view import dream as view
    from reverie.view import video

    if not key:
        raise ConfigError("--policy draws a video of an image, and this is none: from Python, `load(run).drive()`")
    path = _place(flags.out, agent.path, f"drive-{agent.moment:09d}{video.BEST}")
    rows = agent.drive(flags.sequences, flags.seen + flags.dreamt, flags.seen, flags.fresh, flags.seed)
    video.write(path, view.driven(rows, f"obs/{key}", flags.seen), view.FPS)
    dream_return = (rows["reward"] * rows["valid"])[:, flags.seen :].sum(1)
    console.print(
        f"{agent.config.run.env} after {amount(agent.step, 'step')}: {amount(flags.sequences, 'imagined drive')} of "
        f"{amount(flags.dreamt, 'step')} from {amount(flags.seen, 'row')} seen, mean reward "
        f"{dream_return.mean():.3g} in all",
        soft_wrap=True,
    )
    console.print(f"picture: {path}", soft_wrap=True)
    return {"path": str(path), "step": agent.step, "seen": flags.seen, "rewards": dream_return.tolist()}, 0


def _place(out: str, run: Path, name: str) -> Path:
    """Where a picture goes: what was typed, or the run's videos/, which no link may replace."""
    if out:
        return Path(out)
    from reverie.run.directory import RunDirectory

    videos = RunDirectory(run).folder / "videos"
    videos.make()
    return videos.path / name


def _subject(known: Sequence[str], images: Sequence[str], key: str, suffix: str) -> str:
    """Which of what is known to draw, or nothing for all that is no image in one plot."""
    if key and key not in known:
        raise ConfigError(f"no {key!r} in its dreams. Expected --key {' or '.join(sorted(known))}")
    if not key and suffix != ".png":
        if suffix and not images:
            raise ConfigError(f"it dreams of no image, only of {', '.join(known)}: draw a plot, --out dream.png")
        return images[0] if images else ""
    if key and suffix and (key in images) != (suffix != ".png"):
        fitting = "an image makes a video, --out dream.mp4" if key in images else "it makes a plot, --out dream.png"
        raise ConfigError(f"{key!r} cannot be drawn into a {suffix}: {fitting}")
    return key


def think(argv: list[str], console: Console) -> VerbResult:
    flags = parse(Think, argv, "think")
    from reverie import api
    from reverie.view import tree as view

    suffix = Path(flags.out or "think.png").suffix.lower()
    if suffix not in view.SUFFIXES:
        raise ConfigError(
            f"cannot draw a tree into {Path(flags.out).name!r}: expected a name that ends in "
            f"{' or '.join(view.SUFFIXES)}, for example {Path(flags.out).with_suffix('.svg').name}"
        )
    for folder in Path(flags.out).parents:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--out {flags.out}: {folder} is a file, expected a directory or a name that is free")
    agent = api.load(flags.run, flags.env or None, planner=flags.planner, trust=flags.trust)
    found = agent.think(flags.step, flags.seed, flags.simulations)
    path = _place(flags.out, agent.path, f"think-{flags.step}.png")
    mover = "" if found.player is None else f", player {found.player} to move"
    title = f"{agent.config.run.env} after {amount(agent.step, 'step')}: step {flags.step} of an episode{mover}"
    entries: list[dict[str, Any]] = [
        {
            "action": found.actions[a],
            "prior": float(found.prior[a]),
            "visits": int(found.visits[a]),
            "q": float(found.q[a]) if found.visits[a] else None,
            "policy": float(found.policy[a]),
        }
        for a in found.ranking
    ]
    files.replace(path, view.draw(found, title, suffix, flags.depth))
    console.print(
        f"{title}\n{amount(int(found.tree.visits[0]) - 1, 'simulation')}; value {found.raw:.3g} by the network, "
        f"{found.value:.3g} by the search; action {found.actions[found.chosen]} is taken",
        soft_wrap=True,
    )
    if found.why:
        console.print(found.why, soft_wrap=True)
    table = Table("action", box=None, pad_edge=False)
    for name in ("prior", "visits", "Q", "improved policy"):
        table.add_column(name, justify="right")
    for entry, a in zip(entries[: view.ACTIONS], found.ranking, strict=False):
        q = "-" if entry["q"] is None else f"{entry['q']:.3g}"
        cells = (entry["action"], f"{entry['prior']:.1%}", str(entry["visits"]), q, f"{entry['policy']:.1%}")
        table.add_row(*cells, style="bold" if a == found.chosen else None)
    console.print(table)
    if len(entries) > view.ACTIONS:
        console.print(f"and {amount(len(entries) - view.ACTIONS, 'action')} more, which the search likes less")
    if missing := view.left_out(found.tree, flags.depth):
        console.print(f"the picture shows {missing}")
    console.print(f"picture: {path}", soft_wrap=True)
    values = {"raw": found.raw, "searched": found.value}
    answer = {"path": str(path), "trained": agent.step, "step": flags.step, "player": found.player, "value": values}
    return answer | {"action": found.actions[found.chosen], "why": found.why, "actions": entries}, 0
