"""Corpus files that lie elsewhere (https://, s3://, hf://): read as they come through fsspec, never stored.

A connection that breaks is made again where it broke. Not here: files of the hub that are fetched (hub.py), formats.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from babyllama.errors import InputError, needs_extra

T = TypeVar("T")
_WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before a read is tried again
_PATIENCE = 10  # seconds until a server must have taken a connection
_BLOCK = 8 << 20
_PACKAGES = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3")}  # of a scheme: what fsspec needs for it, and its extra


@cache
def reach(address: str) -> None:
    """Raise OSError if there is no way to the server of an http address; whoever then asks it in earnest may try often,
    which is good for a server that is busy and long for one that is out of reach."""
    parts = urlsplit(address)
    if parts.hostname is None or {parts.scheme, "all"} & getproxies().keys():
        return  # whoever asks says what is wrong; a proxy knows the way
    with socket.create_connection((parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)), _PATIENCE):
        pass


class _Stat(NamedTuple):
    st_size: int


@dataclass(frozen=True)
class RemoteFile:
    """Stands where readers take a Path. `headers` go with each request (http only)."""

    url: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        """Without what follows a question mark, where signatures stand."""
        return self.url.partition("?")[0]

    @property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(urlsplit(self.url).path)

    @property
    def suffix(self) -> str:
        return self._path.suffix

    @property
    def suffixes(self) -> list[str]:
        return self._path.suffixes

    def with_suffix(self, suffix: str) -> PurePosixPath:
        """Of its name."""
        return self._path.with_suffix(suffix)

    def stat(self) -> _Stat:
        """0 bytes where the server does not tell. Raises InputError as `open`."""
        return _Stat(_reached(self.url, lambda: _system(self.url, self.headers).info(self.url)["size"]) or 0)

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Raises InputError: offline, not there, refused, a package is missing."""
        assert mode == "rb"
        return io.BufferedReader(_Reader(self), 1 << 20)


def read_whole(file: RemoteFile) -> bytes:
    """All of a short file, by one question. Raises InputError as `RemoteFile.open`."""
    return _reached(file.url, lambda: _system(file.url, file.headers).cat_file(file.url))


def is_remote(path: str) -> bool:
    """Whether it is no path on this machine."""
    return "://" in path


def find_remote(path: str) -> list[RemoteFile]:
    """A file, or all that a pattern fits, sorted. Raises InputError as `RemoteFile.open`, or nothing fits."""
    if path.startswith(("http://", "https://")) or not any(sign in path for sign in "*?["):
        return [RemoteFile(path)]
    system = _system(path, ())
    found = _reached(path, lambda: sorted(system.glob(path)))
    if not found:
        raise InputError(f"{path}: nothing there fits it")
    return [RemoteFile(system.unstrip_protocol(name)) for name in found]


def _system(url: str, headers: tuple[tuple[str, str], ...]) -> Any:
    scheme = url.partition("://")[0]
    try:
        import fsspec
    except ImportError:
        raise needs_extra("fsspec", "data") from None
    more = {"client_kwargs": {"headers": dict(headers)}} if headers else {}
    try:
        return fsspec.filesystem(scheme, **more)
    except ImportError:
        raise needs_extra(*_PACKAGES.get(scheme, (f"that fsspec has for {scheme}://", "data"))) from None
    except ValueError:
        raise InputError(f"{url}: nothing reads {scheme}:// here; known are https, s3, hf and fsspec's") from None


def _reached(url: str, work: Callable[[], T]) -> T:
    """What `work` gives, or an InputError in one line."""
    try:
        return work()
    except InputError:
        raise
    except Exception as error:  # each of fsspec's file systems and their clients has its own
        cause = error.__cause__  # fsspec says of any fault with http that the file is not found
        reason = (str(cause or error).strip().splitlines() or [""])[0][:160] or type(error).__name__
        shown = url.partition("?")[0]
        reason = reason.replace(url, shown)
        if isinstance(error, FileNotFoundError) and getattr(cause, "status", 0 if cause else 404) == 404:
            raise InputError(f"{shown}: is not there; check the address") from None
        raise InputError(f"{shown}: cannot be read ({reason}); check the network and that you may read it, "
                         "or download it and give its path") from None  # fmt: skip


class _Reader(io.RawIOBase):
    """The bytes of a file; after a fault from where it was, by a range where the server gives some."""

    def __init__(self, file: RemoteFile) -> None:
        super().__init__()
        self._file, self._at = file, 0
        self._stream: Any = _reached(file.url, self._opened)
        self._seekable = bool(self._stream.seekable())

    def _opened(self) -> Any:
        url = self._file.url
        stream = _system(url, self._file.headers).open(url, "rb", block_size=_BLOCK, cache_type="readahead")
        if stream.seekable():
            stream.seek(self._at)
            return stream
        left = self._at
        while left and (passed := stream.read(min(left, _BLOCK))):
            left -= len(passed)
        return stream

    def _read(self, size: int) -> bytes:
        for wait in (*_WAITS, None):
            try:
                self._stream = self._stream or self._opened()
                return self._stream.read(size)
            except Exception:
                self._stream = None
                if wait is None:
                    raise
                time.sleep(wait)
        raise AssertionError

    def readinto(self, buffer: Any) -> int:
        data = _reached(self._file.url, lambda: self._read(len(buffer)))
        self._at += len(data)
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._seekable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = self._stream.seek(offset, whence)
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        if not self.closed and self._stream:
            self._stream.close()
        super().close()
