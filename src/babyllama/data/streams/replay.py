"""Replay: rows of earlier training data between the new ones, against forgetting. Not here: the streams themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from babyllama.data.streams.batches import Batch, Stream, collated
from babyllama.data.streams.order import BLOCK, block_counts, permute
from babyllama.recipe import Recipe

SALT = -4


class Replay(Recipe):
    """`share` of all rows come from the prepared folder `path`, packed as by default, with every document apart. Where
    the model learns from its own answers, a stretch of text is read beside each, and has `share` of the loss."""

    path: Path = Field(description="the prepared corpus of earlier data")
    share: float = Field(default=0.1, gt=0, lt=1, description="fraction of the rows, in thousandths")
    weights: dict[str, float] | None = Field(
        default=None, description="of the earlier corpora, by label; default: all of each"
    )


@dataclass(frozen=True, eq=False)
class Mixed:
    """Rows of two streams in one, addressed by row as theirs: each thousand has exactly its share of `replay`."""

    new: Stream
    replay: Stream
    share: float
    seed: int

    @property
    def _new_rows(self) -> int:
        """Of each thousand."""
        return block_counts({"new": 1 - self.share, "replay": self.share})["new"]

    @property
    def rows(self) -> int:
        """Until every new row has been read once."""
        return math.ceil(self.new.rows * BLOCK / self._new_rows)

    @property
    def fill(self) -> float:
        """As in Stream."""
        share = self._new_rows / BLOCK
        return share * self.new.fill + (1 - share) * self.replay.fill

    def batch(self, first_row: int, count: int) -> Batch:
        """Rows first_row … first_row + count − 1 of the endless order."""
        return collated(
            [(self.new if new else self.replay).row(number) for new, number in self.places(first_row, count)]
        )

    def places(self, first_row: int, count: int) -> list[tuple[bool, int]]:
        """The same rows as (whether it is new, its number in its stream)."""
        found, size = [], self._new_rows
        for block, slot in (divmod(number, BLOCK) for number in range(first_row, first_row + count)):
            place = int(permute(np.array([slot]), BLOCK, self.seed, SALT, block)[0])
            new = place < size
            found.append((new, block * size + place if new else block * (BLOCK - size) + place - size))
        return found
