"""Rows whose positions are spread over a longer context, for laws that learn to reach it (CLEX, arXiv 2310.16450).

A pure function of (seed, row), like the streams it wraps. Not here: the law (model/clex.py), which tokens a row has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from babyllama.data.streams.batches import Batch, Rows
from babyllama.errors import InputError


@dataclass(frozen=True)
class Stretched:
    """`rows` with T sorted random positions in 0 … t·trained − 1 for each, the first and the last among them.

    t is drawn for each row from 2 … most, never so small that the row would not fit.

    Raises:
        InputError: a row is longer than `most` times the trained context.
    """

    rows: Rows
    trained: int
    most: int
    context: int
    seed: int

    def __post_init__(self) -> None:
        if self.context > self.most * self.trained:
            raise InputError(f"plan.context: {self.context} is above {self.most} × {self.trained} (stretch × trained)")

    def batch(self, first_row: int, count: int) -> Batch:
        """The same tokens at other positions."""
        drawn = [self.positions(row) for row in range(first_row, first_row + count)]
        return replace(self.rows.batch(first_row, count), positions=torch.from_numpy(np.stack(drawn)))

    def positions(self, row: int) -> np.ndarray:
        """(T,) int64, rising."""
        draw = np.random.Generator(np.random.Philox(key=[self.seed % 2**63, row]))
        t = int(draw.integers(max(2, -(-self.context // self.trained)), self.most + 1))
        last = t * self.trained - 1
        inner = 1 + draw.choice(last - 1, self.context - 2, replace=False, shuffle=False)
        return np.concatenate([[0], np.sort(inner), [last]]).astype(np.int64)
