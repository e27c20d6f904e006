"""The client's side of HTTP, for measurements: requests over one connection, one after the other, and events.

Libraries do much more, and beside a fast server on the same machine take as long as it does. Not here: what is asked,
what is counted (commands/bench_serve.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httptools
import orjson


class Place(NamedTuple):
    """Where a server is. `path`: before that of each route."""

    host: str
    port: int
    secure: bool
    path: str
    headers: bytes

    @classmethod
    def of(cls, url: str, key: str) -> Place:
        """Of ``http(s)://HOST[:PORT][/PATH]``. Raises ValueError for anything else, also for a key of other letters."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it is no http://… or https://…")
        secure = parts.scheme == "https"
        headers = f"Host: {parts.netloc.rpartition('@')[2]}\r\n" + (f"Authorization: Bearer {key}\r\n" if key else "")
        return cls(parts.hostname, parts.port or (443 if secure else 80), secure, parts.path.rstrip("/"),
                   headers.encode("latin-1"))  # fmt: skip


class Line:
    """A connection, opened when it is needed. HTTP/1.1 with bodies of known length or in chunks.

    Attributes:
        headers: of the last answer, by their names in lower case.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.headers: dict[bytes, bytes] = {}
        self._connection: _Connection | None = None

    async def ask(self, method: str, route: str, asked: Any, read: Callable[[bytes], None]) -> int:
        """The status of the answer, after all of it has come.

        Args:
            asked: what the request's JSON says; None: it has no body.
            read: called with the pieces of the answer's body as they come; what it raises ends the answer.

        Raises:
            OSError: nobody is there, or the connection broke.
            ValueError: it is no HTTP.
            Exception: what `read` raises.
        """
        place = self.place
        body = b"" if asked is None else orjson.dumps(asked)
        sort = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body) if body else b""
        start = f"{method} {place.path}{route} HTTP/1.1\r\n".encode("ascii")
        if self._connection is None or self._connection.lost:
            _, self._connection = await asyncio.get_running_loop().create_connection(
                _Connection, place.host, place.port, ssl=place.secure or None
            )
        connection = self._connection
        try:
            status = await connection.ask(b"".join((start, place.headers, sort, b"\r\n", body)), read)
        except BaseException:
            self.close()
            raise
        self.headers = connection.headers
        if not connection.stays:
            self.close()
        return status

    def close(self) -> None:
        """The next request opens another connection."""
        if self._connection is not None:
            self._connection.transport.close()
            self._connection = None


class _Connection(asyncio.Protocol):
    transport: asyncio.WriteTransport
    lost, stays = False, True
    _done: asyncio.Future[None] | None = None

    async def ask(self, request: bytes, read: Callable[[bytes], None]) -> int:
        self._read, self._parser = read, httptools.HttpResponseParser(self)
        self.headers: dict[bytes, bytes] = {}
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        await self._done
        return self._parser.get_status_code()

    # ── what asyncio and the parser call ───────────────────────────────────────────────────────────────────────
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._done is not None and not self._done.done():
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError as error:
                self._fail(ValueError(f"the answer is no HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._fail(ConnectionError("the server closed the connection"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        try:
            self._read(body)
        except Exception as error:
            self._fail(error)

    def on_message_complete(self) -> None:
        if self._done is not None and not self._done.done():
            self.stays = self._parser.should_keep_alive()  # which it forgets
            self._done.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)


class Events:
    """Server-sent events, as the pieces of a body come.

    Args:
        told: called with what each event's JSON object says.

    Attributes:
        done: whether ``[DONE]`` came, the last event of OpenAI's streams.
    """

    def __init__(self, told: Callable[[Any], None]) -> None:
        self.told, self.done, self._beside, self._rest = told, False, b"", b""

    def read(self, data: bytes) -> None:
        """A piece of the body. Raises ValueError where an event is no JSON; what `told` raises."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                self._beside += line
                continue
            said = line[5:].strip()  # the blank may be left out
            if said.startswith(b"{"):
                self.told(orjson.loads(said))
            self.done |= said == b"[DONE]"

    @property
    def beside(self) -> str:
        """What came that is no event: a fault in words."""
        return (self._beside + self._rest).decode("utf-8", "replace").strip()
