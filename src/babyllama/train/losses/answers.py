"""What a model says of the answers of a batch: sums of log-probabilities, one for each segment of each row.

Not here: which rows (data/streams/answers.py), what is learned from them (preference.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.errors import InputError
from babyllama.model.transformer import Transformer
from babyllama.train.losses.logprobs import token_logprobs


class Answers(NamedTuple):
    """Of answers, float32 each: all of a batch (N,), or its pairs (P, 2), the better one first.

    `log_p` is the sum of the model's log-probabilities in nats over `tokens` tokens, the end token among them, and has
    the gradient; `reference` the reference's, None where there is none. `label` is 1 or −1.
    """

    log_p: Tensor
    tokens: Tensor
    label: Tensor
    reference: Tensor | None

    @property
    def mean(self) -> Tensor:
        """Of each answer, nats a token."""
        return self.log_p / self.tokens

    @property
    def ratio(self) -> Tensor:
        """log π − log π_ref of each answer."""
        assert self.reference is not None
        return self.log_p - self.reference


def by_segment(values: Tensor, segments: Tensor) -> Tensor:
    """Sums of values (B, T) over the segments of each row, (B, T) by number of segment; 0 where there is none.

    In one order always, which adding up by index on a GPU does not promise.
    """
    places = torch.zeros(segments.shape, device=segments.device).scatter_add_(1, segments, torch.ones_like(values))
    lengths = places.long().flatten()
    sums = torch.segment_reduce(values.flatten(), "sum", lengths=lengths, initial=0.0, unsafe=True)
    return sums.view(segments.shape)


def sums(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of each segment: Σ log p of its targets, and how many they are; (B, T) by number of segment."""
    assert batch.segments is not None
    log_p = by_segment(token_logprobs(model, batch).logprobs, batch.segments)
    return log_p, by_segment((batch.targets != IGNORE).float(), batch.segments)


def answers(model: Transformer, batch: Batch) -> Answers:
    """All answers of a batch, row after row."""
    label = batch.extras["label"]
    there, reference = label != 0, batch.extras.get("reference")
    log_p, tokens = sums(model, batch)
    return Answers(log_p[there], tokens[there], label[there], None if reference is None else reference[there])


def pairs(model: Transformer, batch: Batch) -> Answers:
    """The pairs of a batch. Raises InputError where its answers are none."""
    found = answers(model, batch)
    if len(found.label) % 2 or not ((found.label[::2] == 1) & (found.label[1::2] == -1)).all():
        raise InputError("data.path: its answers are no pairs")
    return Answers(*(None if part is None else part.view(-1, 2) for part in found))  # type: ignore[arg-type]
