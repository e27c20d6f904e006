"""Intervals and tests against figures from books, enumeration and simulation."""

from __future__ import annotations

from itertools import permutations, product
from math import comb

import numpy as np
import pytest

from babyllama.evals.statistics import (
    Pick,
    above_chance,
    at_least,
    bootstrap,
    by_parts,
    by_place,
    by_rate,
    by_size,
    interval,
    mcnemar,
    paired,
    verdict,
    wilson,
)


def test_wilson_is_the_textbooks():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998, table I
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_the_exact_tail_equals_enumeration():
    chances = [0.5, 0.25, 0.2, 1 / 3, 0.25]
    for right in range(6):
        expected = sum(np.prod([c if hit else 1 - c for c, hit in zip(chances, hits, strict=True)])
                       for hits in product((0, 1), repeat=5) if sum(hits) >= right)  # fmt: skip
        assert at_least(right, chances) == pytest.approx(expected)
    binomial = sum(comb(100, k) * 0.25**k * 0.75 ** (100 - k) for k in range(34, 101))
    assert at_least(34, [0.25] * 100) == pytest.approx(binomial)


def test_shuffled_hits_have_the_mean_and_variance_of_all_permutations():
    taken, right = [0, 0, 1, 2, 1, 0], [0, 1, 1, 2, 0, 0]
    hits = [sum(a == b for a, b in zip(order, right, strict=True)) for order in permutations(taken)]
    z = (4 - np.mean(hits) - 0.5) / np.std(hits)
    found = by_place([Pick((1, 1, 1), a, b) for a, b in zip(taken, right, strict=True)])
    from statistics import NormalDist

    assert found == pytest.approx(1 - NormalDist().cdf(z), abs=1e-9)


def test_cheap_habits_are_chance():
    draw = np.random.default_rng(0)
    rights = draw.choice(4, 1000, p=[0.15, 0.35, 0.3, 0.2]).tolist()
    always_b = [Pick((1, 1, 1, 1), 1, right) for right in rights]
    assert at_least(sum(r == 1 for r in rights), [0.25] * 1000) < 1e-6 and above_chance(always_b) == 1
    shortest = []  # the right one is the shortest in 60 %, and the shortest is always taken; elsewhere all are equal
    for _ in range(500):
        place = int(draw.integers(4))
        right = place if draw.random() < 0.6 else (place + 1) % 4
        shortest.append(Pick(tuple(2 if i == place else 5 for i in range(4)), place, right))
        shortest.append(Pick((3, 3, 3, 3), int(draw.integers(4)), int(draw.integers(4))))
    assert by_place(shortest) < 1e-6 and by_size(shortest) > 0.05
    rates = [pick._replace(sizes=(4,) * 4, rates=pick.sizes) for pick in shortest]  # the fewest tokens a character
    assert by_size(rates) < 1e-6 and by_rate(rates) == by_size(shortest) <= above_chance(rates)
    assert verdict(above_chance(shortest)) == "not distinguishable from chance"


def test_knowing_is_above_chance_and_guessing_is_so_in_at_most_five_of_a_hundred():
    draw = np.random.default_rng(1)

    def picks(knows):
        found = []
        for _ in range(200):
            sizes, right = tuple(draw.integers(1, 4, 4).tolist()), int(draw.integers(4))
            found.append(Pick(sizes, right if draw.random() < knows else int(draw.integers(4)), right))
        return found

    assert above_chance(picks(0.3)) < 0.001 and verdict(above_chance(picks(0.3))) == "above chance, p < 0.001"
    assert sum(above_chance(picks(0.0)) < 0.05 for _ in range(400)) <= 30  # 20 expected at most; 30 is 2.3 sigma


def test_exchanged_parts_are_the_enumeration_of_all_exchanges():
    """Two blocks of two options and one of three: all 2 · 2 · 6 exchanges, typed out."""
    blocks = {"a": [(0, 0), (0, 1), (0, 0)], "b": [(1, 0), (0, 1)], "c": [(0, 0), (1, 1), (1, 2)]}
    options = {"a": 2, "b": 2, "c": 3}
    picks = [Pick((1,) * options[name], taken, right, name) for name, held in blocks.items() for taken, right in held]
    ways = [[sum(order[taken] == right for taken, right in held) for order in permutations(range(options[name]))]
            for name, held in blocks.items()]  # fmt: skip
    sums = [sum(way) for way in product(*ways)]
    assert by_parts(picks) == pytest.approx(sum(s >= 2 + 0 + 2 for s in sums) / 24)
    alone = [Pick((1, 1, 1, 1), 0, int(i > 2)) for i in range(9)]
    assert by_parts(alone) == pytest.approx(at_least(3, [0.25] * 9))


def test_one_preference_that_answers_many_items_is_one_observation():
    """40 blocks of ten items, each answered alike by a coin: 5 % of such models are called above chance, not more; as
    items alone a third would be."""
    draw = np.random.default_rng(3)
    called, alone, covered = 0, 0, 0
    for _ in range(300):
        picks = [
            Pick((1, 1), 0, int(side), str(n)) for n, side in enumerate(draw.integers(0, 2, 40)) for _ in range(10)
        ]
        called += above_chance(picks) < 0.05
        alone += at_least(sum(pick.taken == pick.right for pick in picks), [0.5] * 400) < 0.05
        low, high = interval(picks)
        covered += low <= 0.5 <= high
    assert called <= 25 and alone > 80 and covered >= 275  # 15 and 285 expected
    unequal = [pick._replace(sizes=(1, 2), taken=pick.right) for pick in picks]
    assert above_chance(unequal) == 1  # their length could tell


def test_the_interval_is_wilsons_where_items_are_alone_and_that_of_blocks_where_they_hang_together():
    alone = [Pick((1, 1), 0, int(i >= 81)) for i in range(263)]
    assert interval(alone) == wilson(81, 263)
    together = [Pick((1, 1), 0, int(b >= 9), str(b)) for b in range(20) for _ in range(8)]
    assert interval(together) == pytest.approx(wilson(9 * 19 / 20, 19), abs=1e-9)  # one of 20 for the mean of blocks
    assert interval([pick._replace(right=0) for pick in together]) == wilson(20, 20)


def test_two_models():
    first, second = [True] * 60 + [False] * 40, [True] * 45 + [False] * 15 + [True] * 5 + [False] * 35
    found = mcnemar(first, second)
    assert found.value == pytest.approx(0.10)
    assert found.p == pytest.approx(2 * sum(comb(20, k) for k in range(15, 21)) / 2**20)
    assert found.margin == pytest.approx(1.96 * np.std([1] * 15 + [-1] * 5 + [0] * 80) / 10, rel=1e-4)
    assert mcnemar([True], [True]).p == 1
    blocks = [str(i // 5) for i in range(100)]  # of five that fell out alike for both: 3 blocks against one
    again = mcnemar(first, second, blocks)
    assert again.value == found.value and again.p == pytest.approx(2 * (1 + 4) / 16)
    assert again.margin == pytest.approx(found.margin * 5**0.5, rel=1e-2)
    again = paired(list(map(float, first)), list(map(float, second)))
    assert again.value == pytest.approx(0.10) and again.margin == pytest.approx(found.margin, rel=0.1)
    assert again == paired(list(map(float, first)), list(map(float, second))) and again.p == pytest.approx(
        0.04, abs=0.03
    )


def test_the_bootstrap_is_close_to_the_normal_interval():
    values = np.random.default_rng(2).normal(3, 2, 400)
    low, high = bootstrap(values)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
