"""One engine on one thread: requests go in from the event loop, events go out to those who asked, once a step.

The thread is the only one that touches the engine. Before each step it takes in what came meanwhile, so a request that
is given up loses its row within a step. A fault while stepping ends the requests that are open, not the server.
Not here: text, HTTP, how events reach another process (host.py).
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

from babyllama.errors import InputError
from babyllama.infer.engine import Engine
from babyllama.infer.request import Event, Request

Told = list[tuple[int, int, Event]]  # number of what was asked together, which of its requests, event
T = TypeVar("T")


class Reader(Protocol):
    """Who asks. Both are called on the engine's thread, which goes on when they return."""

    def told(self, events: Told) -> None:
        """What a step brought."""
        ...

    def failed(self, number: int, fault: Exception) -> None:
        """Nothing more comes of these: InputError where the engine refused one, RuntimeError where it failed."""
        ...


class Asked:
    """Requests that are asked together under a number of the reader's. `open`: how many have not ended."""

    def __init__(self, requests: Sequence[Request], reader: Reader, number: int) -> None:
        self.requests, self.reader, self.number, self.open = requests, reader, number, len(requests)
        self.ids: dict[int, int] = {}  # the engine's id → which of the requests; the thread's own


class Worker:
    """The thread of one engine.

    Attributes:
        steps, tokens: how many there were so far.
        faults: steps that failed, one after the other; 0 after one that succeeded.
    """

    def __init__(self, engine: Engine, name: str = "engine") -> None:
        self.engine = engine
        self.steps = self.tokens = self.faults = self._count = 0
        self._inbox: queue.SimpleQueue[tuple[str, Asked | None] | Callable[[], None] | None] = queue.SimpleQueue()
        self._asked: set[Asked] = set()  # the event loop's
        self._at_work: dict[int, Asked] = {}  # the thread's: by the engine's ids
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # ── the event loop's side ──────────────────────────────────────────────────────────────────────────────────
    @property
    def open(self) -> int:
        """Requests that have not ended."""
        return sum(asked.open for asked in self._asked)

    @property
    def asked(self) -> int:
        """Requests of those who have not given up yet, ended or not: counted at once, and no fewer than are open."""
        return self._count

    def ask(self, requests: Sequence[Request], reader: Reader, number: int = 0) -> Asked:
        """Put requests in line; who asks gives them up in the end, ended or not."""
        asked = Asked(requests, reader, number)
        self._asked.add(asked)
        self._count += len(requests)
        self._inbox.put(("add", asked))
        return asked

    def give_up(self, asked: Asked) -> None:
        """No more is wanted of these; what is still running loses its row before the next step."""
        self._asked.remove(asked)
        self._count -= len(asked.requests)
        self._inbox.put(("remove", asked))

    def trim(self) -> None:
        """Forget earlier texts and give their memory back, when there is nothing else to do."""
        self._inbox.put(("trim", None))

    async def call(self, work: Callable[[Engine], T]) -> T:
        """What `work` makes of the engine, on its thread between two steps: the answers wait meanwhile."""
        future: Future[T] = Future()

        def do() -> None:
            try:
                future.set_result(work(self.engine))
            except BaseException as error:
                future.set_exception(error)

        self._inbox.put(do)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the thread; whatever is open fails."""
        self._inbox.put(None)
        self._thread.join()

    # ── the thread ─────────────────────────────────────────────────────────────────────────────────────────────
    def _run(self) -> None:
        while self._take():
            try:
                events = self.engine.step()
                self.faults = 0
            except BaseException:  # also what a library of another language calls a panic
                traceback.print_exc(file=sys.stderr)
                self.faults += 1
                self._fail(RuntimeError("the engine failed"))
                continue
            self.steps += 1
            self._deliver(events)
        self._fail(RuntimeError("the model was unloaded"))

    def _take(self) -> bool:
        """What came in; waits for something if there is nothing to do. False: to end."""
        for _ in itertools.count():
            try:
                found = self._inbox.get(block=not self.engine.busy)
            except queue.Empty:
                return True
            if found is None:
                return False
            if callable(found):
                found()
                continue
            kind, asked = found
            if asked is None:
                self.engine.trim()
            elif kind == "add":
                self._add(asked)
            else:
                self._remove(asked)
        return True

    def _add(self, asked: Asked) -> None:
        try:
            for which, request in enumerate(asked.requests):
                id = self.engine.add(request)
                asked.ids[id], self._at_work[id] = which, asked
        except Exception as error:
            if not isinstance(error, InputError):
                traceback.print_exc(file=sys.stderr)
            self._remove(asked)
            self._failed(asked, error if isinstance(error, InputError) else RuntimeError("the engine failed"))

    def _remove(self, asked: Asked) -> None:
        for id in asked.ids:
            if self._at_work.pop(id, None) is not None:
                self.engine.remove(id)

    def _deliver(self, events: Sequence[Event]) -> None:
        told: dict[Reader, Told] = {}
        for event in events:
            asked = self._at_work.get(event.id)
            if asked is None:  # nobody wants it any more
                continue
            if event.finish is not None:
                del self._at_work[event.id]
                asked.open -= 1
            self.tokens += len(event.tokens)
            told.setdefault(asked.reader, []).append((asked.number, asked.ids[event.id], event))
        for reader, found in told.items():
            reader.told(found)

    def _fail(self, fault: Exception) -> None:
        """End all that are at work."""
        for asked in dict.fromkeys(self._at_work.values()):
            self._remove(asked)
            self._failed(asked, fault)

    @staticmethod
    def _failed(asked: Asked, fault: Exception) -> None:
        asked.open = 0
        asked.reader.failed(asked.number, fault)
