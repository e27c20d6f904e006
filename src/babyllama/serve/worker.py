"""One engine on one thread: requests go in from the event loop, events come back to it.

The thread is the only one that touches the engine. Before each step it takes in what came meanwhile, so a request that
is given up loses its row within a step. A fault while stepping ends the requests that are open, not the server.
Not here: text, HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from babyllama.errors import InputError
from babyllama.infer.engine import Engine
from babyllama.infer.request import Event, Request

Batch = list[tuple[int, Event]]
T = TypeVar("T")


class Answers:
    """What has come of some requests that are asked together, and was not fetched yet. One task fetches.

    Attributes:
        open: how many of the requests have not ended in the engine.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests, self.open = requests, len(requests)
        self.ids: dict[int, int] = {}  # the engine's id → which of the requests; the thread's own
        self.fault: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._events: deque[tuple[int, Event]] = deque()
        self._waiter: asyncio.Future[None] | None = None  # for any event
        self._resting: asyncio.Future[None] | None = None  # for the end

    async def rest(self, seconds: float) -> None:
        """Let events gather for so long, or until all requests have ended: nobody waits for an end that is there."""
        self._resting = waiter = self._loop.create_future()
        timer = self._loop.call_later(seconds, _resolve, waiter)
        try:
            if self.open:
                await waiter
        finally:
            timer.cancel()
            self._resting = None

    async def batch(self) -> Batch:
        """All events that have come: (which request, event), at least one.

        Raises:
            InputError: the engine refused one of the requests.
            RuntimeError: the engine failed.
        """
        while not self._events:
            if self.fault is not None:
                raise self.fault
            # Set before the second look: the thread adds first and looks for a waiter then, so none is missed.
            self._waiter = waiter = self._loop.create_future()
            try:
                if not self._events and self.fault is None:
                    await waiter
            finally:
                self._waiter = None
        count = len(self._events)
        return [self._events.popleft() for _ in range(count)]

    # ── the thread's side ──────────────────────────────────────────────────────────────────────────────────────
    def tell(self, which: int, event: Event) -> None:
        """One more event."""
        if event.finish is not None:
            self.open -= 1
        self._events.append((which, event))

    def fail(self, fault: Exception) -> None:
        self.fault, self.open = fault, 0

    def wake(self) -> None:
        """Let the task that waits go on, on its own thread."""
        for waiter in (self._waiter, self._resting if not self.open else None):
            if waiter is not None:
                with suppress(RuntimeError):  # the loop has ended
                    self._loop.call_soon_threadsafe(_resolve, waiter)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Worker:
    """The thread of one engine.

    Attributes:
        steps, tokens: how many there were so far.
        faults: steps that failed, one after the other; 0 after one that succeeded.
    """

    def __init__(self, engine: Engine, name: str = "engine") -> None:
        self.engine = engine
        self.steps = self.tokens = self.faults = self._count = 0
        self._inbox: queue.SimpleQueue[tuple[str, Answers | None] | Callable[[], None] | None] = queue.SimpleQueue()
        self._asked: set[Answers] = set()  # the event loop's
        self._at_work: dict[int, Answers] = {}  # the thread's: by the engine's ids
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # ── the event loop's side ──────────────────────────────────────────────────────────────────────────────────
    @property
    def open(self) -> int:
        """Requests that have not ended."""
        return sum(answers.open for answers in self._asked)

    @property
    def asked(self) -> int:
        """Requests of those who have not given up yet, ended or not: counted at once, and no fewer than are open."""
        return self._count

    def ask(self, requests: Sequence[Request]) -> Answers:
        """Put requests in line; who asks gives them up in the end, ended or not."""
        answers = Answers(requests)
        self._asked.add(answers)
        self._count += len(requests)
        self._inbox.put(("add", answers))
        return answers

    def give_up(self, answers: Answers) -> None:
        """No more is wanted of these; what is still running loses its row before the next step."""
        self._asked.remove(answers)
        self._count -= len(answers.requests)
        self._inbox.put(("remove", answers))

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
            kind, answers = found
            if answers is None:
                self.engine.trim()
            elif kind == "add":
                self._add(answers)
            else:
                self._remove(answers)
        return True

    def _add(self, answers: Answers) -> None:
        try:
            for which, request in enumerate(answers.requests):
                id = self.engine.add(request)
                answers.ids[id], self._at_work[id] = which, answers
        except Exception as error:
            if not isinstance(error, InputError):
                traceback.print_exc(file=sys.stderr)
            self._remove(answers)
            answers.fail(error if isinstance(error, InputError) else RuntimeError("the engine failed"))
            answers.wake()

    def _remove(self, answers: Answers) -> None:
        for id in answers.ids:
            if self._at_work.pop(id, None) is not None:
                self.engine.remove(id)

    def _deliver(self, events: Sequence[Event]) -> None:
        told = dict[Answers, None]()
        for event in events:
            answers = self._at_work.get(event.id)
            if answers is None:  # nobody wants it any more
                continue
            if event.finish is not None:
                del self._at_work[event.id]
            self.tokens += len(event.tokens)
            answers.tell(answers.ids[event.id], event)
            told[answers] = None
        for answers in told:
            answers.wake()

    def _fail(self, fault: Exception) -> None:
        """End all that are at work."""
        for answers in dict.fromkeys(self._at_work.values()):
            self._remove(answers)
            answers.fail(fault)
            answers.wake()
