"""What a training reads: rows that were stored before it, or rows that are made while it trains.

Not here: the rows of prepared data (data/streams/), which of them a rank reads (trainer.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from torch import Tensor

from babyllama.data.streams.batches import Batch, Rows
from babyllama.train.engines.worker import Worker


@runtime_checkable
class Source(Rows, Protocol):
    """Rows that hang on the model as it is, or on what was made of it before."""

    def prepare(self, step: int, worker: Worker) -> None:
        """Before rows step × plan.rows … of a step are asked for; every rank calls it, after a resume or a warm-up once
        more for the same step. `worker.policy()` lends the model.

        What is drawn here comes from generators of its own, by (seed, step).
        """
        ...

    def meanwhile(self) -> None:
        """While the device works on the step whose rows were asked for: what need not hold it up. What is left over is
        done with the next `prepare`, and before `state` is told."""
        ...

    @property
    def state(self) -> dict[str, Tensor]:
        """What later rows need and nobody can make again, by name; on every rank the same. Goes into checkpoints."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`."""
        ...

    @property
    def figures(self) -> dict[str, float]:
        """What is told of the rows at hand, beside the loss."""
        ...


class Unkept:
    """What a `Source` has that keeps nothing between steps, and has nothing to tell."""

    def meanwhile(self) -> None:
        """As of `Source`: nothing."""

    @property
    def state(self) -> dict[str, Tensor]:
        """As of `Source`: nothing."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """As of `Source`: nothing."""

    @property
    def figures(self) -> dict[str, float]:
        """As of `Source`: nothing."""
        return {}


@dataclass(frozen=True)
class Stored(Unkept):
    """Rows that were stored before: nothing to prepare."""

    rows: Rows

    def batch(self, first_row: int, count: int) -> Batch:
        return self.rows.batch(first_row, count)

    def prepare(self, step: int, worker: Worker) -> None:
        """Nothing."""


def source(rows: Rows) -> Source:
    """Any rows as a source. Raises TypeError for half a source, whose `prepare` would never be called."""
    if isinstance(rows, Source):
        return cast(Source, rows)
    if hasattr(rows, "prepare"):
        raise TypeError(f"{type(rows).__name__} prepares its rows, but lacks some of what Source has")
    return Stored(rows)
