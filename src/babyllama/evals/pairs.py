"""Pair accuracy: how often a model finds the better of two answers likelier than the other, and with what interval.

By a reward model's score; else by the mean log-probability a token, and by the gain over a reference (log π − log
π_ref, DPO's implicit reward) where its sums are known. Two that are equal count half. Not here: rows
(data/streams/answers.py), the reference (train/reference.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from babyllama.data.streams.answers import Answers
from babyllama.data.streams.batches import collated
from babyllama.evals.statistics import wilson
from babyllama.model.transformer import Transformer
from babyllama.train.losses.answers import pairs
from babyllama.train.losses.reward import pair_scores


@dataclass(frozen=True)
class PairAccuracy:
    """Of `pairs` pairs: `right` by the mean log-probability, `gained` by the ratio; mean log p a token of each side. Of
    a reward model `scored`, and the mean score of each side."""

    pairs: int
    right: float | None
    gained: float | None
    chosen: float
    rejected: float
    scored: float | None = None

    @property
    def figures(self) -> dict[str, Any]:
        """For a report: each accuracy with its 95 % interval (Wilson)."""
        found: dict[str, Any] = {"pairs": self.pairs, "chosen": self.chosen, "rejected": self.rejected}
        for name, right in (("by_mean", self.right), ("by_ratio", self.gained), ("by_score", self.scored)):
            found[name] = None
            if right is not None:
                low, high = wilson(right, self.pairs)
                found[name] = {"accuracy": right / self.pairs, "low": low, "high": high}
        return found


@torch.inference_mode()
def pair_accuracy(model: Transformer, rows: Answers, size: int) -> PairAccuracy | None:
    """Of all pairs in `rows`, `size` rows at a time; None where there is none. Compared where the rows have a
    reference."""
    device, found = model.embed_tokens.weight.device, list[Tensor]()
    for first in range(0, rows.rows, size):
        batch = collated([rows.row(number) for number in range(first, min(first + size, rows.rows))]).to(device)
        if model.config.reward:
            found.append(pair_scores(model, batch)[None].double().cpu())
            continue
        seen = pairs(model, batch)
        ratio = seen.mean if seen.reference is None else seen.ratio
        found.append(torch.stack([seen.mean, ratio]).double().cpu())
    if not found:
        return None
    if model.config.reward:
        (scores,) = torch.cat(found, 1)
        better, other = scores.mean(0).tolist()
        return PairAccuracy(len(scores), None, None, better, other, _in_order(scores))
    mean, ratio = torch.cat(found, 1)  # (P, 2) each
    right, gained = (_in_order(values) for values in (mean, ratio))
    chosen, rejected = mean.mean(0).tolist()
    return PairAccuracy(len(mean), right, None if rows.reference is None else gained, chosen, rejected)


def _in_order(values: Tensor) -> float:
    """How many of the pairs (P, 2) have the larger value first; equals count half."""
    return float(((values[:, 0] > values[:, 1]) + 0.5 * (values[:, 0] == values[:, 1])).sum())
