"""Answers of two programs → what is the same, and the first place where they differ.

Not here: who answers (peers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from babyllama.export.peers import Answer


class Compared(NamedTuple):
    """Of `asked` chats. prompts: with the same ids, None where the peer tells none.  first: the largest difference of
    log-probabilities at the answer's first place, nats; None where none could be compared.  answers, ends: the same
    ones.  remarks: the first difference of each kind, in a line."""

    asked: int
    prompts: int | None
    first: float | None
    answers: int
    ends: int
    remarks: list[str]

    def holds(self, tolerance: float, least: float) -> bool:
        """Whether all prompts agree, log-probabilities within `tolerance` and so large a share of answers and ends."""
        same = self.prompts in (None, self.asked) and (self.first is None or self.first <= tolerance)
        return same and min(self.answers, self.ends) >= least * self.asked


def compared(mine: Sequence[Answer], theirs: Sequence[Answer], text_of: Callable[[int], str], tolerance: float
             ) -> Compared:  # fmt: skip
    """Compare pair by pair.

    Args:
        text_of: a token of ours as text, for peers that name candidates by their text.
    """
    prompts = answers = ends = 0
    remarks: dict[str, str] = {}
    gaps: list[float] = []
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True), 1):
        told = b.prompt is not None
        prompts += told and a.prompt == b.prompt
        if told and a.prompt != b.prompt:
            remarks.setdefault("ids", f"prompt {number}: ids differ {_first(a.prompt or [], b.prompt or [])}")
        gap = _gap(a, b, text_of)
        gaps += [] if gap is None else [gap]
        if gap is not None and gap > tolerance:
            remarks.setdefault("first", f"prompt {number}: log-probabilities of the first token differ by {gap:.2g}")
        same = a.text == b.text if b.tokens is None else a.tokens == b.tokens
        answers += same
        ends += a.ended == b.ended
        if not same:
            where = _first(list(a.text), list(b.text)) if b.tokens is None else _first(a.tokens or [], b.tokens)
            remarks.setdefault("answers", f"prompt {number}: answers differ {where}")
        if a.ended != b.ended:
            who = "ends" if a.ended else "goes on"
            remarks.setdefault("ends", f"prompt {number}: ours {who}, theirs does not")
    return Compared(len(mine), prompts if theirs and theirs[0].prompt is not None else None,
                    max(gaps) if gaps else None, answers, ends, list(remarks.values()))  # fmt: skip


def _gap(a: Answer, b: Answer, text_of: Callable[[int], str]) -> float | None:
    """The largest difference over the candidates that both tell."""
    by_text = any(isinstance(key, str) for key in b.first)
    mine = {text_of(token): value for token, value in a.first.items()} if by_text else a.first
    return max((abs(value - b.first[key]) for key, value in mine.items() if key in b.first), default=None)


def _first(a: Sequence[object], b: Sequence[object]) -> str:
    """``at position 3: 7 here, 9 there``"""
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    here, there = (repr(s[at]) if at < len(s) else "nothing" for s in (a, b))
    return f"at position {at}: {here} here, {there} there"
