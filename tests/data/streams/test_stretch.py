"""Stretched positions: rising, from 0 to the end of a whole number of contexts, a pure function of seed and row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from babyllama.data.streams.batches import Batch
from babyllama.data.streams.stretch import Stretched
from babyllama.errors import InputError


class Numbers:
    def batch(self, first_row: int, count: int) -> Batch:
        tokens = torch.arange(first_row, first_row + count)[:, None].expand(-1, 16)
        return Batch(tokens, tokens + 1)


def make(context=16, trained=16, most=5, seed=3):
    return Stretched(Numbers(), trained, most, context, seed)


@pytest.mark.parametrize("context", [16, 24, 40, 80])
def test_positions(context):
    rows = np.stack([make(context).positions(row) for row in range(400)])
    assert (rows[:, 0] == 0).all() and (np.diff(rows, axis=1) >= 1).all()
    contexts = (rows[:, -1] + 1) / 16
    assert set(contexts.tolist()) == set(range(max(2, -(-context // 16)), 6))  # every t that has room, nothing else
    if context == 16:
        longest = rows[contexts == 5]
        assert abs(longest[:, 8].mean() - 8 / 15 * 79) < 5  # spread over all of it, not bunched


def test_it_is_addressed_by_row():
    stream = make()
    together = stream.batch(4, 6)
    assert torch.equal(together.tokens, Numbers().batch(4, 6).tokens)
    for row in range(6):
        assert torch.equal(stream.batch(4 + row, 1).positions[0], together.positions[row])
    assert not torch.equal(together.positions, make(seed=4).batch(4, 6).positions)
    assert len({tuple(row.tolist()) for row in together.positions}) == 6


def test_a_row_that_does_not_fit():
    with pytest.raises(InputError, match=r"plan.context: 81 is above 5 × 16"):
        make(81)
