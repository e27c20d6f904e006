"""Files of JSON that are not one object a line: an array, an array inside an object, or values over several lines.

Read a buffer of text at a time, so memory stays flat. An item that cannot be read but whose end can be told is one bad
record; anything else stops the work, for what follows cannot be trusted. Items of an array are taken many at a time by
orjson, as far as it understands them, else one by one. Not here: what the objects mean.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Literal

from babyllama.data.sources.chats import is_message
from babyllama.data.sources.files import LINE_BYTES, Bytes, Unreadable, bad_text
from babyllama.data.sources.zips import File
from babyllama.errors import InputError

try:
    import orjson
except ImportError:  # babyllama[data] is not installed
    orjson = None

HEAD_BYTES = 64 << 10
Form = Literal["lines", "array", "wrapped", "values"]

_WRAPPERS = {"data", "dataset", "documents", "examples", "instances", "items", "records", "rows", "samples", "train"}
_SCAN = json.JSONDecoder().raw_decode
_BLANK = re.compile(r"\s*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*(?P<open>"|$)|[{}\[\]]', re.DOTALL)
_BEGIN = re.compile(r'\s*,\s*\{\s*"[^"\\]*"')
_BUFFER = 1 << 20
_TRIES = 10  # cuts at a wrong place in a file


def form_of(head: bytes) -> Form:
    """How a file of JSON is laid out, by its first bytes."""
    text = head.decode("utf-8", "replace").lstrip()
    if text.startswith("["):
        return "values" if is_message(_first_item(text)) else "array"
    if not text.startswith("{"):
        return "lines"
    if _array_under(text) is not None:
        return "wrapped"
    line = text.find("\n")
    try:
        _, end = _SCAN(text)
    except json.JSONDecodeError as error:
        end = error.pos
    except RecursionError:
        end = 0
    return "values" if 0 <= line < end else "lines"


def _first_item(text: str) -> Any:
    try:
        return _SCAN(text, _space(text, 1))[0]
    except (ValueError, RecursionError):
        return None


def _array_under(text: str) -> int | None:
    """Where the array of objects begins that an object holds under a usual key; None if that is not its form."""
    at = _space(text, 1)
    while text.startswith('"', at):
        try:
            key, at = _SCAN(text, at)
            at = _space(text, at)
            if not text.startswith(":", at):
                return None
            at = _space(text, at + 1)
            if key in _WRAPPERS and text.startswith("[", at) and text.startswith("{", _space(text, at + 1)):
                return at
            at = _space(text, _SCAN(text, at)[1])
        except (ValueError, RecursionError):
            return None
        if not text.startswith(",", at):
            return None
        at = _space(text, at + 1)
    return None


def _space(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


class _Buffer:
    """A window over the text of a file: `text` from `at` on is still to be read."""

    def __init__(self, path: File, handle: Bytes, encoding: str) -> None:
        self._path, self._handle, self._encoding = path, handle, encoding
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._size, self._line, self.ended = _BUFFER, 1, False
        self.text, self.at = "", 0
        self._tries = _TRIES if orjson else 0

    def grow(self) -> bool:
        """Read on, twice as much each time in a row; False at the end of the file or where one value is too long."""
        if self.ended or len(self.text) - self.at > LINE_BYTES:
            return False
        data = self._handle.read(self._size)
        self._line += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :] + self._decode.decode(data, final=not data), 0
        self.ended, self._size = not data, self._size * 2
        return True

    def next(self) -> str:
        """The next character that is not blank, not yet taken; "" at the end."""
        while True:
            self.at = _space(self.text, self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""

    def take(self, character: str) -> bool:
        """Step over one character, if it is the next."""
        found = self.next() == character
        self.at += found
        return found

    def value(self) -> Any:
        """The next value, or `Unreadable` for one that ends where its brackets say. Raises InputError for others."""
        self.next()
        while True:
            try:
                value, end = _SCAN(self.text, self.at)
            except RecursionError:
                return self._broken("nested too deeply")
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or len(self.text) - error.pos < 16
                if cut and self.grow():
                    continue
                return self._broken(error.msg)
            if end == len(self.text) and self.grow():  # a number may go on
                continue
            self.at, self._size = end, _BUFFER
            return value

    def many(self) -> Iterator[bytes]:
        """The JSON of the next items of an array, of which one was just read; as many as orjson can be given at once.

        They are cut before the last item in sight that begins as the next one does, with the same key, after one that
        ends as the last one did. A cut inside a text or an item leaves something open, which no parser takes; after a
        few of those it is not tried any more. What is left comes one by one (`value`).
        """
        begin = _BEGIN.match(self.text, self.at) if self._tries and self.text.startswith("}", self.at - 1) else None
        if not begin or orjson is None:
            return
        before = self.text[self.at - 2 : self.at].encode("utf-8", "surrogateescape")
        between = before + begin[0].encode("utf-8", "surrogateescape")
        pending, flag = self._decode.getstate()
        self._decode.setstate((b"", flag))
        self._line += self.text.count("\n", 0, self.at)
        left = self.text[self.at :].encode("utf-8", "surrogateescape") + pending
        while (end := left.rfind(between, left.index(b"{"))) > 0:
            end += len(before)
            try:
                found = orjson.loads(b"[%b]" % left[left.index(b"{") : end])
            except ValueError:
                self._tries -= 1
                break
            yield from map(orjson.dumps, found)
            data = self._handle.read(_BUFFER)
            self._line += left.count(b"\n", 0, end)
            left, self.ended = left[end:] + data, not data
        self.text, self.at, self._size = self._decode.decode(left, final=self.ended), 0, _BUFFER

    def _broken(self, reason: str) -> Unreadable:
        if not self.text.startswith(("{", "["), self.at):
            raise ValueError(reason)
        while True:
            open_ = []
            for token in _TOKEN.finditer(self.text, self.at):
                if token["open"] == "":
                    break
                if token[0] in "{[":
                    open_.append(token[0])
                elif token[0] in "}]" and open_.pop() + token[0] not in ("{}", "[]"):
                    raise ValueError(reason)
                if not open_:
                    item, self.at, self._size = self.text[self.at : token.end()], token.end(), _BUFFER
                    return Unreadable(self._why(item, reason))
            if not self.grow():
                raise ValueError(reason)

    def _why(self, item: str, reason: str) -> str:
        if any("\udc80" <= character <= "\udcff" for character in item):
            return bad_text(item.encode("utf-8", "surrogateescape"), self._encoding)
        return f"not valid JSON ({reason})"

    @property
    def place(self) -> str:
        """``file:line`` of what comes next."""
        return f"{self._path}:{self._line + self.text.count(chr(10), 0, self.at)}"


def items(path: File, handle: Bytes, form: Form, encoding: str = "utf-8") -> Iterator[Any]:
    """The records of a file that is an array, wraps one, or holds one value after the other; some as JSON in bytes.

    Raises:
        InputError: the file cannot be followed any further, or holds more than its array.
    """
    buffer, number = _Buffer(path, handle, encoding), 0
    if form == "wrapped":
        buffer.next()
        start = _array_under(buffer.text[buffer.at :])
        assert start is not None  # `form_of` found it in the same text
        buffer.at += start
    try:
        if form == "values":
            while buffer.next():
                yield buffer.value()
                number += 1
            return
        if not buffer.take("["):
            raise ValueError
        more = not buffer.take("]")
        while more:
            yield buffer.value()
            number += 1
            for item in buffer.many():
                yield item
                number += 1
            if not (more := buffer.take(",") and buffer.next() != "]") and not buffer.take("]"):
                raise ValueError
        if form == "wrapped":
            _rest_of_object(path, buffer)
    except InputError:
        raise
    except ValueError:
        raise InputError(
            f"{path}, record {number + 1}: not valid JSON in an array of objects; mend the file there"
        ) from None
    if buffer.next():
        after = buffer.text[buffer.at : buffer.at + 20]
        raise InputError(
            f"{buffer.place}: {after!r} stands after the end of the array; a file holds one array, or one object a line"
        )


def _rest_of_object(path: File, buffer: _Buffer) -> None:
    """What follows the array in the object around it: other keys, but no other array of objects."""
    while buffer.take(","):
        key = buffer.value()
        if not isinstance(key, str) or not buffer.take(":"):
            raise ValueError
        value = buffer.value()
        if isinstance(value, list) and value and isinstance(value[0], dict):
            raise InputError(f"{buffer.place}: a second array, under {key!r}; put each array into a file of its own")
    if not buffer.take("}"):
        raise ValueError
