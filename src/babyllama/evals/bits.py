"""Loss, perplexity, bits per byte and next-token accuracy of a model on prepared corpora.

A chat counts its answers' tokens and bytes only, as its training did. Sums and counts; whoever reports divides.
Not here: the loss itself (train/validation.py), which documents belong to a split (data/).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.evaluation import evaluation
from babyllama.model.transformer import Transformer
from babyllama.train.validation import LossSums, evaluate_loss


def measure(model: Transformer, prepared: Prepared, labels: Iterable[str], split: str, context: int, rows: int,
            max_tokens: int | None, apart: bool = False) -> Iterator[tuple[str, LossSums]]:  # fmt: skip
    """(label, sums) of each corpus; one whose split is empty is passed over.

    Args:
        context: tokens of a row.  rows: of a batch.
        max_tokens: of each corpus; None takes the whole split.
        apart: texts as documents that do not see each other, for a model that was trained so.
    """
    for label in labels:
        held_out = evaluation(prepared, label, split, context, rows, max_tokens, apart)
        sums = evaluate_loss(model, held_out.batches)
        if sums.tokens:
            yield label, replace(sums, bytes=held_out.bytes)
