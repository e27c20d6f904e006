"""Ctrl-C at any moment ends in one line and exit code 130, also while libraries are being imported.

Until a command begins there is nothing to tidy up, and an exception inside a half-imported C extension may be lost or
turn into another one: the process ends at once. From then on Ctrl-C raises KeyboardInterrupt as usual. Not here: the
training loop, which saves first (train/trainer.py), and worker processes, which leave Ctrl-C to the main one.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Self, TypeVar

LINE = "interrupted; the same command continues"
CODE = 130  # 128 + SIGINT, as shells report it
AGAIN = 0.5  # seconds from one Ctrl-C to the next that mean the same
T = TypeVar("T")
_asked = float("-inf")


def end_at_once() -> None:
    """From now on Ctrl-C ends the process; nothing changes where it is ignored (``nohup``) or handled by others."""
    with suppress(ValueError):  # not in the main thread, which alone hears signals
        if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _raise):
            signal.signal(signal.SIGINT, _end)


def raise_from_now() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, where `end_at_once` was called before."""
    with suppress(ValueError):
        if signal.getsignal(signal.SIGINT) is _end:
            signal.signal(signal.SIGINT, _raise)


def as_usual() -> None:
    """Python's own handler again."""
    with suppress(ValueError):
        if signal.getsignal(signal.SIGINT) in (_end, _raise):
            signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore() -> None:
    """Ctrl-C does nothing any more: the work is done and said, only Python itself has still to end."""
    with suppress(ValueError):
        if signal.getsignal(signal.SIGINT) in (_end, _raise, signal.default_int_handler):
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def just_asked() -> bool:
    """Whether Ctrl-C came in the last seconds: an exception of another type may be what became of it."""
    return time.monotonic() - _asked < 3


class Stopper:
    """For a program that Ctrl-C does not end: it stops the work at hand and, however often it is pressed, nothing else,
    nor what tidies up after that work. A context manager."""

    def __init__(self) -> None:
        self._stops, self._heard = False, float("-inf")

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGINT)
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ValueError):
            signal.signal(signal.SIGINT, self._before)

    def __call__(self, work: Callable[[], T], stops: bool = True) -> T:
        """What the work returns. `stops`: whether Ctrl-C stops it, which then raises KeyboardInterrupt."""
        before, self._heard = self._stops, float("-inf")
        try:
            try:
                self._stops = stops
                return work()
            finally:
                self._stops = before
        except KeyboardInterrupt:  # it may have come within the line above
            self._stops = before
            raise
        finally:
            self._listen()  # whoever has heard signals meanwhile, asyncio for example, may leave Python's own handler

    def _listen(self) -> None:
        with suppress(ValueError):
            signal.signal(signal.SIGINT, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._stops and now - self._heard > AGAIN:
            self._heard = now
            _raise(number, frame)


def came_of(error: BaseException) -> bool:
    """Whether an exception is Ctrl-C, or is what C code made of it: readline and safetensors turn it into others."""
    return isinstance(error, KeyboardInterrupt) or just_asked()


@contextmanager
def held() -> Iterator[None]:
    """Ctrl-C waits until the end, and processes started inside never get it (where the system can do that)."""
    if sys.platform == "win32":
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it lets Ctrl-C through again when it starts, so not inside
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, f"\nbabyllama: {LINE}\n".encode())
    os._exit(CODE)


def _raise(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = time.monotonic()
    raise KeyboardInterrupt
