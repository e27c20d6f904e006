"""How many threads compute a step on a CPU: as many as were fastest lately.

Where others use the machine too, a server's own HTTP for example, two threads may take ten times as long as one: at
every operator each waits for the other, which has no core just then. So now and then a few steps are taken with another
number, in turns with the present one.

The number is that of the compiled step and of whole passes by PyTorch (`wide`). The small operators between them get
one thread: PyTorch's threads wait for the next operator by spinning, milliseconds long, on cores that the compiled
step's own threads and HTTP want. Not here: threads of training.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch

PAIRS = 4  # steps with either number, in turns
GAP = 0.2, 10.0  # seconds of steps between two trials, at first and at most
BETTER = 0.9  # of the present number's time: from here on another one takes its place

_step = threading.local()  # .count: of the step in which this thread is


def count() -> int:
    """How many threads the step that goes on has; outside of one as many as PyTorch."""
    return getattr(_step, "count", 0) or torch.get_num_threads()


@contextmanager
def wide() -> Iterator[None]:
    """Inside, PyTorch's operators have all the threads of the step."""
    before = torch.get_num_threads()
    if (wanted := count()) == before:
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Threads:
    """Around each step: ``with threads: …``. Inside, PyTorch has one; afterwards as many as before.

    Attributes:
        now: the number that is in use.
        tokens: how many of each row the step has made, whose time is told for one.
    """

    def __init__(self, most: int | None = None) -> None:
        most = torch.get_num_threads() if most is None else most
        self.choices = [most >> i for i in range(most.bit_length())]  # most, half as many, …, 1
        self.now, self._other, self.tokens = most, 0, 1
        self._gap = self._left = GAP[0]
        self._trials = 0
        self._times: tuple[list[float], list[float]] = [], []  # of a trial: with `now`, with `_other`
        self._began, self._before = 0.0, most

    def __enter__(self) -> None:
        self._before, self.tokens = torch.get_num_threads(), 1
        _step.count = self._other if self._trying else self.now
        torch.set_num_threads(1)
        self._began = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        seconds = time.perf_counter() - self._began
        torch.set_num_threads(self._before)
        _step.count = 0
        if len(self.choices) > 1 and kind is None:
            self.note(seconds / self.tokens)

    @property
    def _trying(self) -> bool:
        """Whether this step goes with the other number."""
        return bool(self._other) and len(self._times[1]) < len(self._times[0])

    def note(self, seconds: float) -> None:
        """A step has taken so long, for each token."""
        if not self._other:
            self._left -= seconds
            if self._left <= 0:
                at, self._trials = self.choices.index(self.now), self._trials + 1
                near = [self.choices[i] for i in (at + 1, at - 1) if 0 <= i < len(self.choices)]
                self._other = near[self._trials % len(near)]
            return
        self._times[self._trying].append(seconds)
        mine, others = self._times
        hopeless = len(others) == 1 and others[0] > 3 * mine[0]
        if len(others) == PAIRS or hopeless:
            better = sorted(others)[len(others) // 2] < BETTER * sorted(mine)[len(mine) // 2]
            self._gap = GAP[0] if better else min(2 * self._gap, GAP[1])
            self.now, self._other, self._left = self._other if better else self.now, 0, self._gap
            self._times = [], []
