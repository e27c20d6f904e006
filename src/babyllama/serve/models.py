"""The models that a server answers with, by name: loaded when first asked for, unloaded when others need the room.

Not here: how one is read (commands/serve.py gives a function for each), requests.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property

import xxhash

from babyllama.errors import InputError
from babyllama.infer.grammar import Grammars
from babyllama.serve.faults import Refused
from babyllama.serve.worker import Worker
from babyllama.tokenizer.tokenizer import Tokenizer

REST = 60.0  # seconds without a request after which what is left of conversations is forgotten


@dataclass(eq=False)
class Served:
    """A model that is loaded. Adapters of one base may share a worker, and come and go together.

    Attributes:
        adapter: the name, in the engine, of the adapter that this name stands for.
        scores: whether it is a reward model, which says what answers are worth and writes none.
        users: how many use it now, so that it stays.
        card: (context, tokenizer, scores), pickled, for those who write its requests; `mark`: another one for another
            card.
    """

    name: str
    worker: Worker
    tokenizer: Tokenizer
    adapter: str | None = None
    scores: bool = False
    users: int = 0
    last: float = field(default_factory=time.monotonic)
    card: bytes = field(init=False, repr=False)
    mark: str = field(init=False)

    def __post_init__(self) -> None:
        self.card = pickle.dumps((self.context, self.tokenizer, self.scores))
        self.mark = xxhash.xxh3_64_hexdigest(self.card)

    @cached_property
    def grammars(self) -> Grammars:
        """What makes masks for answers of a given form. Raises InputError where llguidance is not installed."""
        return Grammars(self.tokenizer)

    @property
    def context(self) -> int:
        return self.worker.engine.context


class Models:
    """All models of a server.

    Args:
        openers: name → how it is loaded, with all that share its worker; called on another thread, one at a time.
        most: how many workers there are at once; None: any number.
        idle: seconds without a request after which one is unloaded; None: never.
        wait: seconds to wait for a place while all are taken by models that are answering.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Sequence[Served]]], most: int | None = None,
                 idle: float | None = None, wait: float = 0) -> None:  # fmt: skip
        self.openers, self.most, self.idle, self.wait = openers, most, idle, wait
        self.loaded: dict[str, Served] = {}
        self._changing, self._left = asyncio.Lock(), asyncio.Event()

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Served]:
        """The model, which stays loaded inside.

        Raises:
            Refused: 503 where all places stay taken by models that are answering, or the model cannot be read any more.
        """
        served = self.loaded.get(name) or await self._load(name)
        served.users += 1
        try:
            yield served
        finally:
            self.leave(served)

    def leave(self, served: Served) -> None:
        """One user less."""
        served.users -= 1
        served.last = time.monotonic()
        self._left.set()

    async def _load(self, name: str) -> Served:
        until = time.monotonic() + self.wait
        while True:
            self._left.clear()
            async with self._changing:
                if name in self.loaded:
                    return self.loaded[name]
                if await self._room():
                    await self.open(name)
                    return self.loaded[name]
            try:
                await asyncio.wait_for(self._left.wait(), until - time.monotonic())
            except TimeoutError:
                raise Refused(503, f"all {self.most} models that may be loaded at once (loaded={self.most}) are "
                              "answering; try again", "model", wait=5) from None  # fmt: skip

    async def _room(self) -> bool:
        """Whether there is a place for one more, also where one that nobody uses had to go for it."""
        groups = self._groups()
        if self.most is None or len(groups) < self.most:
            return True
        idle = [group for group in groups if not any(served.users for served in group)]
        if idle:
            await self._unload(min(idle, key=_last_use))
        return bool(idle)

    async def open(self, name: str) -> None:
        """Load it. Raises Refused (503) where it cannot be read any more."""
        try:
            for served in await asyncio.to_thread(self.openers[name]):
                self.loaded[served.name] = served
        except InputError as error:
            raise Refused(503, f"the model {name!r} cannot be loaded: {error}", "model") from None

    def _groups(self) -> list[list[Served]]:
        """Those that are loaded, by their workers."""
        found: dict[Worker, list[Served]] = {}
        for served in self.loaded.values():
            found.setdefault(served.worker, []).append(served)
        return list(found.values())

    async def _unload(self, group: list[Served]) -> None:
        for served in group:
            del self.loaded[served.name]
        await asyncio.to_thread(group[0].worker.close)

    async def tidy(self) -> None:
        """Give memory back that nobody uses, for ever; a task of the server's: what is left of conversations after a
        while, and whole models where that is asked for."""
        while True:
            await asyncio.sleep(min(self.idle or REST, 5))
            async with self._changing:
                for group in self._groups():
                    rest = time.monotonic() - _last_use(group)
                    if any(served.users for served in group):
                        continue
                    if self.idle is not None and rest >= self.idle:
                        await self._unload(group)
                    elif rest >= REST:
                        group[0].worker.trim()

    async def close(self) -> None:
        """Unload all."""
        async with self._changing:
            for group in self._groups():
                await self._unload(group)


def _last_use(group: list[Served]) -> float:
    return max(served.last for served in group)
