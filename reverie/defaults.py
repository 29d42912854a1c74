"""Values that suit an env, where nobody has made a preset for it.

The papers' values are made for large models, millions of steps and a GPU. What a user brings is mostly smaller. Then a
smaller model, larger steps of the optimizer and more updates per env step learn in minutes what the paper's values have
not begun to learn. So a new run without a preset looks at its env first (`envs/facts.py`) and chooses. Each choice says
why, and what is typed counts more. `--preset paper` chooses nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from reverie import config, fields, presets
from reverie.algos.dreamer.v3 import DEPTHS
from reverie.assembly import spec_of
from reverie.config import Config
from reverie.envs.base import Space
from reverie.envs.facts import HOLD, Facts, Variation, look
from reverie.envs.spec import EnvSpec
from reverie.fields import amount
from reverie.model.canvas import Size, halvings, images
from reverie.nn.transforms import h, h_inverse

FEW = "a run on a laptop has thousands of updates, not a million"
SMALL = 16  # pixels of a side up to which a picture costs no more than a vector
TINY = 7  # pixels of the shortest side that is seen as a picture
SLOW = 5e-3  # seconds of a step from which on env steps are dearer than updates
LONG = 1000  # steps of an episode
BINS = 63  # of the two-hot heads of a small DreamerV3
UNPAID = 0.99  # share of unpaid steps from which on reward is hard to find
RARE = 0.02  # share of steps below which what is paid half the largest reward is hardly ever met
SPARSE = 0.1  # share of random actions where reward is hard to find
PART = 0.1  # of such a reward, by which the values of actions differ
FAINT = 0.25  # standard deviation below which networks hardly see what a number does
WIDE = 100  # characters of a value that are printed
REACH = 10.0  # spreads that anything seen may lie from the mean
BOUND = 20.0  # and the bounds of the space, unless they are far beyond anything seen

Look = Callable[[EnvSpec], Facts | None]


class Choice(NamedTuple):
    """A value, and why."""

    name: str
    value: Any
    reason: str


def _because(reason: str, **values: Any) -> list[Choice]:
    """Several values for one reason."""
    return [Choice(name, value, reason) for name, value in values.items()]


def suit(conf: Config, facts: Facts) -> list[Choice]:
    """Values of the run and of its algorithm that suit an env, each at most once; `conf` is what would be without."""
    own = vars(conf.agent)
    facts = facts if "actor_learning_rate" in own else _small(facts)  # DreamerV1 and V2 see 64 x 64 in any case
    rules = (_clock, _scale, _image_size, _dreamer, _dreamer_v3, _early, _muzero, _game, _search, _rare, _exploration)
    found = {choice.name: choice for rule in rules for choice in rule(own, facts)}
    known = own | vars(conf.run)
    return [choice for choice in found.values() if known.get(choice.name, choice.value) != choice.value]


def choices(
    conf: Config, preset: str, *, is_new: bool, facts_of: Look | None = None, factory: Callable[..., Any] | None = None
) -> list[Choice]:
    """The values that suit the env of a run: none if it is continued, has a preset, or cannot be played.

    Args:
      facts_of: gives the facts of an env, in place of a look at it.
      factory: builds the env, if only an object of this process can.
    """
    if not is_new or not conf.run.env or preset not in ("", config.PLAIN):
        return []
    facts = (facts_of or look)(dataclasses.replace(spec_of(conf.run), factory=factory))
    return suit(conf, facts) if facts else []


def tell(console: Console, conf: Config, choices: Sequence[Choice]) -> None:
    """Prints those that count, the ones of one reason in a line."""
    values, reasons = conf.values(), dict[str, list[str]]()
    for choice in choices:
        if values[choice.name] == choice.value:
            text = _flag_of(choice)
            text = text if len(text) <= WIDE else f"{text[:WIDE]}... (config.json has all)"
            reasons.setdefault(choice.reason, []).append(text)
    if not reasons:
        return
    made = [name for name, own in presets.of(conf.algorithm).named.items() if own.get("env") == conf.run.env]
    others = "".join(f"; --preset {name}: made for it" for name in made)
    head = f"Chosen for {conf.run.env} by what it shows (--preset {config.PAPER}: nothing chosen{others}):"
    for line in (head, *(f"  {' '.join(names)}: {reason}" for reason, names in reasons.items())):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _flag_of(choice: Choice) -> str:
    """A choice as a person would type it."""
    if isinstance(choice.value, bool):
        return fields.flag(choice.name if choice.value else f"no_{choice.name}")
    value = " ".join(map(str, choice.value)) if isinstance(choice.value, tuple) else choice.value
    return f"{fields.flag(choice.name)} {value}"


def algorithm(env: str, facts: Facts) -> Choice:
    """The algorithm for an env, where none is named."""
    (space,) = facts.act_space.values() if len(facts.act_space) == 1 else (None,)
    one_choice = space is not None and space.kind == "discrete" and space.shape == ()
    if one_choice and _is_game(facts):
        name = "stochastic_muzero" if config.preset_for("stochastic_muzero", env) else "gumbel_muzero"
        chance = "with chance " if name.startswith("stochastic") else ""
        return Choice("algorithm", name, f"a game {chance}is won by looking ahead, and its moves can be searched")
    return Choice("algorithm", "dreamer_v3", "it learns from few env steps, whatever is observed and done")


# ------------------------------------------------------------------------------------------ rules


def _is_game(facts: Facts) -> bool:
    return any(space.kind in ("player", "planes") for space in facts.obs_space.values())


def _small(facts: Facts) -> Facts:
    """With pictures as small as they say the same: one pixel in place of each square of equal ones."""
    seen = images(facts.obs_space)
    if len({space.shape[:2] for space in seen.values()}) != 1 or not facts.blocks:
        return dataclasses.replace(facts, blocks={})
    block, (height, width) = math.gcd(*facts.blocks.values()), next(iter(seen.values())).shape[:2]
    block = max((k for k in range(1, block + 1) if block % k == 0 and min(height, width) // k >= TINY), default=1)
    small = {k: dataclasses.replace(s, shape=(height // block, width // block, s.shape[2])) for k, s in seen.items()}
    return dataclasses.replace(facts, obs_space=facts.obs_space | small, blocks=dict.fromkeys(seen, block))


def _largest(facts: Facts) -> Size:
    """Height and width of the largest picture, 0 without any."""
    height, width, _ = max((space.shape for space in images(facts.obs_space).values()), default=(0, 0, 0))
    return height, width


def _picture(facts: Facts) -> bool:
    """Whether a picture is so large that it costs more than a vector."""
    return max(_largest(facts)) > SMALL


def _shown(facts: Facts) -> str:
    height, width = _largest(facts)
    if height:
        return f"it shows pictures of {height}x{width}"
    return f"it shows {sum(s.width for s in facts.obs_space.values() if s.kind not in ('legal', 'player'))} numbers"


def _small_model(facts: Facts) -> str:
    """Why a small model will do."""
    return f"{_shown(facts)}, and a small model learns it in less time"


def _clock(own: dict[str, Any], facts: Facts) -> Iterator[Choice]:
    """An evaluation of a policy that stands still would never come to its end."""
    plain = facts.plain
    if len(plain.lengths) <= 1 and plain.terminated == len(plain.lengths) and plain.steps >= LONG:
        ended = amount(len(plain.lengths), "episode")
        yield Choice("time_limit", LONG, f"{ended} ended in {plain.steps:,} random steps")


def _scale(own: dict[str, Any], facts: Facts) -> Iterator[Choice]:
    """A number that hardly moves is hardly seen, and its error costs a world model next to nothing: the speed of a car
    on a hill is never above 0.07."""
    found = {k: scale for k, v in facts.variation.items() if (scale := _center_and_spread(v, facts.obs_space[k]))}
    if found:
        faint = "numbers that vary by a few hundredths would not be seen beside the others"
        yield Choice("obs_scale", json.dumps(found), faint)


def _image_size(own: dict[str, Any], facts: Facts) -> Iterator[Choice]:
    block = max(facts.blocks.values(), default=1)
    if block > 1 and "actor_learning_rate" not in own:
        height, width = _largest(facts)
        size = height if height == width else (height, width)
        yield Choice("image_size", size, f"pictures are drawn in squares of {block} x {block} equal pixels")


def _center_and_spread(variation: Variation, space: Space) -> tuple[list[float], list[float]] | None:
    """Two numbers for every element of a vector, 0 and 1 where it is seen as it is; None: all of them are.

    Good play goes further than random play, and the bounds may say how far: CartPole's cart stays within 0.3 of the
    middle in random play, and may drift to 4.8.
    """
    moves = variation.std > 1e-6 * np.maximum(1, abs(variation.mean))
    faint = moves & (variation.symlog_std < FAINT) & (variation.levels > 2)
    if not faint.any():
        return None
    ends = np.abs(np.array([space.low, space.high]) - variation.mean) if space.low else np.zeros((2, 1))
    bound = np.where(np.isfinite(ends), ends, 0).max(0)
    least = np.maximum(variation.reach / REACH, np.minimum(bound / BOUND, 1))
    spread = [float(f"{x:.2g}") for x in np.where(faint, np.maximum(variation.std, least), 1)]
    digits = [1 - math.floor(math.log10(x)) for x in spread]  # a tenth of a standard deviation is near enough
    return [round(x, n) for x, n in zip(np.where(faint, variation.mean, 0).tolist(), digits, strict=True)], spread


def _dreamer(own: dict[str, Any], facts: Facts) -> Iterator[Choice]:
    """Every Dreamer."""
    if "free_nats" not in own:
        return
    small = "slow_rate" in own and "ppo_updates" not in own
    if facts.seconds > SLOW:
        yield Choice("replay_ratio", 256.0, f"a step takes {1e3 * facts.seconds:.0f} ms: more is learned from each")
    elif not small and not _picture(facts):
        quick = f"a step takes {1e3 * facts.seconds:.2g} ms, a small model's update not much more"
        yield Choice("replay_ratio", 64.0, quick)
    yield from _because("more updates in the same time", batch=8 if small else 16, length=32)


def _dreamer_v3(own: dict[str, Any], facts: Facts) -> Iterator[Choice]:
    if "slow_rate" not in own:
        return
    yield Choice("size", "200k", _small_model(facts))
    yield from _because(FEW, learning_rate=5e-4, lr_warmup=200)
    yield Choice("slow_rate", 0.1, f"{FEW}: the slow critic follows five times faster")
    if own.get("behavior_learning_rate", 1.0) < 1e-4:  # Adam of 2023
        yield Choice("behavior_learning_rate", 3e-4, FEW)
        yield Choice("choices", '{"vector_units": 0}', "vectors are read by layers as wide as the size, not 1024")
    else:
        small = {"bins": BINS}
        why = "255 bins of reward and value are a quarter of a small model's work"
        if 0 < (stages := halvings(facts.obs_space)) < len(DEPTHS):
            small["stages"] = stages
            why += "; small pictures need not be enlarged to be read"
        yield Choice("choices", json.dumps(small), why)
    if "ppo_updates" in own:  # four minibatches of the batch of dreamer_v3
        yield Choice("batch", 64, "four minibatches of a laptop's share")
        yield Choice("minibatch", 256, "half of the rows of one")


def _early(own: dict[str, Any], facts: Facts) -> Iterator[Choice]:
    """DreamerV1 and V2."""
    if "actor_learning_rate" not in own:
        return
    widths = {"deter": 128, "hidden": 64, "units": 64, "depth": 8 if _picture(facts) else 4}
    widths |= {"classes": 4, "layers": 2} if "classes" in own else {"stoch": 16, "vector_layers": 2}
    yield from _because(_small_model(facts), **widths)
    yield from _because(FEW, learning_rate=6e-4, actor_learning_rate=3e-4, critic_learning_rate=3e-4)
    yield Choice("free_nats", 1.0, "small latents have few nats")
    ends = facts.plain.terminated + facts.held.terminated > 0
    if "discount_scale" in own and not ends:
        yield Choice("discount_scale", 0.0, "no episode ended by itself: nothing to predict")
    if "continue_scale" in own and ends:
        yield Choice("continue_scale", 1.0, "episodes end by themselves")


def _muzero(own: dict[str, Any], facts: Facts) -> Iterator[Choice]:
    if "n_step" not in own:
        return
    # Bins for twice the square root of what can be expected.
    expected = max(min(100 * facts.largest, 10 * facts.scale), facts.largest, 1.0)
    support = math.ceil(1.5 * float(h(jnp.float32(expected))))
    value = float(h_inverse(jnp.float32(support)))
    yield Choice("support", support, f"returns up to {value:,.3g} have bins, by the rewards of random play")
    yield Choice("value_scale", 1.0, "values say most where rewards are not boards won")
    yield Choice("units", 64, f"{_shown(facts)}: a small model learns faster")
    yield Choice("envs", 8, "more updates for each of their steps")
    yield Choice("replay_ratio", 16.0, "a laptop has time for it")
    if images(facts.obs_space):
        yield Choice("bootstrap", "stored", "reading every picture that a return ends with again is dear")
        yield Choice("reanalyse", 0.0, "and searching from it still more so")
    yield Choice("prioritized", False, "in a batch drawn by errors of values, the weights leave few rows that count")
    if not _is_game(facts) and (length := max(facts.plain.length, facts.held.length)) <= LONG:
        yield Choice("discount", 0.99, f"episodes have about {length:.0f} steps")
        longest = max((*facts.plain.lengths, *facts.held.lengths), default=LONG)
        late = "rewards come every step or late, and new values need no relay of ten updates"
        yield Choice("n_step", min(longest, 20), late if longest > 20 else f"an episode has up to {longest} steps")


def _game(own: dict[str, Any], facts: Facts) -> Iterator[Choice]:
    """Games, by the MuZero family."""
    if "n_step" not in own or not _is_game(facts):
        return
    longest = max((*facts.plain.lengths, *facts.held.lengths), default=100)
    if facts.device:
        yield Choice("envs", 64, "games on the device cost little")
    yield Choice("replay_ratio", 4.0, "new games say more than old ones")
    if any(space.kind == "player" for space in facts.obs_space.values()):
        yield Choice("discount", 1.0, "a game is won or lost, however late")
        yield Choice("n_step", min(longest, 100), f"a game has up to {longest} moves, and its end says who won")
        yield Choice("random_moves", 0.05, "two good players always play alike")


def _search(own: dict[str, Any], facts: Facts) -> Iterator[Choice]:
    """How far values must differ before a search acts on it."""
    if "least_range" in own and facts.largest and not _is_game(facts):
        part = "an action is worth a part of a reward more than another, and values that differ by less are noise"
        yield Choice("least_range", float(f"{PART * min(facts.largest, 1.0):.2g}"), part)


def _rare(own: dict[str, Any], facts: Facts) -> Iterator[Choice]:
    """Rewards that are rare and far larger than all others, such as that of a crash, say what is worth doing. A world
    model that meets one in a hundred rows learns them when the policy has long been sure of something else."""
    if "free_nats" not in own or _is_game(facts) or not 0 < facts.large < RARE:
        return
    why = f"the largest rewards come in {100 * facts.large:.1g} % of the steps"
    yield Choice("rare_share", 0.25, f"{why}: a quarter of what is replayed shows one")
    if "slow_rate" in own:
        yield Choice("entropy", 3e-3, f"{why}: the policy stays open")


def _exploration(own: dict[str, Any], facts: Facts) -> Iterator[Choice]:
    if "hold" not in own or _is_game(facts):
        return
    if facts.monotonous:
        why = "random play never earned more in one episode than in another"
    elif facts.repeating_finds:
        why = "random play earns more when it repeats its actions"
    elif UNPAID <= facts.zeros < 1:
        why = "random play is hardly ever paid"
    else:
        return
    if facts.monotonous or facts.repeating_finds:
        yield Choice("hold", HOLD, why)
    yield Choice("random_moves", SPARSE, f"{why}: what is hard to find must be found again")
    length = max(facts.plain.length, facts.held.length)
    warmup = int(min(max(20 * length, 4000), 20_000))
    yield Choice("warmup", warmup, f"{why}: twenty episodes or so, that the model may see it")
    if "free_nats" in own:
        yield Choice("rare_share", 0.25, f"{why}: a quarter of what is replayed shows it")
    if "slow_rate" in own:
        yield Choice("entropy", 3e-3, f"{why}: the policy stays open")
