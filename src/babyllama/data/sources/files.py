"""The bytes of a corpus file as UTF-8, through its decompressor. Not here: what the bytes mean.

A byte order mark says the encoding, whatever was given; ``auto`` tells it by the first bytes beyond ASCII
(encodings.py), and a file that is UTF-8 is not read as anything else.

Two kinds of fault: a file that is damaged as a whole (cut off, another encoding from its first byte) is an InputError;
a part that cannot be read is passed on, as a line that says why (`Unreadable`), and is one bad record.
"""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from babyllama.data.sources.encodings import is_utf8, marked, told
from babyllama.data.sources.zips import File
from babyllama.errors import InputError, needs_extra

LINE_BYTES = 256 << 20  # no line and no record is longer
_CHUNK = 1 << 17
_UNREADABLE = b"\x00!"
_NAMES = {"gb18030": "GB18030 (GBK)", "cp950": "Big5"}
# How files begin that no reader here opens, and what to do; found behind the decompressor, too.
_OTHERS = {
    b"PK\x03\x04": "a zip archive; end its name in .zip, or unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it and give its files",
    b"Rar!\x1a\x07": "a rar archive; unpack it and give its files",
    b"\xfd7zXZ\x00": "compressed by xz; unpack it (xz -d)",
    b"BZh": "compressed by bzip2; unpack it (bzip2 -d)",
    b"\x1f\x8b\x08": "compressed by gzip; unpack it, or end its name in .gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it, or end its name in .zst",
}
_TAR = slice(257, 262)


class Bytes:
    """A file read through its decompressor and turned into UTF-8; `tell` is the position on disk.

    Bytes that are no text in `encoding` are passed on as they are, so that they are one line's fault.

    Raises:
        InputError: cannot be opened; damaged or cut off; an archive, or compressed in a way that is not known here;
            UTF-8 where another encoding was given; with ``auto``, of an encoding that does not show.
    """

    def __init__(self, path: File, encoding: str = "utf-8") -> None:
        self.path = path
        try:
            self._raw: IO[bytes] = path.open("rb")
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        self._data: Any = self._raw
        if path.suffix == ".gz":
            self._data = gzip.GzipFile(fileobj=self._raw)
        elif path.suffix == ".zst":
            self._data = io.BufferedReader(_Zstd(self._raw), 1 << 20)
        start = self._guard(self._data.peek, 4)
        self._refuse_others(start)
        self._recoded, encoding = None, marked(start) or encoding
        if encoding != "utf-8":
            self._recoded = _Recoded(path, self._data, encoding)
            self._data = io.BufferedReader(self._recoded, 1 << 20)

    @property
    def encoding(self) -> str:
        """What it is read as, as far as it has been read."""
        return "utf-8" if self._recoded is None or self._recoded.encoding == "auto" else self._recoded.encoding

    def _refuse_others(self, start: bytes) -> None:
        other = next((what for begin, what in _OTHERS.items() if start.startswith(begin)), "")
        if start[_TAR] == b"ustar":
            other = "a tar archive; unpack it and give its files"
        if other:
            self._raw.close()
            raise InputError(f"{self.path}: is {other}")

    def __enter__(self) -> Bytes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._raw.close()

    def tell(self) -> int:
        return self._raw.tell()

    def head(self, size: int) -> bytes:
        """The first bytes without the byte order mark, for a look at what follows; they are read again later."""
        return self._guard(self._data.read, size).removeprefix(codecs.BOM_UTF8)

    def read(self, size: int) -> bytes:
        return self._guard(self._data.read, size)

    def readline(self, size: int = LINE_BYTES) -> bytes:
        return self._guard(self._data.readline, size)

    def _guard(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            return read(size)
        except InputError:
            raise
        except Exception as error:  # zlib, zstandard and gzip each have their own
            if isinstance(error, MemoryError):
                raise
            if isinstance(error, UnicodeError):
                raise InputError(f"{self.path}: not in the encoding that was given ({error}); say another") from None
            raise InputError(f"{self.path}: damaged or cut off ({error}); fetch it again") from None


def too_long(path: File, line: int) -> InputError:
    """The error for a line that is longer than any may be."""
    return InputError(f"{path}:{line}: longer than {LINE_BYTES >> 20} MiB without a line end; cut it into lines")


class Lines:
    """Decoded lines with their line ends. One that is no text keeps its bytes as surrogates, and `bad` says why."""

    def __init__(self, handle: Bytes, encoding: str) -> None:
        self._handle, self._encoding = handle, encoding
        self.number, self._bad = 0, ""

    def __iter__(self) -> Iterator[str]:
        while line := self._handle.readline():
            self.number += 1
            if len(line) == LINE_BYTES and not line.endswith(b"\n"):
                raise too_long(self._handle.path, self.number)
            if self.number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield line.decode()
            except UnicodeDecodeError:
                self._bad = f"line {self.number}: {bad_text(line, self._encoding)}"
                yield line.decode("utf-8", "surrogateescape")

    def bad(self) -> str:
        """What was wrong with a line since the last call; empty if nothing was."""
        found, self._bad = self._bad, ""
        return found


class _Pieces(io.RawIOBase):
    """A raw stream out of a function that gives the next piece, of any length; b"" is the end."""

    def __init__(self) -> None:
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = self._next()
        count = min(len(self._left), len(buffer))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def _next(self) -> bytes:
        raise NotImplementedError


class _Zstd(_Pieces):
    """Frames one after the other. A frame that does not end is an error, as it is for gzip."""

    def __init__(self, raw: IO[bytes]) -> None:
        super().__init__()
        try:
            import zstandard
        except ImportError:
            raise needs_extra("zstandard", "data") from None
        self._raw = raw
        self._context = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame: Any = None
        self._rest = b""

    def _next(self) -> bytes:
        while True:
            data = self._rest or self._raw.read(_CHUNK)
            self._rest = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the last frame has no end")
                return b""
            if self._frame is None:
                self._frame = self._context.decompressobj()
            found = self._frame.decompress(data)
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
            if found:
                return found


class _Recoded(_Pieces):
    """Another encoding as UTF-8. What is no text in it comes out as it went in, which is no UTF-8 either."""

    def __init__(self, path: File, raw: Any, encoding: str) -> None:
        super().__init__()
        self.encoding = encoding
        self._path, self._raw, self._seen = path, raw, False
        self._decoder: Any = None

    def _next(self) -> bytes:
        while True:
            data = self._raw.read(_CHUNK)
            if not self._seen and not data.isascii():
                self.encoding, self._seen = self._settled(data), True
            if self.encoding in ("auto", "utf-8"):
                return data
            self._decoder = self._decoder or codecs.getincrementaldecoder(self.encoding)("surrogateescape")
            found = self._decoder.decode(data, final=not data).encode("utf-8", "surrogateescape")
            if found or not data:
                return found

    def _settled(self, data: bytes) -> str:
        """By the first bytes that are not ASCII."""
        if self.encoding != "auto":
            if is_utf8(data):
                raise InputError(f"{self._path}: is UTF-8, not {self.encoding}; say encoding: auto where files "
                                 "differ")  # fmt: skip
            return self.encoding
        if found := told(data):
            return found
        raise InputError(f"{self._path}: neither UTF-8 nor GB18030 (GBK) nor Big5; save it in UTF-8, or say "
                         "of a corpus encoding: utf-16-le, …")  # fmt: skip


class Unreadable(NamedTuple):
    """Stands in the place of a record that could not be read."""

    reason: str

    @property
    def line(self) -> bytes:
        """As a line of a blob."""
        return _UNREADABLE + self.reason.replace("\n", " ").encode("utf-8", "replace")


def reason_of(line: bytes) -> str | None:
    """Why a record could not be read; None for a line that is no `Unreadable`."""
    return line.removeprefix(_UNREADABLE).decode("utf-8", "replace") if line.startswith(_UNREADABLE) else None


def bad_text(data: bytes, encoding: str = "utf-8") -> str:
    """What to say about bytes that are no text in their encoding; another one is named, never guessed silently."""
    if encoding == "auto":
        return "not valid in the encoding that the rest of the file is in; mend it"
    if encoding != "utf-8":
        return f"not valid {encoding}; give the right encoding, or mend it"
    if b"\0" in data:
        return "not valid UTF-8, but full of zero bytes; if it is UTF-16, say encoding: utf-16-le or utf-16-be"
    if (found := told(data)) in _NAMES:
        return (f"not valid UTF-8, but it reads as {_NAMES[found]}; if it is that, say encoding: {found} (or auto, "
                "where files differ)")  # fmt: skip
    return "not valid UTF-8 (nor GB18030); mend it, or say which encoding it is in: encoding: …"
