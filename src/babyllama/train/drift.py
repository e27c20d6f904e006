"""KTO's z: how far the model has gone from its reference on answers beside the wrong prompt, measured before each step.

z = max(0, mean of β(log π − log π_ref) over the mismatches of the step's rows), without a gradient. It is a number of
the whole step, so neither micro-batches nor ranks change it, and hangs on the weights and the step alone, so a resumed
run measures it again. Not here: the mismatches (data/streams/mismatches.py), the loss (losses/kto.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from babyllama.data.streams.answers import Answers
from babyllama.data.streams.batches import Batch, Stream, collated
from babyllama.data.streams.mismatches import Mismatches
from babyllama.model.transformer import Transformer
from babyllama.train.engines.worker import Worker
from babyllama.train.losses.answers import answers
from babyllama.train.source import Unkept


@dataclass
class DriftRows(Unkept):
    """The rows of `stream`, in whose extras `drift`, (B, T), is z of their step at every place.

    Args:
        mismatches: of the stream's corpora.  rows: of a step.  size: rows of a pass.
    """

    stream: Stream
    mismatches: list[Mismatches]
    beta: float
    rows: int
    size: int
    z: float = 0.0

    def prepare(self, step: int, worker: Worker) -> None:
        """As of `Source`: measures z."""
        mine = self.rows // worker.world.size
        places = self.stream.places(step * self.rows + worker.world.rank * mine, mine)
        rows = [(self.stream.corpora[corpus], self.mismatches[corpus], row) for corpus, row in places]
        with worker.policy() as model:
            total, count = measured(model, batches(rows, self.size), worker.device)
        total, count = worker.world.sum(total, count)
        self.z = z_of(self.beta, total, count)

    def batch(self, first_row: int, count: int) -> Batch:
        """As of `Rows`."""
        return with_drift(self.stream.batch(first_row, count), self.z)


def with_drift(batch: Batch, z: float) -> Batch:
    """The batch with z in its extras."""
    return replace(batch, extras={**batch.extras, "drift": torch.full(batch.tokens.shape, z)})


def batches(rows: Iterable[tuple[object, Mismatches, int]], size: int) -> Iterator[Batch]:
    """The mismatches of rows of answers, `size` rows together; a row without any is passed over."""
    found = []
    for answers_, mismatches, row in rows:
        assert isinstance(answers_, Answers)
        room = answers_.room
        kept = mismatches.kept(answers_.documents(row).tolist(), room.context, room.longest)
        found += [mismatches.row(kept, room.context)] if kept else []
    for first in range(0, len(found), size):
        yield collated(found[first : first + size])


@torch.no_grad()
def drift_of(model: Transformer, rows: Answers, mismatches: Mismatches, beta: float) -> float:
    """z of a model on all rows of one corpus."""
    device = model.embed_tokens.weight.device
    places = ((rows, mismatches, row) for row in range(rows.rows))
    total, count = measured(model, batches(places, 8), device)
    return z_of(beta, total, count)


def z_of(beta: float, total: float, count: float) -> float:
    """max(0, β · the mean of so many log π − log π_ref)."""
    return max(0.0, beta * total / max(1.0, count))


def measured(model: Transformer, batches: Iterable[Batch], device: torch.device) -> tuple[float, float]:
    """(sum of log π − log π_ref, number) of all answers of the batches."""
    total, count = 0.0, 0
    for batch in batches:
        ratio = answers(model, batch.to(device)).ratio
        total, count = total + ratio.double().sum().item(), count + len(ratio)
    return total, float(count)
