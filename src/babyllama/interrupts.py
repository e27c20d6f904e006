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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

LINE = "interrupted; the same command continues"
CODE = 130  # 128 + SIGINT, as shells report it
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
