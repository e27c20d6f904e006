"""Shuffles and mixtures as pure functions: number in, number out, nothing stored. Not here: what is numbered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from babyllama.errors import InputError

BLOCK = 1000  # rows after which a mixture has its exact proportions
_ROUNDS = 4


def permute(index: np.ndarray, size: int, *key: int) -> np.ndarray:
    """The places of `index` (int64, each in 0 … size − 1) in the shuffle that `key` names: a bijection in no memory.

    A Feistel network over the smallest power of four ≥ `size`; what falls outside goes through it again.
    """
    half = max((size - 1).bit_length() + 1, 2) // 2
    low, shift = np.uint64((1 << half) - 1), np.uint64(half)
    secrets = [np.uint64(xxhash.xxh3_64_intdigest(repr((*key, size, number)).encode())) for number in range(_ROUNDS)]
    result = np.asarray(index, np.uint64).copy()
    outside = np.ones(result.shape, bool)
    while outside.any():
        left, right = result[outside] >> shift, result[outside] & low
        for secret in secrets:
            left, right = right, left ^ (_mix(right ^ secret) & low)
        result[outside] = (left << shift) | right
        outside = result >= np.uint64(size)
    return result.astype(np.int64)


def _mix(value: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: every bit of the input changes about half of the output's."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def block_counts(weights: Mapping[str, float]) -> dict[str, int]:
    """Rows of each corpus in a block of `BLOCK`, by largest remainder.

    Raises:
        InputError: a weight that is negative or below a thousandth of their sum, or none that is positive.
    """
    total = sum(weights.values())
    for label, weight in weights.items():
        if weight < 0 or (weight and total and weight * BLOCK < total):
            raise InputError(f"weights.{label}: {weight} must be 0, or at least 1/{BLOCK} of their sum {total:g}")
    if total <= 0:
        raise InputError("weights: at least one must be above 0")
    exact = {label: weight * BLOCK / total for label, weight in weights.items()}
    counts = {label: int(share) for label, share in exact.items()}
    by_remainder = sorted(exact, key=lambda label: counts[label] - exact[label])
    for label in by_remainder[: BLOCK - sum(counts.values())]:
        counts[label] += 1
    return counts


@dataclass(frozen=True)
class Order:
    """Endless numbers → rows of several corpora: all rows shuffled anew in each epoch, or so many of each in a block.

    Args:
        sizes: rows of each corpus.
        counts: how many of a `BLOCK`'s rows come from each, see `block_counts`; None: every row once an epoch.
    """

    sizes: Sequence[int]
    counts: Sequence[int] | None
    seed: int

    def places(self, first: int, count: int) -> list[tuple[int, int]]:
        """Numbers first … first + count − 1 as (number of the corpus, row in it)."""
        numbers = np.arange(first, first + count, dtype=np.int64)
        if self.counts is None:
            ends = np.cumsum(self.sizes)
            shuffled = self._shuffled(numbers, int(ends[-1]), -1)
            corpora = np.searchsorted(ends, shuffled, "right")
            starts = np.concatenate([[0], ends[:-1]])
            return list(zip(corpora.tolist(), (shuffled - starts[corpora]).tolist(), strict=True))
        ends = np.cumsum(self.counts)
        slots = self._shuffled(numbers, BLOCK, -2)
        corpora = np.searchsorted(ends, slots, "right")
        rows = np.empty_like(numbers)
        for corpus in np.unique(corpora).tolist():
            mine, share = corpora == corpus, self.counts[corpus]
            number = numbers[mine] // BLOCK * share + slots[mine] - (int(ends[corpus]) - share)
            rows[mine] = self._shuffled(number, self.sizes[corpus], corpus)
        return list(zip(corpora.tolist(), rows.tolist(), strict=True))

    def _shuffled(self, numbers: np.ndarray, size: int, salt: int) -> np.ndarray:
        """Endless numbers → places in 0 … size − 1, in a new order each time round."""
        result = numbers % size
        for epoch in np.unique(numbers // size).tolist():
            here = numbers // size == epoch
            result[here] = permute(result[here], size, self.seed, salt, epoch)
        return result
