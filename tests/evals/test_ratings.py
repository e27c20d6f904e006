"""Bradley–Terry against the closed form of two, and against a likelihood searched by brute force."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from babyllama.evals.ratings import Vote, ratings, strengths


def test_of_two_it_is_the_closed_form():
    found = strengths(np.array([[0.0, 30.0], [10.0, 0.0]]), prior=0)
    assert found[0] - found[1] == pytest.approx(math.log(3)) and found.sum() == pytest.approx(0)
    found = strengths(np.array([[0.0, 5.0], [0.0, 0.0]]))  # half a vote more for each side
    assert found[0] - found[1] == pytest.approx(math.log(5.5 / 0.5))


def test_of_three_it_is_the_likeliest_point_of_a_grid():
    wins = np.array([[0.0, 7.0, 4.0], [3.0, 0.0, 6.5], [2.0, 1.5, 0.0]])

    def likelihood(a, b):
        s = (a, b, -a - b)
        return sum(wins[i, j] * -math.log1p(math.exp(s[j] - s[i])) for i in range(3) for j in range(3) if i != j)

    grid = np.arange(-1.5, 1.5, 0.02)
    best = max(product(grid, grid), key=lambda point: likelihood(*point))
    found = strengths(wins, prior=0)
    assert found[:2] == pytest.approx(best, abs=0.011)
    assert likelihood(*found[:2]) >= likelihood(*best)


def test_intervals_hold_what_made_the_votes_and_ties_are_half():
    draw, truth = np.random.default_rng(0), {"a": 0.8, "b": 0.0, "c": -0.8}
    votes = []
    for _ in range(240):
        first, second = draw.choice(list(truth), 2, replace=False)
        won = draw.random() < 1 / (1 + math.exp(truth[second] - truth[first]))
        votes.append(Vote(str(first), str(second), float(won)))
    found = ratings(votes, draws=200)
    assert [one.name for one in found] == ["a", "b", "c"] and sum(one.votes for one in found) == 480
    assert all(one.low < truth[one.name] < one.high and one.high - one.low < 1.2 for one in found)
    assert found == ratings(votes, draws=200)
    tied = ratings([Vote("x", "y", 0.5)] * 9, draws=20)
    assert [one.strength for one in tied] == pytest.approx([0, 0])
