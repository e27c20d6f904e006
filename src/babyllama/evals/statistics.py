"""What a score is worth: intervals, tests against chance, two models on the same items.

Chance is more than 1 / options: a model that has learned nothing still prefers one letter, one word, or the shortest
option. So a score is called above chance only if none of these explains it.

    items alone   higher than guessing gives (exact), than the model's own letters shuffled over the items would give,
                  and than its own preference for short or long options would give, by tokens and by tokens a character
    in blocks     items whose options play the same parts (made.py) are one observation. To a model that has learned
                  nothing the parts are alike, so what it took would be as likely with the parts exchanged: p is the
                  share of all exchanges, one in each block, that give as many hits. Exact, however much the items of
                  a block hang together. Items whose options differ in tokens are left out: their length could tell

Not here: which items, how they are scored.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise, permutations
from typing import Any, NamedTuple

import numpy as np

Z = 1.959963984540054  # the normal distribution's 97.5 % point
LEVEL = 0.05


class Pick(NamedTuple):
    """One item: how large each option is (tokens), which one was taken, which one is right, its block (items.py), and
    how many tokens each option has for a character; () where nobody divides by characters."""

    sizes: tuple[int, ...]
    taken: int
    right: int
    block: str = ""
    rates: tuple[float, ...] = ()


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


def interval(picks: Sequence[Pick]) -> tuple[float, float]:
    """95 % interval of the share that is right. Items in blocks count as as many items alone as would scatter like
    them, by the variance between blocks. Source: Korn and Graubard 1998, with Wilson's interval."""
    hits = np.array([pick.taken == pick.right for pick in picks], np.float64)
    share, blocks = hits.mean(), _blocks(picks)
    worth = float(len(picks))
    if len(blocks) < len(picks):
        apart = np.array([(hits[held] - share).sum() for held in blocks])
        variance = (apart**2).sum() / len(hits) ** 2 * len(blocks) / max(1, len(blocks) - 1)
        even = 0 < share < 1 and len(blocks) > 1
        worth = min(worth, share * (1 - share) / max(variance, 1e-12)) if even else float(len(blocks))
    return wilson(share * worth, worth)


def _blocks(picks: Sequence[Pick]) -> list[list[int]]:
    """Places of the items of each block; an item alone is one."""
    found: dict[Any, list[int]] = defaultdict(list)
    for place, pick in enumerate(picks):
        found[pick.block or place].append(place)
    return list(found.values())


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


def by_parts(picks: Sequence[Pick]) -> float:
    """P(at least as many hits) if in each block the options' parts were exchanged at random: exact, by enumeration.

    An item alone is a block of one: its hit has the chance 1 / options.
    """
    kinds, hits = Counter[tuple[float, ...]](), 0
    for held in _blocks(picks):
        options = len(picks[held[0]].sizes)
        table = np.zeros((options, options), int)  # taken × right
        for place in held:
            table[picks[place].taken, picks[place].right] += 1
        hits += int(table.trace())
        if len(held) == 1:
            kinds[1 - 1 / options, 1 / options] += 1
        else:
            counts = [table[range(options), order].sum() for order in permutations(range(options))]
            kinds[tuple(np.bincount(counts) / len(counts))] += 1
    spread = np.ones(1)
    for ways, times in kinds.items():
        spread = np.convolve(spread, _repeated(np.array(ways), times))
    return float(min(1.0, spread[hits:].sum()))


def _repeated(ways: np.ndarray, times: int) -> np.ndarray:
    """The distribution of the sum of so many draws."""
    if times == 1:
        return ways
    half = _repeated(ways, times // 2)
    twice = np.convolve(half, half)
    return np.convolve(twice, ways) if times % 2 else twice


def by_place(picks: Sequence[Pick]) -> float:
    """p of as many hits if what is taken had nothing to do with the item: the places taken, shuffled over the items.

    One preferred letter gives p = 1, however often it happens to be right.
    """
    return _shuffled([(str(len(pick.sizes)), pick.taken, pick.right) for pick in picks])


def by_size(picks: Sequence[Pick]) -> float:
    """The same for the options' order by size: always taking the shortest gives p = 1."""
    return _by_order([(pick.sizes, pick.taken, pick.right) for pick in picks])


def by_rate(picks: Sequence[Pick]) -> float:
    """The same for their order by tokens a character, which decides where log-likelihoods are divided by characters."""
    return _by_order([(pick.rates, pick.taken, pick.right) for pick in picks if pick.rates])


def _by_order(picks: Sequence[tuple[Sequence[float], int, int]]) -> float:
    cases = []
    for sizes, taken, right in picks:
        order = sorted(range(len(sizes)), key=lambda i: (sizes[i], i))
        steps = "".join("<" if sizes[a] < sizes[b] else "=" for a, b in pairwise(order))
        cases.append((steps, order.index(taken), order.index(right)))
    return _shuffled(cases)


def _shuffled(cases: Sequence[tuple[str, int, int]]) -> float:
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
    return normal_tail((hits - mean - 0.5) / math.sqrt(variance))


def normal_tail(z: float) -> float:
    """P(a standard normal value ≥ z)."""
    return math.erfc(z / math.sqrt(2)) / 2


def above_chance(picks: Sequence[Pick]) -> float:
    """p that nothing was learned: below 0.05 no cheap habit explains the score. See above for the tests."""
    if any(pick.block for pick in picks):
        return by_parts([pick for pick in picks if len(set(pick.sizes)) == 1])
    habits = by_place(picks), by_size(picks), by_rate(picks) if all(pick.rates for pick in picks) else 0.0
    return max(by_parts(picks), *habits)


def verdict(p: float) -> str:
    """In words."""
    return f"above chance, {p_words(p)}" if p < LEVEL else "not distinguishable from chance"


def p_words(p: float) -> str:
    """``p = 0.012``, ``p < 0.001``."""
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def mcnemar(first: Sequence[bool], second: Sequence[bool], blocks: Sequence[str] = ()) -> Difference:
    """Two models on the same yes-or-no items.

    p is exact: as likely would each block have fallen out the other way round for the two models. Of items alone that
    is McNemar's test (binomial over the items where they differ).

    Args:
        blocks: of each item, as in Pick; empty: all are alone.
    """
    apart = np.array(first, int) - np.array(second, int)
    value, n = float(apart.mean()), len(apart)
    held = _blocks([Pick((), 0, 0, block) for block in blocks or [""] * n])
    sums = np.array([apart[places].sum() for places in held])
    margin = Z * math.sqrt(sum((apart[places] - value).sum() ** 2 for places in held)) / n
    spread = np.ones(1)  # of the sum of all blocks with drawn signs, from its least value on
    for size in abs(sums[sums != 0]):
        spread = np.convolve(spread, np.bincount([0, 2 * size]) / 2)
    most, total = int(abs(sums).sum()), abs(int(sums.sum()))
    beyond = spread[most + total :].sum() + spread[: most - total + 1].sum()
    return Difference(value, margin, float(min(1.0, beyond)))


def paired(first: Sequence[float], second: Sequence[float], draws: int = 2000, seed: int = 0) -> Difference:
    """Two models on the same items by any figure; paired bootstrap."""
    apart = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    generator = np.random.default_rng(seed)
    means = np.array([apart[generator.integers(0, len(apart), len(apart))].mean() for _ in range(draws)])
    low, high = np.quantile(means, (0.025, 0.975))
    beyond = min((means <= 0).mean(), (means >= 0).mean())
    return Difference(float(apart.mean()), float(high - low) / 2, float(min(1.0, 2 * max(beyond, 1 / draws))))
