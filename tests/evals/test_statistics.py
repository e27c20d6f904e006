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
    by_place,
    by_size,
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


def test_two_models():
    first, second = [True] * 60 + [False] * 40, [True] * 45 + [False] * 15 + [True] * 5 + [False] * 35
    found = mcnemar(first, second)
    assert found.value == pytest.approx(0.10)
    assert found.p == pytest.approx(2 * sum(comb(20, k) for k in range(15, 21)) / 2**20)
    assert found.margin == pytest.approx(1.96 * np.std([1] * 15 + [-1] * 5 + [0] * 80) / 10, rel=1e-4)
    assert mcnemar([True], [True]).p == 1
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
