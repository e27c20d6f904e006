"""Shuffles and mixtures as pure functions: number in, number out, nothing stored. Not here: what is numbered."""

from __future__ import annotations

from collections.abc import Mapping

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
