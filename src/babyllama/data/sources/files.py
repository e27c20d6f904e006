"""The bytes of a corpus file, through its decompressor, faults as InputError. Not here: what the bytes mean."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from babyllama.errors import InputError, needs_extra

COMPRESSED = (".gz", ".zst")
LINE_BYTES = 256 << 20  # no line and no record is longer


class Bytes:
    """A file read through its decompressor; `tell` is the position on disk. Damage becomes InputError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._raw = path.open("rb")
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        self._data: Any = self._raw
        if path.suffix == ".gz":
            self._data = gzip.GzipFile(fileobj=self._raw)
        elif path.suffix == ".zst":
            self._data = io.BufferedReader(_zstd(self._raw), 1 << 20)

    def __enter__(self) -> Bytes:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def tell(self) -> int:
        return self._raw.tell()

    def read(self, size: int) -> bytes:
        return self._guard(self._data.read, size)

    def readline(self, size: int = LINE_BYTES) -> bytes:
        return self._guard(self._data.readline, size)

    def _guard(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            return read(size)
        except Exception as error:  # zlib, zstandard and gzip each have their own
            if isinstance(error, MemoryError):
                raise
            raise InputError(f"{self.path}: damaged or cut off ({error}); fetch it again") from None


def _zstd(raw: IO[bytes]) -> Any:
    try:
        import zstandard
    except ImportError:
        raise needs_extra("zstandard", "data") from None
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(raw, read_across_frames=True)


def not_utf8(where: str) -> InputError:
    """The error for bytes in another encoding."""
    return InputError(f"{where}: not valid UTF-8; if it is GBK, convert it: iconv -f GB18030 -t UTF-8 old > new")
