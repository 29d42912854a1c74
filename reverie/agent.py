"""The two contracts of the house, and the row that everything is made of.

`run` knows `Agent` and nothing else; `behavior` (imagination, search) knows `WorldModel` and nothing else.
Everything is a pure function over pytrees, so that one `jax.jit` covers a whole update.

A **row** is one step of one env, as a flat dict of arrays:

    obs/<key>      what the env showed at t
    reward         float32, arrived WITH obs_t
    is_first       bool, the episode begins at t
    is_last        bool, the episode ends at t (for any reason; the action has no effect)
    is_terminal    bool, the world ended at t; is_last alone is a truncation: bootstrap. Without is_last: a lost
                   life of several counts as an end, but the episode goes on
    action/<key>   chosen AFTER seeing obs_t
    out/<key>      what the policy wants stored beside the step (latents, search policies, root values)

A **batch** is rows with two leading axes `[B, C + T]`: C rows of context, then T rows to train on.

One `out` has a meaning to replay. If `out_space` has `priority` (float32, shape ()), sequences are drawn in proportion
to a power of `out/priority` of their root, position C: the first row to train on. A new row has the largest priority
known so far, whatever the policy says; `train` returns the others. A batch to train on then has one more key, `weight`
float32 `[B]`: importance weights, the largest of them 1, to be multiplied with the loss of each sequence.

    position       0 .. C-1        C         C+1 .. C+T-1
    row            context         root      the rows after it
    priority                       p         of their own sequences, if `train` returns [B, T]; often unknown: [B, 1]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
from jax import Array
from jaxtyping import Array as AnyArray
from jaxtyping import PRNGKeyArray

from reverie.envs.base import Spaces
from reverie.health import Symptom

State = Any  # everything training changes: params, optimizer, slow networks, normalisers, step, RNG key. One pytree
Carry = Any  # recurrent state of the policy between steps, RNG key included; leading axis [N] on its arrays
Row = dict[str, Array]
Metrics = dict[str, Array]
# explore | be greedy | draw, without what is added to explore | ignore the network
Mode = Literal["train", "eval", "sample", "random"]
Part = Literal["all", "model", "behavior"]  # what an update moves
X = TypeVar("X")

CONTEXT_ROWS = 5  # rows that a dream is shown before it is told only the actions (DreamerV1 to V3 show 5 and dream 45)
HORIZONS = (1, 5, 15, 45)  # steps after the last row seen at which the error of a dream is reported
DREAMT = CONTEXT_ROWS + HORIZONS[-1]  # T of a batch that reaches all of them


def select(rows: Mapping[str, X], prefix: str) -> dict[str, X]:
    """The arrays whose name begins with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in rows.items() if k.startswith(prefix)}


def add_prefix(prefix: str, arrays: Mapping[str, X]) -> dict[str, X]:
    """The arrays with `prefix` before their names."""
    return {prefix + k: v for k, v in arrays.items()}


class Dream(NamedTuple):
    """Real sequences beside the model's open-loop predictions of them, with numpy or with JAX arrays.

    Attributes:
      truth: `obs/<key>` and `reward` -> `[B, T, ...]`. Images are float32 in [0, 1], vectors and rewards float32 in the
        env's own units, discrete values int32.
      dream: the same keys (or fewer, if the model decodes fewer), shapes, dtypes and units. The rows seen are
        reconstructions, the others imagined from the actions that were taken.
      valid: bool `[B, T]`. False from where an episode begins among the imagined rows: no action tells of that, and
        what `dream` holds there means nothing.
    """

    truth: dict[str, Any]
    dream: dict[str, Any]
    valid: Any

    def squares(self, key: str, seen: int = CONTEXT_ROWS) -> tuple[Any, Any]:
        """Squared error and variance of the imagined rows, both `[...]`: sums over all valid rows, element by element.

        The variance is that in time: of every element, its mean over the imagined rows of its own sequence is taken
        away first, so that what stands still counts for nothing. `error.sum() / variance.sum()` is the share of the
        signal that the dream misses: 0 for a perfect one, 1 for one that knows each sequence's mean and no more.
        """
        truth, dream = self.truth[key][:, seen:], self.dream[key][:, seen:]
        valid = self.valid[:, seen:].astype("float32")
        valid = valid.reshape(*valid.shape, *[1] * (truth.ndim - 2))
        mean = (valid * truth).sum(1, keepdims=True) / valid.sum(1, keepdims=True).clip(1)
        return (valid * (dream - truth) ** 2).sum((0, 1)), (valid * (truth - mean) ** 2).sum((0, 1))


@runtime_checkable
class Agent(Protocol):
    """The thing that `run` trains. Built by an algorithm from spaces and its own config."""

    obs_space: Spaces
    act_space: Spaces
    context: int  # C: rows of a batch that come before the trained ones
    rows: int  # T, where the algorithm decides it; 0: as many as `--length` says
    trained: int  # rows of a window that count for the replay ratio; 0: all T
    minibatches: int  # equal parts of a batch that an update goes through one after the other
    symptoms: tuple[Symptom, ...]  # of a collapse, in the metrics of `train`; a person is warned of them
    added: tuple[str, ...]  # modules that checkpoints of earlier versions lack; there they begin as `init` makes them
    resized: Mapping[str, tuple[int, int]]  # images that the networks see at another size: <key> -> height, width
    out_space: Mapping[str, jax.ShapeDtypeStruct]  # <key> -> shape and dtype of the `out` arrays, without batch axes

    def init(self, key: PRNGKeyArray) -> State:
        """A fresh state. Shapes alone cost nothing: `jax.eval_shape(agent.init, key)`."""

    def init_carry(self, batch: int, key: PRNGKeyArray) -> Carry:
        """The carry of `batch` envs before their first step."""

    def policy(self, state: State, carry: Carry, obs: Row, mode: Mode) -> tuple[Carry, Row, Row]:
        """One decision for N envs at once.

        Args:
          state: of `init` or `train`.
          carry: of `init_carry` or the last call; where `is_first` it is ignored for that env.
          obs: a row without `action/` and `out/`, arrays `[N, ...]`.
          mode: static under jit.

        Returns:
          `(carry, action, out)`: `action/<key>` arrays `[N, ...]` in `act_space`, and `out/<key>` arrays
          `[N, ...]` in `out_space`.
        """

    def train(self, state: State, batch: Row) -> tuple[State, Row, Metrics]:
        """One gradient update.

        Args:
          state: donated by the caller.
          batch: rows `[B, C + T, ...]`, and `weight` float32 `[B]` if there are priorities.

        Returns:
          `(state, out, metrics)`: `out/<key>` arrays `[B, T, ...]` to be written back to the T trained rows
          (a subset of `out_space`), and scalar metrics. An array `[B, t, ...]` with t < T is written to the first t
          of them: what is known of the root alone, such as its priority, is `[B, 1]`. If the loss, the gradient,
          `out` or a statistic of the batch is not finite, `state` is as it was (bit for bit, but for the counters
          `metrics["nonfinite/total"]` and `metrics["nonfinite/streak"]`) and so is `out`, that of the batch.
        """

    def report(self, state: State, batch: Row) -> Metrics:
        """Scalars of a batch that only looking at the model gives (open-loop error); changes nothing.

        T may differ from that of `train`. What a batch cannot tell is NaN.
        """

    def dream(self, state: State, batch: Row, seen: int = CONTEXT_ROWS) -> Dream:
        """Shows the model the first `seen` of the T rows of a batch and tells it only the actions of the others.

        Changes nothing; the same state and batch give the same dream. `seen` is static under jit, 1 to T - 1.
        """

    def parameters(self, state: State) -> dict[str, int]:
        """Number of optimised parameters per module; works on shapes (`jax.eval_shape`) too."""


@runtime_checkable
class TwoPhaseAgent(Agent, Protocol):
    """An agent that can learn its model without its behaviour, and the reverse."""

    parts: tuple[Part, ...]  # all three

    def train(self, state: State, batch: Row, part: Part = "all") -> tuple[State, Row, Metrics]:
        """As `Agent.train`; with `model` or `behavior` no parameter of the other moves. `part` is static under jit."""

    def renew(self, state: State) -> State:
        """The same parameters with a fresh optimizer, whose estimates and warm-up are not those of another part."""


@runtime_checkable
class Searches(Agent, Protocol):
    """An agent that may search before it acts."""

    enumerated: bool  # a number means the same action at every node of a tree

    def think(self, state: State, carry: Carry, obs: Row) -> tuple[dict[str, Array], Any]:
        """The search behind a greedy decision (`policy` in mode `eval`) for one env, N = 1.

        Returns:
          the actions that it chose from, `[A, ...]` by their keys in `act_space`, and what it found, its tree included:
          a `behavior.search.SearchResult`.
        """


@runtime_checkable
class Drives(Agent, Protocol):
    """An agent that can act in its imagination alone, and show that."""

    def drive(self, state: State, batch: Row, length: int) -> Row:
        """Rows `[B, T + length, ...]`: those of a batch `[B, C + T, ...]`, and what the policy then imagines."""


def as_two_phase(agent: Agent) -> TwoPhaseAgent | None:
    """The agent, if it can learn in parts."""
    return agent if isinstance(agent, TwoPhaseAgent) else None


def as_searching(agent: Agent) -> Searches | None:
    """The agent, if it may search."""
    return agent if isinstance(agent, Searches) else None


def as_driving(agent: Agent) -> Drives | None:
    """The agent, if it can show what it does in its imagination."""
    return agent if isinstance(agent, Drives) else None


@runtime_checkable
class WorldModel(Protocol):
    """The part of a model that imagination and search both need. Latents are pytrees with any leading axes."""

    def imagine(self, latent: Any, action: Any, key: PRNGKeyArray) -> Any:
        """One step without data: the latent that follows `latent` when `action` is taken."""

    def predict(self, latent: Any) -> tuple[AnyArray, AnyArray]:
        """`(reward, discount)`, float32, of the latent's own step; the discount includes the horizon."""
