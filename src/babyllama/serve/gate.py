"""What stands before the routes: keys, the size of a body, the access log; and what becomes of any fault.

One line of JSON for each request: time, route, model, status, tokens in and out, milliseconds; never what was said.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TextIO

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from babyllama.errors import cause
from babyllama.serve.faults import SERVER_FAULT, Refused

OPEN = {"/", "/health", "/docs", "/openapi.json", "/docs/oauth2-redirect"}  # without a key
PAGES = "/web/"  # so do the files of the web app, which hold nothing of anybody's
GONE = 499  # in the log: the client went away


@dataclass
class Record:
    """What the log and the counters are told of a request; the routes fill in what they know.

    Attributes:
        first: seconds until the first token.
    """

    model: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    status: int = GONE
    began: float = field(default_factory=time.perf_counter)
    first: float | None = None
    route: str = "other"
    seconds: float = 0.0
    method: str = "GET"


class Gate:
    """The outermost application.

    Args:
        keys: any of them opens the server; none: it is open to all.
        most: bytes of a body.
        log: where a line for each request goes.
        note: told of each request that has ended.
        short: applications of paths that are asked so often that they go past `app`, by POST.
    """

    def __init__(self, app: ASGIApp, keys: Collection[str], most: int, log: TextIO | None,
                 note: Callable[[Record], None], short: Mapping[str, ASGIApp]) -> None:  # fmt: skip
        self.app, self.most, self.log, self.note, self.short = app, most, log, note, short
        self._keys = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = Record(method=scope["method"])
        scope.setdefault("state", {})["record"] = record
        if scope["method"] == "HEAD":  # as GET; who has the socket sends no body then
            scope = {**scope, "method": "GET"}

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            self._admit(scope)
            app = self.short.get(scope["path"], self.app) if scope["method"] == "POST" else self.app
            await app(scope, self._limited(scope, receive), told)
        except Refused as fault:
            if record.status == GONE:
                await fault.response()(scope, receive, told)
        except ClientDisconnect:  # in the middle of its request
            pass
        except Exception:
            traceback.print_exc(file=sys.stderr)
            if record.status == GONE:
                await Refused(500, SERVER_FAULT).response()(scope, receive, told)
        finally:
            self._note(scope, record)

    def _admit(self, scope: Scope) -> None:
        open_ = scope["path"] in OPEN or scope["path"].startswith(PAGES) or scope["method"] == "OPTIONS"
        if not self._keys or open_:
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, key = given.partition(b" ")
        digest = _digest(key.strip().decode("latin-1"))
        if kind.lower() != b"bearer" or not any(hmac.compare_digest(digest, known) for known in self._keys):
            raise Refused(401, "a key is needed: Authorization: Bearer KEY" if not given else "the API key is wrong",
                          code="invalid_api_key")  # fmt: skip

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Refuses a body that is announced as too long, or becomes it."""
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        fault = Refused(413, f"the body is above this server's limit of {self.most} bytes")
        if length.isdigit() and int(length) > self.most:
            raise fault
        got = 0

        async def limited() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self.most:
                raise fault
            return message

        return limited

    def _note(self, scope: Scope, record: Record) -> None:
        record.seconds = time.perf_counter() - record.began
        path = scope["path"] if scope["path"] in self.short else getattr(scope.get("route"), "path", "")
        record.route = path or "other"
        self.note(record)
        if self.log is None:
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "method": record.method,
                "route": record.route, "model": record.model, "status": record.status, "tokens_in": record.tokens_in,
                "tokens_out": record.tokens_out, "ms": round(1000 * record.seconds, 1)}  # fmt: skip
        try:
            self.log.write(json.dumps(line) + "\n")
            self.log.flush()
        except OSError as error:  # a full disk, a pipe that nobody reads: no reason to fail
            self.log = None
            print(f"babyllama: the log of requests cannot be written any more ({cause(error)}); they are answered "
                  "without it", file=sys.stderr, flush=True)  # fmt: skip


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
