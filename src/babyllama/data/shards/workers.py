"""Spread jobs over machines and processes, results in order: a few lines instead of a process pool, for what pools do
badly.

One job a worker is under way and nothing is queued, so memory stays flat with jobs of any size. Ctrl-C, also twice,
ends the workers at once. A killed main process closes its pipes, which ends them too. Not here: what the jobs do.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from babyllama.errors import InputError
from babyllama.interrupts import held

J = TypeVar("J")
R = TypeVar("R")


def spread(work: Callable[[J], R], jobs: Iterable[J], known: Callable[[J], R | None], count: int) -> Iterator[R]:
    """``known(job) or work(job)`` for every job, in order; `work` (a function of a module) runs in `count` processes.

    Raises:
        InputError: as `work` does, the first in the jobs' order; or a worker was killed.
    """
    ready: dict[int, R | Exception] = {}
    busy: dict[Connection, int] = {}
    given = 0
    with _workers(work, count) as idle:
        for number, job in enumerate(jobs):
            found = known(job)
            if found is not None:
                ready[number] = found
            else:
                if not idle:
                    _collect(busy, ready, idle)
                _send(idle[-1], job)
                busy[idle.pop()] = number
            while given in ready:
                yield _result(ready.pop(given))
                given += 1
        while busy or given in ready:
            if given not in ready:
                _collect(busy, ready, idle)
            while given in ready:
                yield _result(ready.pop(given))
                given += 1


@dataclass
class Part:
    """One of `of` shares of the jobs, each for a machine of its own. What other machines have done counts as done.

    `missing` is how many jobs of the last `share` are neither this machine's nor done.
    """

    number: int
    of: int
    missing: int = 0

    @classmethod
    def named(cls, name: str) -> Part:
        """Of ``3/8``. Raises ValueError."""
        found = re.fullmatch(r"(\d+)/(\d+)", name)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"part {name!r} must be one of several, such as 3/8")
        return cls(int(found[1]), int(found[2]))

    def share(self, jobs: Iterable[J], known: Callable[[J], object]) -> Iterator[J]:
        """The jobs that are this machine's or done, in order."""
        self.missing = 0
        for number, job in enumerate(jobs):
            if number % self.of == self.number - 1 or known(job) is not None:
                yield job
            else:
                self.missing += 1


def cores() -> int:
    """How many this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # on Linux
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _result(found: R | Exception) -> R:
    if isinstance(found, Exception):
        raise found
    return found


def _send(connection: Connection, job: object) -> None:
    try:
        connection.send(job)
    except OSError:
        raise _killed() from None


def _collect(busy: dict[Connection, int], ready: dict[int, R | Exception], idle: list[Connection]) -> None:
    """Take what has come back; wait for the first."""
    for connection in wait(list(busy)):
        assert isinstance(connection, Connection)
        try:
            ready[busy.pop(connection)] = connection.recv()
        except (EOFError, OSError):
            raise _killed() from None
        idle.append(connection)


def _killed() -> InputError:
    remedy = "run the same command again with fewer workers=…, it continues"
    return InputError(f"a worker process was killed (out of memory?); {remedy}")


@contextmanager
def _workers(work: Callable[[J], R], count: int) -> Iterator[list[Connection]]:
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    try:
        for _ in range(count):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(work, theirs), daemon=True)
            with held():  # it imports before it can ignore Ctrl-C itself
                process.start()
            theirs.close()
            connections.append(mine)
            processes.append(process)
        yield list(connections)
    finally:
        for process in processes:
            process.terminate()  # nothing is lost: what they write, they write atomically
        for process in processes:
            process.join()


def _serve(work: Callable[[J], R], connection: Connection) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle; Windows cannot hold it
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            found: R | Exception = work(job)
        except InputError as error:
            found = error
        except Exception:  # a defect: its traceback must reach the main process, whatever its type
            found = RuntimeError(f"in a worker:\n{traceback.format_exc()}")
        connection.send(found)
