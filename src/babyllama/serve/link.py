"""The side of HTTP: the engines' process (host.py) as the routes see it.

A model is opened once, which brings its tokenizer here; from then on a request is one message, and so are all tokens
that a step brings. Not here: what a request says, text.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import pickle
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from babyllama.infer.forms import Form
from babyllama.infer.request import Event, Request
from babyllama.serve.faults import Refused, Stale
from babyllama.serve.gate import Record
from babyllama.serve.wire import Ends, Frames, frame
from babyllama.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")
Batch = dict[int, list[Event]]  # by request
SOON, LOOK = 0.02, 0.05  # seconds until what is held is sent; between two looks for who waits, at most


@dataclass(frozen=True, eq=False)
class Model:
    """A model as it was when it was opened. `mark`: another one where its folder holds another by now. `scores`: it is
    a reward model, which writes nothing."""

    name: str
    mark: str
    context: int
    tokenizer: Tokenizer
    scores: bool = False


class Answers:
    """What has come of some requests that are asked together, and was not fetched yet. One task fetches.

    Who fetches has no timers of its own: the link looks after each message of the engines, and now and then, whom there
    is reason to wake. So what one step brings is told to all in one go, which costs a fraction of one by one.

    Attributes:
        open: how many of the requests have not ended in the engine.
        until: when waiting is over, by `time.monotonic`.
    """

    def __init__(self, number: int, count: int) -> None:
        self.number, self.count, self.open, self.until = number, count, count, math.inf
        self._fault: Exception | None = None
        self._events: Batch = {}
        self._due = 0.0  # events gather until then
        self._waiter: asyncio.Future[None] | None = None

    async def batch(self, gather: float = 0.0) -> Batch:
        """All events that have come, at least one; {}: `until` is over.

        Args:
            gather: for so many seconds events may gather, unless all requests end before: nobody waits for an end that
                is there.

        Raises:
            Refused: an answer ended in an error, or the server refuses.
            Stale: the model is another one by now: what was asked has to be written with its tokenizer.
            InputError: the engine refused one of the requests.
            RuntimeError: the engine failed.
        """
        now = time.monotonic()
        self._due = now + gather
        if not self._ready(now):
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if not self._events and self._fault is not None:
            raise self._fault
        found, self._events = self._events, {}
        return found

    def tell(self, which: int, event: Event) -> None:
        """One more event; who fetches learns of it by `wake`."""
        if event.error is not None:
            self.fail(Refused(500, event.error))
            return
        if event.finish is not None:
            self.open -= 1
        self._events.setdefault(which, []).append(event)

    def fail(self, fault: Exception) -> None:
        """Nothing more comes."""
        self._fault, self.open = fault, 0

    def wake(self, now: float) -> None:
        """Let who fetches go on, where there is reason to."""
        if self._waiter is not None and not self._waiter.done() and self._ready(now):
            self._waiter.set_result(None)

    def _ready(self, now: float) -> bool:
        return not self.open or now >= self.until or (bool(self._events) and now >= self._due)


class Link(asyncio.Protocol):
    """The connection to the engines.

    Args:
        names: of the models that requests may name.
        created: when the server began, in seconds since 1970.
        stop: called when the engines ask this process to end (False), or are gone (True).

    Attributes:
        asked: requests that are asked and not left.
        gone: whether the engines are.
    """

    def __init__(self, names: Sequence[str], created: int, stop: Callable[[bool], None] = lambda gone: None) -> None:
        self.names, self.created, self.stop = names, created, stop
        self.asked, self.gone = 0, False
        self._models: dict[str, Model] = {}
        self._opening: dict[str, asyncio.Future[Model]] = {}
        self._numbers, self._frames = itertools.count(), Frames()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._answers: dict[int, Answers] = {}
        self._looking = False
        self._up: asyncio.WriteTransport | None = None
        self._held, self._flushing = b"", False

    async def connect(self, ends: Ends) -> None:
        """From now on it works."""
        loop, (up, down) = asyncio.get_running_loop(), ends
        self._up, _ = await loop.create_connection(asyncio.Protocol, sock=up)
        await loop.create_connection(lambda: self, sock=down)
        self._send("ready")

    def close(self) -> None:
        """End the connection."""
        self._flush()
        if self._up is not None:
            self._up.close()

    # ── to the engines ─────────────────────────────────────────────────────────────────────────────────────────
    def check(self, name: str) -> str:
        """The name. Raises Refused (404) where no model has it."""
        if name not in self.names:
            there = ", ".join(self.names)
            raise Refused(
                404, f"the model {name!r:.100} does not exist; there are: {there}", "model", "model_not_found"
            )
        return name

    async def call(self, what: str, *arguments: Any) -> Any:
        """What a call of the host gives. Raises Refused."""
        number = next(self._numbers)
        if self.gone:
            raise _gone()
        self._calls[number] = waiter = asyncio.get_running_loop().create_future()
        self._send("call", number, what, arguments)
        try:
            return await waiter
        finally:
            del self._calls[number]

    async def open(self, name: str) -> Model:
        """The model. Raises Refused: 404 for a name that is not there, 503 where it cannot be loaded now."""
        found = self._models.get(self.check(name))
        if found is None:
            if name not in self._opening:  # many may ask at once, and a tokenizer takes megabytes
                self._opening[name] = asyncio.ensure_future(self._opened(name))
            found = await asyncio.shield(self._opening[name])
        return found

    async def _opened(self, name: str) -> Model:
        try:
            mark, card = await self.call("open", name)
            found = self._models[name] = Model(name, mark, *pickle.loads(card))
            return found
        finally:
            del self._opening[name]

    async def with_model(self, name: str, work: Callable[[Model], Awaitable[T]]) -> T:
        """What `work` gives; where it finds that the model is another one by now (Stale), once more with that one.

        Raises Refused as `open`.
        """
        while True:
            model = await self.open(name)
            try:
                return await work(model)
            except Stale:
                if self._models.get(name) is model:
                    del self._models[name]

    def ask(self, model: Model, requests: Sequence[Request], form: Form | None = None) -> Answers:
        """Put requests in line; who asks leaves in the end. `form`: what the answers keep to."""
        answers = Answers(next(self._numbers), len(requests))
        self._answers[answers.number] = answers
        self.asked += answers.count
        if not self._looking:
            self._look_again()
        if self.gone:
            answers.fail(_gone())
        self._send("ask", answers.number, model.name, model.mark, requests, form)
        return answers

    def leave(self, answers: Answers) -> None:
        """No more is wanted of these."""
        del self._answers[answers.number]
        self.asked -= answers.count
        (self._send if answers.open else self._send_soon)("leave", answers.number)

    def note(self, record: Record) -> None:
        """A request has ended."""
        self._send_soon("note", record)

    def _send(self, *message: Any) -> None:
        """What is said in one turn of the loop goes out at its end, in one piece."""
        self._held += frame(message)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _send_soon(self, *message: Any) -> None:
        """What nobody waits for: with the next message, or after `SOON`. Each one that comes alone wakes the engines'
        process, and its threads then wait for one another."""
        if not self._held:
            asyncio.get_running_loop().call_later(SOON, self._flush)
        self._held += frame(message)

    def _flush(self) -> None:
        held, self._held, self._flushing = self._held, b"", False
        if held and self._up is not None and not self._up.is_closing():
            self._up.write(held)

    # ── from the engines ───────────────────────────────────────────────────────────────────────────────────────
    def _look(self) -> None:
        """Wake whom there is reason to; first those whose answers have ended, since clients then ask anew."""
        now = time.monotonic()
        for answers in sorted(self._answers.values(), key=lambda answers: answers.open > 0):
            answers.wake(now)

    def _look_again(self) -> None:
        """Every now and then as long as anybody asks: for whom the time is over, or who gathers while no step ends."""
        self._look()
        if self._answers:
            asyncio.get_running_loop().call_later(LOOK, self._look_again)
        self._looking = bool(self._answers)

    def data_received(self, data: bytes) -> None:
        for kind, *what in self._frames.feed(data):
            if kind == "events":
                for number, which, event in what[0]:
                    if (answers := self._answers.get(number)) is not None:
                        answers.tell(which, event)
                self._look()
            elif kind == "stop":
                self.stop(False)
            elif kind == "beat":
                self._send("beat")
            else:
                self._came(kind, *what)

    def _came(self, kind: str, number: int, value: Any) -> None:
        if kind == "fault" and (answers := self._answers.get(number)) is not None:
            answers.fail(value)
            self._look()
        elif (waiter := self._calls.get(number)) is not None and not waiter.done():
            waiter.set_exception(value) if kind == "fault" else waiter.set_result(value)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self.refuse(_gone())
        self.stop(True)

    def refuse(self, fault: Refused) -> None:
        """End all that is being waited for."""
        for answers in self._answers.values():
            answers.fail(fault)
        self._look()
        for waiter in self._calls.values():
            if not waiter.done():
                waiter.set_exception(fault)


def _gone() -> Refused:
    return Refused(503, "the engine has ended, and so does the server")
