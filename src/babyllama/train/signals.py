"""Ctrl-C and the system's wish that a training ends: heard between two steps. Not here: what is saved then."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_flag() -> Iterator[Callable[[], bool]]:
    """While inside, the first SIGINT or SIGTERM (on Windows also Ctrl-Break) asks the loop to save and stop; a second
    SIGINT stops at once. Yields a function that says whether one came."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    names = ("SIGINT", "SIGTERM", "SIGBREAK")
    try:
        before = {s: signal.signal(s, ask) for s in (getattr(signal, n) for n in names if hasattr(signal, n))}
    except ValueError:  # not in the main thread: nobody can signal us
        before = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
