"""Symptoms: what the metrics of a run that has collapsed look like, and the watch that looks for them.

Reinforcement learning fails silently. An algorithm says which of its figures betray what (`Agent.symptoms`), the
runner looks at every line of metrics, and a person is told once: what it means, and what to try.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from reverie.errors import PlainError

Values = Mapping[str, float | None]  # one record of metrics; None is what was not finite

# Everything looks ill at first: heads begin at zero, the policy at random, the learning rate rises for 1000 updates.
GRACE = 1000
# Then 1000 more updates with the symptom than without it, long for every healthy run we have seen: one that learns
# passes through such a state in a few hundred. A figure that is missing from a record neither counts nor heals.
PATIENCE = 1000


class NonFinite(PlainError, RuntimeError):
    """Too many updates in a row were not finite, or the state is not."""

    exit_code = 1


class Symptom(NamedTuple):
    """Something that should not last."""

    name: str  # as in the metric `health/<name>`
    shows: Callable[[Values], bool | None]  # of a record; None if that cannot tell
    meaning: str  # one sentence
    advice: str  # what a person might do


class Watch:
    """Counts the updates that each symptom shows in, less those since then in which it does not. A collapsed run may
    look well for a moment. A pure function of the records it was given. `grace` and `patience` are in updates.
    """

    def __init__(self, symptoms: tuple[Symptom, ...], grace: int = GRACE, patience: int = PATIENCE) -> None:
        self.symptoms, self.grace, self.patience = symptoms, grace, patience
        self._updates = 0.0  # updates, as of the last record
        self._count = {symptom.name: 0.0 for symptom in symptoms}  # 0 to `patience`
        self._reported: set[str] = set()

    def look(self, values: Values) -> list[Symptom]:
        """Symptoms that have lasted long enough as of this record and were not told since they were last over.

        Args:
          values: a record of metrics; without `updates` nothing is counted.
        """
        updates = values.get("updates")
        found: list[Symptom] = []
        if updates is None or updates <= self._updates:
            return found
        before, self._updates = self._updates, updates
        if before < self.grace:  # its figures are means over some of the grace
            return found
        more = min(updates - before, self.patience / 2)  # one record alone tells nothing
        for symptom in self.symptoms:
            name, shows = symptom.name, symptom.shows(values)
            if shows is None:
                continue
            self._count[name] = min(max(self._count[name] + (more if shows else -more), 0.0), float(self.patience))
            if self._count[name] == 0:
                self._reported.discard(name)
            elif self._count[name] == self.patience and name not in self._reported:
                self._reported.add(name)
                found.append(symptom)
        return found

    def figures(self) -> dict[str, float]:
        """`health/<name>`: 1 from when a symptom is told until it was gone for as long as it takes to tell it."""
        return {f"health/{s.name}": float(s.name in self._reported) for s in self.symptoms}


def _when(metric: str, holds: Callable[[Any], bool]) -> Callable[[Values], bool | None]:
    """`Symptom.shows` that looks at one metric."""
    return lambda values: None if values.get(metric) is None else holds(values[metric])


def kl_at_floor(free_nats: float) -> Symptom:
    """Posterior and prior agree in (nearly) every row: the KL loss is its floor and has no gradient.

    A world that is almost predictable comes close - CartPole stays 2 to 40 % above the floor - but one that is seen
    never rests on it. Without a floor there is nothing to rest on but zero: on Catch a collapsed V2 lies below 0.01
    nats, but for a window now and then, and one that sees at 3 to 18.
    """
    return Symptom(
        "kl_at_floor",
        _when("loss/dynamics", lambda loss: loss <= (1.001 * free_nats or 0.01)),
        f"the KL rests at its {free_nats:g} free nats: the latent says nothing about the observation that was not known"
        " before",
        "look at loss/decode and at `reverie dream`; if the dream is blind, check that observations change and are of"
        f" a sensible scale, lower --learning-rate, or {'lower' if free_nats else 'raise'} --free-nats",
    )


def policy_certain(action: str) -> Symptom:
    """The entropy of the policy is the least that its distribution allows."""
    return Symptom(
        f"policy_certain/{action}",
        _when(f"policy/randomness/{action}", lambda randomness: randomness < 0.003),
        f"the policy is as certain of {action!r} as it can be: it explores nothing any more",
        "fine if the return is; if not, raise --entropy (3e-2 for sparse rewards near 1)",
    )


def policy_random(action: str) -> Symptom:
    """The entropy of the policy is the most that its distribution allows."""
    return Symptom(
        f"policy_random/{action}",
        _when(f"policy/randomness/{action}", lambda randomness: randomness > 0.995),
        f"the policy for {action!r} is still random: no action looks better than another",
        "see whether any reward was ever found (replay/reward, reward/variance) and whether imagined/return varies;"
        " lower --entropy if it is above 1e-2",
    )


def action_blind() -> Symptom:
    """The dynamics lead to the same state whatever the action."""
    return Symptom(
        "action_blind",
        _when("action/influence", lambda influence: influence < 0.01),
        "the model's dynamics ignore the action: a search over them cannot tell actions apart",
        "check that actions change what is observed or rewarded within a few steps; raise --unroll or --reward-scale",
    )


def constant_reward() -> Symptom:
    """Rewards in replay vary and their prediction explains none of it."""

    def shows(values: Values) -> bool | None:
        error, variance = values.get("reward/error"), values.get("reward/variance")
        if error is None or variance is None or variance < 1e-8:
            return None  # nothing there to explain
        return error > 0.95 * variance

    return Symptom(
        "constant_reward",
        shows,
        "the reward head predicts a constant: the policy has nothing to improve",
        "rewards may be too rare in a batch (raise --batch or --length), or depend on what the agent cannot see",
    )


def cut(support: int) -> Symptom:
    """Targets of reward or value lie beyond the bins that stand for them."""

    def shows(values: Values) -> bool | None:
        found = [x for name in ("value/cut", "reward/cut") if (x := values.get(name)) is not None]
        return max(found) > 0.01 if found else None

    return Symptom(
        "cut",
        shows,
        f"rewards or values lie beyond --support {support} and are learned as its end: no search can tell them apart",
        f"begin another run with --support {4 * support} (16 times the values), or divide what the env pays",
    )
