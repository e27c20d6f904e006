"""The answers that a training drew and learned from, by step: a page at a time of a file of any size.

rollouts.jsonl is sorted by step, so a step is found by halving, and no more is read than what is shown.
Not here: what a line says (train/rl/record.py), HTTP (pages.py), the page (web/rollouts.js).
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from babyllama.atomic import parse_json

NAME = "rollouts.jsonl"
PAGE = 1 << 19  # bytes of lines in one answer, and a line more
BACK = 1 << 14  # bytes at a time on the way back to the beginning of a line
Json = dict[str, Any]


def page(path: Path, step: int | None = None, at: int | None = None) -> Json:
    """Answers of the last rollout that was drawn at `step` or before; None: of the newest.

    Args:
        at: where in the file to go on, as `more` of the page before said; then `step` says nothing.

    Returns:
        `step`, of the rollout; None where there are no answers yet. `first`, `last`, `before`, `after`: steps of other
        rollouts, None where there is none. `answers`: as in the file. `more`: None after the last of the rollout.
    """
    try:
        with path.open("rb") as handle:
            return _page(_Lines(handle), step, at)
    except OSError:
        return _page(_Lines(BytesIO()), step, at)


def _page(lines: _Lines, step: int | None, at: int | None) -> Json:
    if at is not None:
        shown = lines.step(lines.after(at))
    else:
        shown = lines.step_before(lines.end if step is None else lines.first(step + 1))
        shown = lines.step(0) if shown is None else shown  # none so early
    if shown is None:
        return {"step": None, "first": None, "last": None, "before": None, "after": None, "answers": [], "more": None}
    begin, stop = lines.first(shown), lines.first(shown + 1)
    answers, more = lines.read(begin if at is None else lines.after(at), stop)
    steps = {"step": shown, "first": lines.step(0), "last": lines.step_before(lines.end),
             "before": lines.step_before(begin), "after": lines.step(stop)}  # fmt: skip
    return {**steps, "answers": answers, "more": more}


class _Lines:
    """Whole lines of a file, by where they begin. `end`: behind the last; what comes after it is being written."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle = handle
        self.end = self._begin_before(handle.seek(0, 2))

    def after(self, place: int) -> int:
        """Where the first line begins that begins at `place` or later."""
        if place <= 0:
            return 0
        if place >= self.end:
            return self.end
        return self._line(place - 1)[1]

    def step(self, start: int) -> int | None:
        """Of the line that begins there, or the next one that is whole; None behind the last."""
        while start < self.end:
            line, start = self._line(start)
            if isinstance(step := line.get("step"), int):
                return step
        return None

    def step_before(self, start: int) -> int | None:
        """Of the last whole line before the one that begins there."""
        while start > 0:
            start = self._begin_before(start - 1)
            if isinstance(step := self._line(start)[0].get("step"), int):
                return step
        return None

    def first(self, step: int) -> int:
        """Where the first line of that step or a later one begins, by halving."""
        low, high = 0, self.end
        while low < high:
            start = self.after((low + high) // 2)
            found = self.step(start) if start < high else None
            if found is None or found >= step:
                high = (low + high) // 2
            else:
                low = self._line(start)[1]
        return self.after(low)

    def read(self, start: int, stop: int) -> tuple[list[Json], int | None]:
        """A page of lines, and where the next one begins."""
        found, place = [], start
        while place < stop and place - start < PAGE:
            line, place = self._line(place)
            if isinstance(line.get("step"), int):
                found.append(line)
        return found, place if place < stop else None

    def _line(self, start: int) -> tuple[Json, int]:
        """What the line from there says, nothing if it is damaged; where the next one begins."""
        self.handle.seek(start)
        text = self.handle.readline()
        return _object(text), start + len(text)

    def _begin_before(self, place: int) -> int:
        """Where the line begins in which `place` lies, which is its first byte behind a line's end."""
        while place > 0:
            start = max(0, place - BACK)
            self.handle.seek(start)
            found = self.handle.read(place - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            place = start
        return 0


def _object(text: bytes) -> Json:
    try:
        found = parse_json(text, parse_constant=lambda _: None)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
