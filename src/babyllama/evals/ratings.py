"""Votes between two → a strength for each: Bradley–Terry, with intervals by drawing the votes anew.

P(a is preferred to b) = 1 / (1 + e^(b − a)), strengths in logits with mean 0. A tie is half a vote for each. Every pair
that met has half a vote more for each side, so that who won every time has a finite strength. Sources: Bradley and
Terry 1952; Hunter 2004 (the iteration). Not here: where votes come from (commands/arena.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PRIOR = 0.5


class Vote(NamedTuple):
    """One comparison: the two, and how much of it the first won (1, ½ or 0)."""

    first: str
    second: str
    won: float


class Rating(NamedTuple):
    """strength: logits.  low, high: its 95 % interval.  votes: in which it stood."""

    name: str
    strength: float
    low: float
    high: float
    votes: int


def ratings(votes: Sequence[Vote], draws: int = 1000, seed: int = 0) -> list[Rating]:
    """The strongest first; the same for the same votes."""
    names = sorted({name for vote in votes for name in (vote.first, vote.second)})
    at = {name: place for place, name in enumerate(names)}
    cases = np.array([(at[vote.first], at[vote.second]) for vote in votes])
    won = np.array([vote.won for vote in votes])
    generator = np.random.default_rng(seed)
    drawn = [strengths(_wins(cases[picked], won[picked], len(names)))
             for picked in (generator.integers(0, len(votes), len(votes)) for _ in range(draws))]  # fmt: skip
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    found = strengths(_wins(cases, won, len(names)))
    stood = np.bincount(cases.ravel(), minlength=len(names))
    return [Rating(names[i], float(found[i]), float(low[i]), float(high[i]), int(stood[i])) for i in np.argsort(-found)]


def _wins(cases: np.ndarray, won: np.ndarray, count: int) -> np.ndarray:
    """(n, n): how many votes the row has over the column."""
    wins = np.zeros((count, count))
    np.add.at(wins, (cases[:, 0], cases[:, 1]), won)
    np.add.at(wins, (cases[:, 1], cases[:, 0]), 1 - won)
    return wins


def strengths(wins: np.ndarray, prior: float = PRIOR) -> np.ndarray:
    """The likeliest strengths (n,), mean 0. Those between whom no vote leads are apart by what the prior says: nothing.

    Args:
        wins: (n, n), votes of the row over the column.
        prior: votes for each side of every pair that met; 0 for the plain likelihood.
    """
    met = (wins + wins.T) > 0
    wins = wins + prior * met
    total, games = wins.sum(1), wins + wins.T
    worth = np.ones(len(wins))
    for _ in range(10_000):
        with np.errstate(divide="ignore", invalid="ignore"):
            found = total / (games / (worth[:, None] + worth)).sum(1)
        found = np.where(games.sum(1) > 0, found, worth)
        found /= np.exp(np.log(found).mean())
        if np.abs(np.log(found / worth)).max() < 1e-10:
            break
        worth = found
    return np.log(worth)
