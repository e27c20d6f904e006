"""What a score is worth: intervals, tests against chance, two models on the same items.

Chance is more than 1 / options: a model that has learned nothing still prefers one letter, or the shortest option, and
where answers are spread unevenly that alone is more or less than 1 / options. So a score is called above chance only
if it is higher than guessing gives (exact Poisson-binomial), than its own letters shuffled over the items would give,
and than its own preference for short or long options would give. Not here: which items, how they are scored.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

Z = 1.959963984540054  # the normal distribution's 97.5 % point
LEVEL = 0.05


class Pick(NamedTuple):
    """One item: how large each option is (tokens), which one was taken, which one is right."""

    sizes: tuple[int, ...]
    taken: int
    right: int


class Difference(NamedTuple):
    """Of two scores on the same items, first − second: its value, half of its 95 % interval, and a two-sided p."""

    value: float
    margin: float
    p: float


def wilson(right: float, asked: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share. Source: Wilson 1927."""
    if not asked:
        return 0.0, 1.0
    share, z2 = right / asked, Z * Z / asked
    middle = (share + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(share * (1 - share) / asked + z2 / asked / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(values: Sequence[float], draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of a mean, by drawing items anew; always the same for the same values."""
    held = np.asarray(values, np.float64)
    if not len(held):
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    means = [held[generator.integers(0, len(held), len(held))].mean() for _ in range(draws)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def at_least(right: int, chances: Sequence[float]) -> float:
    """P(at least `right` of the items are hit) where each is hit with its own chance: exact, by its distribution."""
    spread = np.zeros(len(chances) + 1)
    spread[0] = 1.0
    for count, chance in enumerate(chances, start=1):
        spread[1 : count + 1] = spread[1 : count + 1] * (1 - chance) + spread[:count] * chance
        spread[0] *= 1 - chance
    return float(min(1.0, spread[right:].sum()))


def by_place(picks: Sequence[Pick], spread: float = 1.0) -> float:
    """p of as many hits if what is taken had nothing to do with the item: the places taken, shuffled over the items.

    One preferred letter gives p = 1, however often it happens to be right.
    """
    return _shuffled([(str(len(pick.sizes)), pick.taken, pick.right) for pick in picks], spread)


def by_size(picks: Sequence[Pick], spread: float = 1.0) -> float:
    """The same for the options' order by size: always taking the shortest gives p = 1."""
    cases = []
    for sizes, taken, right in picks:
        order = sorted(range(len(sizes)), key=lambda i: (sizes[i], i))
        steps = "".join("<" if sizes[a] < sizes[b] else "=" for a, b in pairwise(order))
        cases.append((steps, order.index(taken), order.index(right)))
    return _shuffled(cases, spread)


def _shuffled(cases: Sequence[tuple[str, int, int]], spread: float) -> float:
    """One-sided p of the hits among (kind, taken, right), if `taken` is shuffled within each kind.

    Mean and variance of the hits are exact (sums of hypergeometric counts); their sum is taken for normal, with a
    correction of half a hit.
    """
    kinds: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for kind, taken, right in cases:
        kinds[kind].append((taken, right))
    hits = mean = variance = 0.0
    for pairs in kinds.values():
        n = len(pairs)
        taken, right = (np.bincount([p[side] for p in pairs], minlength=64).astype(float) for side in (0, 1))
        both = taken * right
        hits += sum(a == b for a, b in pairs)
        mean += both.sum() / n
        if n > 1:
            across = both.sum() ** 2 - (both**2).sum()
            variance += ((both * (n - taken) * (n - right)).sum() + across) / (n * n * (n - 1))
    if variance < 1e-9:
        return 1.0
    return normal_tail((hits - mean - 0.5) / math.sqrt(spread * variance))


def normal_tail(z: float) -> float:
    """P(a standard normal value ≥ z)."""
    return math.erfc(z / math.sqrt(2)) / 2


def above_chance(picks: Sequence[Pick], spread: float = 1.0) -> float:
    """The largest p of the three tests: below 0.05 no cheap habit explains the score.

    Args:
        spread: how many times as much as independent items the score of an untrained model varies, where items share
            words; above 1 the first test is no longer exact but the normal distribution's.
    """
    right = sum(pick.taken == pick.right for pick in picks)
    chances = [1 / len(pick.sizes) for pick in picks]
    if spread == 1:
        guessing = at_least(right, chances)
    else:
        variance = spread * sum(chance * (1 - chance) for chance in chances)
        guessing = normal_tail((right - sum(chances) - 0.5) / math.sqrt(variance))
    return max(guessing, by_place(picks, spread), by_size(picks, spread))


def verdict(p: float) -> str:
    """In words."""
    return f"above chance, {p_words(p)}" if p < LEVEL else "not distinguishable from chance"


def p_words(p: float) -> str:
    """``p = 0.012``, ``p < 0.001``."""
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Difference:
    """Two models on the same yes-or-no items; p exact (binomial over the items where they differ)."""
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    n, apart = len(first), only_first + only_second
    value = (only_first - only_second) / n
    margin = Z * math.sqrt(apart - (only_first - only_second) ** 2 / n) / n
    p = 2 * at_least(max(only_first, only_second), [0.5] * apart)
    return Difference(value, margin, min(1.0, p))


def paired(first: Sequence[float], second: Sequence[float], draws: int = 2000, seed: int = 0) -> Difference:
    """Two models on the same items by any figure; paired bootstrap."""
    apart = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    generator = np.random.default_rng(seed)
    means = np.array([apart[generator.integers(0, len(apart), len(apart))].mean() for _ in range(draws)])
    low, high = np.quantile(means, (0.025, 0.975))
    beyond = min((means <= 0).mean(), (means >= 0).mean())
    return Difference(float(apart.mean()), float(high - low) / 2, float(min(1.0, 2 * max(beyond, 1 / draws))))
