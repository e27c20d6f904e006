"""A row of a training taken apart again: the stretches that see each other, what is learned in each, padding.

Not here: which row (batches.py), text (data/shards/samples.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from babyllama.data.streams.batches import Batch
from babyllama.data.streams.rows import IGNORE


@dataclass(frozen=True, eq=False)
class Stretch:
    """Tokens of a row that see each other. The last one may be a target only, with no place of its own in the row.

    Attributes:
        tokens, learned, positions: (n,); learned: whether the loss covers the token as a target.
        padding: nothing is learned here, it only fills the row.
        label: 1 of an answer that people found good, −1 of a bad one, 0 of all else.
    """

    tokens: np.ndarray
    learned: np.ndarray
    positions: np.ndarray
    padding: bool = False
    label: int = 0


def stretches(batch: Batch, row: int, eos: int) -> list[Stretch]:
    """One row of a batch. `eos`: what padding is filled with."""
    tokens, targets = batch.tokens[row].numpy(), batch.targets[row].numpy()
    places = np.arange(len(tokens))
    positions = places if batch.positions is None else batch.positions[row].numpy()
    cuts = [0] if batch.segments is None else np.flatnonzero(np.diff(batch.segments[row].numpy(), prepend=-1)).tolist()
    cuts = [*cuts, *_padding(tokens, targets, cuts[-1], eos), len(tokens)]
    labels = batch.extras["label"][row].tolist() if "label" in batch.extras else [0] * len(cuts)
    return [_stretch(tokens, targets, positions, slice(first, stop), eos, label)
            for first, stop, label in zip(cuts, cuts[1:], labels, strict=False)]  # fmt: skip


def _padding(tokens: np.ndarray, targets: np.ndarray, first: int, eos: int) -> list[int]:
    """Where the padding of a row's last stretch begins, if it has any beside tokens."""
    used = np.flatnonzero((tokens != eos) | (targets != IGNORE))
    begin = int(used[-1]) + 1 if len(used) else 0
    return [begin] if first < begin < len(tokens) else []


def _stretch(tokens: np.ndarray, targets: np.ndarray, positions: np.ndarray, part: slice, eos: int,
             label: int) -> Stretch:  # fmt: skip
    inputs, wanted, places = tokens[part], targets[part], positions[part]
    if (inputs == eos).all() and (wanted == IGNORE).all():
        return Stretch(inputs, np.zeros(len(inputs), bool), places, padding=True)
    learned = np.concatenate([[False], wanted[:-1] != IGNORE])
    if wanted[-1] != IGNORE:
        inputs, learned = np.append(inputs, wanted[-1]), np.append(learned, True)
        places = np.append(places, places[-1] + 1)
    return Stretch(inputs, learned, places, label=label)
