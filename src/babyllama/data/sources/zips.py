"""Zip archives as folders: their members are read where they lie, nothing is unpacked to the disk.

Not here: what a member's bytes mean (files.py, readers.py); other archives, which are called that and left to the user.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO

from babyllama.data.sources.remote import RemoteFile
from babyllama.errors import InputError

ZIP = ".zip"
COMPRESSED = (".gz", ".zst")
_UTF8 = 0x800  # the flag of a member whose name is UTF-8


@dataclass(frozen=True)
class Member:
    """One file in an archive, as readers ask for files. `packed`: bytes on the disk; `size`: unpacked."""

    archive: Path
    entry: str  # its name as the archive has it
    name: str  # the same as people wrote it
    packed: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def suffixes(self) -> list[str]:
        return PurePosixPath(self.name).suffixes

    def with_suffix(self, suffix: str) -> PurePosixPath:
        return PurePosixPath(self.name).with_suffix(suffix)

    def open(self, mode: str = "rb") -> IO[bytes]:
        """Its bytes, unpacked. Raises InputError: a password, a method that Python does not know, a damaged archive."""
        try:
            return _archive(self.archive, _stamp(self.archive)).open(self.entry)
        except NotImplementedError as error:
            raise InputError(f"{self}: {error}; unpack it and give its files") from None
        except RuntimeError:
            raise InputError(f"{self}: is encrypted; unpack it and give its files") from None
        except zipfile.BadZipFile as error:
            raise InputError(f"{self}: damaged or cut off ({error}); fetch it again") from None


File = Path | Member | RemoteFile


def suffix_of(file: File) -> str:
    """Its ending without that of a compression, in small letters."""
    return (file.with_suffix("") if file.suffix in COMPRESSED else file).suffix.lower()


def members(archive: Path) -> list[Member]:
    """All files in an archive, by name; those of folders, too. Raises InputError: damaged, cut off, no archive."""
    entries = [entry for entry in _archive(archive, _stamp(archive)).infolist() if not entry.is_dir()]
    found = (Member(archive, e.filename, _name(e), e.compress_size, e.file_size) for e in entries)
    return sorted(found, key=lambda member: member.name)


def hidden(name: str) -> bool:
    """Whether a member is none that its author meant: hidden, or what macOS adds."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def unpacked(files: Iterable[Path | RemoteFile], known: Iterable[str]) -> Iterator[File]:
    """Files, and instead of an archive its members whose endings are `known`. Raises InputError for one without any."""
    known = frozenset(known)
    for file in files:
        if file.suffix.lower() != ZIP or isinstance(file, RemoteFile):
            yield file
            continue
        found = [member for member in members(file) if is_read(member, known)]
        if not found:
            inside = ", ".join(member.name for member in members(file)[:3]) or "nothing"
            raise InputError(
                f"{file}: no corpus file in this archive, but {inside}; known are {' '.join(sorted(known))}"
            )
        yield from found


def is_read(member: Member, known: Iterable[str]) -> bool:
    """Whether a member is a corpus file, by its ending without that of a compression."""
    return not hidden(member.name) and suffix_of(member) in known


@lru_cache(maxsize=2)  # each holds a file descriptor
def _archive(path: Path, stamp: tuple[int, int]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: damaged or cut off, or no zip archive ({error}); fetch it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return found.st_size, found.st_mtime_ns


def _name(entry: zipfile.ZipInfo) -> str:
    """As its author wrote it: a name without the flag is in the encoding of its author's system, often GBK."""
    if entry.flag_bits & _UTF8:
        return entry.filename
    raw = entry.filename.encode("cp437", "replace")
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return entry.filename
