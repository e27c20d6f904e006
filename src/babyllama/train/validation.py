"""Validation: the summed loss of a model on batches, as sums and counts that the caller divides once.

Used by the trainer while it trains and by the verb `evaluate` afterwards, so that both mean the same number.
Not here: which batches (data/streams/), completions of a prompt (evals/scoring.py), text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.hardware import finest
from babyllama.model.transformer import Transformer
from babyllama.train.losses.objectives import Objective

CHUNK_ROWS = 4096  # rows of logits held at a time: 1 GiB of float32 with ChatGLM2's 64,793 tokens


class Measured(Protocol):
    """What a validation found: sums that add up, and the ratios that people read."""

    @property
    def loss(self) -> float: ...
    @property
    def figures(self) -> dict[str, Any]: ...
    @property
    def words(self) -> str: ...


@dataclass(frozen=True)
class LossSums:
    """Sums over the targets that count (≠ IGNORE); the ratios need `tokens` > 0.

    `bytes` is the length in UTF-8 of the text that the targets stand for, 0 where it is not known.
    """

    nll_nats: float = 0.0
    tokens: int = 0
    correct: int = 0
    bytes: int = 0

    def __add__(self, other: LossSums) -> LossSums:
        unknown = any(part.tokens and not part.bytes for part in (self, other))
        size = 0 if unknown else self.bytes + other.bytes
        return LossSums(self.nll_nats + other.nll_nats, self.tokens + other.tokens, self.correct + other.correct, size)

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nll_nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss), at most e⁷⁰⁰."""
        return math.exp(min(self.loss, 700.0))

    @property
    def accuracy(self) -> float:
        """Share of targets that are the model's likeliest token."""
        return self.correct / self.tokens

    @property
    def bits_per_byte(self) -> float | None:
        """The measure that compares models of different tokenizers; None where the bytes are not known."""
        return self.nll_nats / math.log(2) / self.bytes if self.bytes else None

    @property
    def words(self) -> str:
        """For a line of text."""
        bits = self.bits_per_byte
        return f"validation loss {self.loss:.4f}" + ("" if bits is None else f", {bits:.4f} bits per byte")

    @property
    def figures(self) -> dict[str, Any]:
        """Every ratio and the counts behind them, for a log or a report."""
        return {"loss": self.loss, "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte,
                "accuracy": self.accuracy, "tokens": self.tokens, "bytes": self.bytes}  # fmt: skip


@dataclass(frozen=True)
class PairSums:
    """Sums of a preference objective over `count` pairs (or rated answers), and of what else it measures."""

    summed: float = 0.0
    count: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: PairSums) -> PairSums:
        names = {**self.metrics, **other.metrics}
        metrics = {name: self.metrics.get(name, 0.0) + other.metrics.get(name, 0.0) for name in names}
        return PairSums(self.summed + other.summed, self.count + other.count, metrics)

    @property
    def loss(self) -> float:
        """A pair."""
        return self.summed / self.count

    @property
    def figures(self) -> dict[str, Any]:
        """As of `LossSums`."""
        means = {name: total / self.count for name, total in self.metrics.items()}
        return {"loss": self.loss, **means, "pairs": self.count}

    @property
    def words(self) -> str:
        """As of `LossSums`."""
        return f"validation loss {self.loss:.4f}, {self.figures['accuracy']:.1%} of {self.count:,} right"


def target_nats(model: Transformer, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """−log p of each target, and whether it is the likeliest token: (N,) float32 and (N,) bool.

    Args:
        hidden: (N, C) final hidden states.  targets: (N,) the tokens that follow them.

    CHUNK_ROWS at a time are multiplied by the head; the log-softmax is float32.
    """
    nats, likeliest = [], []
    for rows, labels in zip(hidden.split(CHUNK_ROWS), targets.split(CHUNK_ROWS), strict=True):
        logits = model.lm_head(rows).float()
        nats.append(cross_entropy(logits, labels, reduction="none"))
        likeliest.append(logits.argmax(-1) == labels)
    return torch.cat(nats), torch.cat(likeliest)


@torch.inference_mode()
def evaluate_loss(model: Transformer, batches: Iterable[Batch]) -> LossSums:
    """The loss of every target in `batches`, which are moved to the model's device.

    Only rows with a target are multiplied by the head; the sum is in `finest`. The model is put in eval mode and back.
    """
    device, was_training = model.embed_tokens.weight.device, model.training
    nll = torch.zeros((), dtype=finest(device), device=device)
    correct, tokens = torch.zeros((), dtype=torch.int64, device=device), 0
    model.eval()
    try:
        for batch in batches:
            batch = batch.to(device)
            hidden = model.hidden(batch.tokens, batch.positions, batch.segments)  # (B, T, C)
            kept = batch.targets != IGNORE
            targets = batch.targets[kept]  # (N,)
            tokens += len(targets)
            nats, likeliest = target_nats(model, hidden[kept], targets)
            nll += nats.to(nll.dtype).sum()
            correct += likeliest.sum()
    finally:
        model.train(was_training)
    return LossSums(nll.item(), tokens, int(correct.item()))


@torch.inference_mode()
def evaluate_answers(model: Transformer, objective: Objective, batches: Iterable[Batch]) -> PairSums:
    """The objective's own loss and metrics over `batches`, in eval mode, on the model's device."""
    device, was_training, found = model.embed_tokens.weight.device, model.training, PairSums()
    model.eval()
    try:
        for batch in batches:
            loss, metrics = objective(model, batch.to(device))
            seen = {name: value.item() for name, value in metrics.items()}
            found += PairSums(loss.item(), int(objective.weight(batch)), seen)
    finally:
        model.train(was_training)
    return found
