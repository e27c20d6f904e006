"""Everything that a client is told when a request cannot be served, in OpenAI's shape."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson
from starlette.responses import Response

SERVER_FAULT = "the server failed on this request; its log says why"


class Refused(Exception):
    """A request that is not served.

    Args:
        status: of HTTP.
        message: what is wrong, with value, limit and remedy.
        param: the field of the request.
        code: OpenAI's word for the fault, which clients test.
        wait: seconds after which to try again.
        allow: methods that the route takes.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None,
                 wait: int | None = None, allow: str | None = None) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.wait = status, message, param, code, wait
        self.allow = allow

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, self.message, self.param, self.code, self.wait, self.allow)

    @property
    def body(self) -> dict[str, Any]:
        """``{"error": {message, type, param, code}}``."""
        return {"error": {"message": self.message, "type": _type(self.status), "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """As the answer of the server."""
        headers = {} if self.wait is None else {"Retry-After": str(self.wait)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.allow is not None:
            headers["Allow"] = self.allow
        return Response(json_bytes(self.body), self.status, headers, "application/json")


class Stale(Exception):
    """The model is another one than when its tokenizer was asked for."""


def _type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


# Unicode's line breaks: some clients, httpx for one, end a line of a stream there.
_BREAKS = re.compile(rb"\xc2\x85|\xe2\x80[\xa8\xa9]")


def json_bytes(value: Any) -> bytes:
    """On one line, in UTF-8, half a surrogate pair as ?."""
    try:
        text = orjson.dumps(value)
    except orjson.JSONEncodeError:  # half a surrogate pair
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return _BREAKS.sub(_escaped, text)


def _escaped(found: re.Match[bytes]) -> bytes:
    return f"\\u{ord(found[0].decode()):04x}".encode()
