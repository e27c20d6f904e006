"""The side of the engines: what the processes that speak HTTP ask is answered here, on one event loop beside the
engines' threads. Which models there are and how many answers may be open is decided here, for all of them together. A
process that gives no sign of life, or lets too much lie unread, is left, and what it asked for is given up.

Not here: texts of requests and answers (link.py and what is above it), threads (worker.py), processes (processes.py).
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from socket import SHUT_RDWR
from typing import Any

from babyllama.errors import InputError
from babyllama.infer.forms import Form
from babyllama.infer.request import Request
from babyllama.serve import inside
from babyllama.serve.faults import SERVER_FAULT, Refused, Stale, json_bytes
from babyllama.serve.gate import Record
from babyllama.serve.metrics import Metrics
from babyllama.serve.models import Models, Served
from babyllama.serve.wire import Ends, Frames, Outbox
from babyllama.serve.worker import Asked, Told
from babyllama.train.losses.reward import score

FAULTY = 3  # steps of an engine that fail one after the other until the server calls itself ill
UNREAD = 1 << 26  # bytes that are held for one process: with many streams what is written in half a minute
BEATS = 6  # how often a process is asked for a sign of life until it is left


@dataclass
class Host:
    """Answers any number of HTTP processes.

    Attributes:
        queue: answers that may wait for a row, of one model.
        silence: seconds without a sign of life after which a process is left.
        ready: released by each process that takes connections.
        stopping: whether the server is to end.
    """

    models: Models
    queue: int
    silence: float = 30

    def __post_init__(self) -> None:
        self.metrics, self.ready, self.stopping = Metrics(), asyncio.Semaphore(0), False
        self.clients: list[Client] = []
        self.calls: dict[str, Callable[..., Awaitable[Any]]] = {
            "open": self.open, "look": self.look, "score": self.score, "source": self.source,
            "state": self.state, "metrics": self.page}  # fmt: skip

    async def serve(self, ends: Ends) -> Client:
        """Answer one process until it is gone or left; what it asked for is given up then."""
        frames, loop = Frames(), asyncio.get_running_loop()
        client = Client(self, ends)
        self.clients.append(client)
        try:
            with suppress(OSError):
                while data := await loop.sock_recv(client.up, 1 << 18):
                    for message in frames.feed(data):
                        client.take(message)
        finally:
            self.clients.remove(client)
            client.close()
        return client

    def stop(self) -> None:
        """Ask all processes to let open answers end, and to go."""
        self.stopping = True
        for client in self.clients:
            client.send(("stop",))

    # ── calls ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def open(self, name: str) -> tuple[str, bytes]:
        """(mark, card) of a model, which is loaded if need be. Raises Refused as `Models.use`."""
        async with self.models.use(name) as served:
            return served.mark, served.card

    async def look(self, view: str, asked: Any) -> bytes:
        """The figures of one view of Look inside, as JSON. Raises Refused."""
        async with self.models.use(asked.model) as served:
            if served.scores:
                raise Refused(400, f"the model {asked.model!r} is a reward model, which predicts no tokens; look "
                              "inside one that writes", "model")  # fmt: skip
            try:
                return json_bytes(await served.worker.call(inside.watched(served, inside.VIEWS[view], asked)))
            except InputError as error:
                raise Refused(400, str(error)) from None

    async def score(self, name: str, mark: str, texts: list[list[int]]) -> list[float]:
        """What a reward model finds each text worth, at its last token. Raises Refused; Stale as for answers."""
        async with self.models.use(name) as served:
            if served.mark != mark:
                raise Stale
            room = served.worker.engine.slots.most + self.queue
            if served.users > room:
                raise _busy(served.users - 1, room, self.queue)
            return await served.worker.call(lambda engine: score(engine.model, texts))

    async def source(self, view: str) -> dict[str, Any]:
        """The code that computes a view. Raises Refused (404)."""
        return inside.source(view)

    async def state(self) -> dict[str, Any]:
        """``loaded``: name → context; ``ill``: the models whose engine keeps failing."""
        loaded = self.models.loaded
        return {"loaded": {name: served.context for name, served in loaded.items()},
                "ill": [name for name, served in loaded.items() if served.worker.faults >= FAULTY]}  # fmt: skip

    async def page(self) -> bytes:
        """The text of /metrics."""
        return self.metrics.page(self.models)

    # ── limits ─────────────────────────────────────────────────────────────────────────────────────────────────
    def admit(self, served: Served, count: int) -> None:
        """Raise Refused where so many answers more are too many."""
        worker, room = served.worker, served.worker.engine.slots.most + self.queue
        if count > room:
            raise Refused(400, f"n: {count} answers at once are above this server's limit of {room}", "n")
        if worker.asked + count > room and worker.open + count > room:
            raise _busy(worker.open, room, self.queue)


def _busy(open_: int, room: int, queue: int) -> Refused:
    return Refused(429, f"the server is busy: {open_} answers are open and its limit is {room} "
                   f"(slots={room - queue}, queue={queue}); try again", code="rate_limit_exceeded", wait=1)  # fmt: skip


class Client:
    """One process that speaks HTTP.

    Attributes:
        ready: whether it has taken connections.
        fault: why it was left, in words; empty: it was not.
    """

    def __init__(self, host: Host, ends: Ends) -> None:
        self.host, (self.up, down) = host, ends
        self.up.setblocking(False)
        self.ready, self.fault, self._beats = False, "", 0
        self.outbox = Outbox(down, UNREAD, self._unread)
        self.send = self.outbox.send
        self._asked: dict[int, tuple[Served, Asked] | None] = {}  # None: it is being loaded for
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for number in list(self._asked):
            self._leave(number)
        self.outbox.close()
        self.up.close()

    # ── whether it lives ───────────────────────────────────────────────────────────────────────────────────────
    async def _watch(self) -> None:
        """Ask for a sign of life again and again. What counts are questions without an answer, not the clock: all of
        the server may have stood still meanwhile."""
        while self._beats < BEATS:
            self._beats += 1
            self.send(("beat",))
            await asyncio.sleep(self.host.silence / BEATS)
        self._left(f"gave no sign of life for {self.host.silence:g} seconds")

    def _unread(self) -> None:
        self._left(f"left {UNREAD >> 20} MB unread")

    def _left(self, fault: str) -> None:
        """Whoever reads from it finds the end."""
        self.fault = fault
        with suppress(OSError):
            self.up.shutdown(SHUT_RDWR)

    # ── the engines' threads ───────────────────────────────────────────────────────────────────────────────────
    def told(self, events: Told) -> None:
        self.send(("events", events))

    def failed(self, number: int, fault: Exception) -> None:
        self.send(("fault", number, fault))

    # ── messages ───────────────────────────────────────────────────────────────────────────────────────────────
    def take(self, message: tuple[Any, ...]) -> None:
        """Do what a message says."""
        self._beats = 0
        kind, *what = message
        if kind == "ask":
            self._ask(*what)
        elif kind == "leave":
            self._leave(*what)
        elif kind == "call":
            self._start(self._call(*what))
        elif kind == "note":
            self._note(*what)
        elif kind == "ready":
            self.ready = True
            self.host.ready.release()
            self._start(self._watch())

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, number: int, what: str, arguments: tuple[Any, ...]) -> None:
        try:
            self.send(("done", number, await self.host.calls[what](*arguments)))
        except Exception as error:
            self._refuse(number, error)

    def _refuse(self, number: int, error: Exception) -> None:
        if not isinstance(error, Refused | Stale):
            traceback.print_exception(error, file=sys.stderr)
            error = Refused(500, SERVER_FAULT)
        self.send(("fault", number, error))

    def _note(self, record: Record) -> None:
        self.host.metrics.ended(record, record.model in self.host.models.openers)

    # ── answers ────────────────────────────────────────────────────────────────────────────────────────────────
    def _ask(self, number: int, name: str, mark: str, requests: Sequence[Request], form: Form | None) -> None:
        """Put requests in line, at once where the model is loaded and no form has to be made ready."""
        served = self.host.models.loaded.get(name)
        self._asked[number] = None
        if served is None or form is not None:
            self._start(self._prepare(number, name, mark, requests, form))
        else:
            self._put(number, served, mark, requests)

    async def _prepare(self, number: int, name: str, mark: str, requests: Sequence[Request],
                       form: Form | None) -> None:  # fmt: skip
        try:
            async with self.host.models.use(name) as served:
                if form is not None:
                    requests = await asyncio.to_thread(_formed, served, requests, form)
                if number in self._asked:  # else it was given up meanwhile
                    self._put(number, served, mark, requests)
        except Exception as error:
            self._asked.pop(number, None)
            self._refuse(number, error)

    def _put(self, number: int, served: Served, mark: str, requests: Sequence[Request]) -> None:
        try:
            if served.mark != mark:
                raise Stale
            self.host.admit(served, len(requests))
        except (Refused, Stale) as error:
            del self._asked[number]
            self._refuse(number, error)
            return
        if served.adapter is not None:
            requests = [replace(request, adapter=served.adapter) for request in requests]
        served.users += 1
        self._asked[number] = served, served.worker.ask(requests, self, number)

    def _leave(self, number: int) -> None:
        if (found := self._asked.pop(number, None)) is not None:
            served, asked = found
            served.worker.give_up(asked)
            self.host.models.leave(served)


def _formed(served: Served, requests: Sequence[Request], form: Form) -> list[Request]:
    """Each with what keeps its answer to the form. Raises Refused (400)."""
    try:
        return [replace(request, mask=served.grammars.of(form)) for request in requests]
    except InputError as error:
        raise Refused(400, f"{form.param}: {error}", form.param) from None
