"""Scores that others have published, for a report to put beside its own. None was measured here."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A model's figures as its authors give them.

    Attributes:
        scores: task → share of right answers.
        source: who says so.
    """

    name: str
    parameters: float
    scores: dict[str, float]
    source: str


PUBLISHED = (
    Published("minimind-3", 64e6, {"ceval": 0.2489, "cmmlu": 0.2538}, "the minimind project's README"),
)  # fmt: skip
