"""The side of HTTP: the engines' process (host.py) as the routes see it.

A model is opened once, which brings its tokenizer here; from then on a request is one message, and so are all tokens
that a step brings. Not here: what a request says, text.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
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
SOON = 0.02  # seconds


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

    Attributes:
        open: how many of the requests have not ended in the engine.
    """

    def __init__(self, number: int, count: int) -> None:
        self.number, self.count, self.open = number, count, count
        self._fault: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._events: Batch = {}
        self._waiter: asyncio.Future[None] | None = None  # for any event
        self._resting: asyncio.Future[None] | None = None  # for the end

    async def rest(self, seconds: float) -> None:
        """Let events gather for so long, or until all requests have ended: nobody waits for an end that is there."""
        if not self.open:
            return
        self._resting = waiter = self._loop.create_future()
        timer = self._loop.call_later(seconds, _resolve, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._resting = None

    async def batch(self) -> Batch:
        """All events that have come, at least one.

        Raises:
            Refused: an answer ended in an error, or the server refuses.
            Stale: the model is another one by now: what was asked has to be written with its tokenizer.
            InputError: the engine refused one of the requests.
            RuntimeError: the engine failed.
        """
        if not self._events and self._fault is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if not self._events and self._fault is not None:
            raise self._fault
        found, self._events = self._events, {}
        return found

    def tell(self, which: int, event: Event) -> None:
        """One more event."""
        if event.error is not None:
            self.fail(Refused(500, event.error))
            return
        if event.finish is not None:
            self.open -= 1
        self._events.setdefault(which, []).append(event)
        self._wake()

    def fail(self, fault: Exception) -> None:
        """Nothing more comes."""
        self._fault, self.open = fault, 0
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None:
            _resolve(self._waiter)
        if self._resting is not None and not self.open:
            _resolve(self._resting)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


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
        self._numbers, self._frames = itertools.count(), Frames()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._answers: dict[int, Answers] = {}
        self._up: asyncio.WriteTransport | None = None
        self._held = b""

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
            mark, card = await self.call("open", name)
            found = self._models[name] = Model(name, mark, *pickle.loads(card))
        return found

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
        self._held += frame(message)
        self._flush()

    def _send_soon(self, *message: Any) -> None:
        """What nobody waits for: with the next message, or after `SOON`. Each one that comes alone wakes the engines'
        process, and its threads then wait for one another."""
        if not self._held:
            asyncio.get_running_loop().call_later(SOON, self._flush)
        self._held += frame(message)

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held and self._up is not None and not self._up.is_closing():
            self._up.write(held)

    # ── from the engines ───────────────────────────────────────────────────────────────────────────────────────
    def data_received(self, data: bytes) -> None:
        for kind, *what in self._frames.feed(data):
            if kind == "events":
                for number, which, event in what[0]:
                    if (answers := self._answers.get(number)) is not None:
                        answers.tell(which, event)
            elif kind == "stop":
                self.stop(False)
            elif kind == "beat":
                self._send("beat")
            else:
                self._came(kind, *what)

    def _came(self, kind: str, number: int, value: Any) -> None:
        if kind == "fault" and (answers := self._answers.get(number)) is not None:
            answers.fail(value)
        elif (waiter := self._calls.get(number)) is not None and not waiter.done():
            waiter.set_exception(value) if kind == "fault" else waiter.set_result(value)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        for answers in self._answers.values():
            answers.fail(_gone())
        for waiter in self._calls.values():
            if not waiter.done():
                waiter.set_exception(_gone())
        self.stop(True)


def _gone() -> Refused:
    return Refused(503, "the engine has ended, and so does the server")
