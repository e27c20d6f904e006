"""Writing so that a kill at any instant leaves the old or the new, never a half: files, JSON, and whole folders.

A temporary name, fsync, rename. A full disk or a name that cannot be written is one clear line. Not here: what is
written (run.py and its users).
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from babyllama.errors import FULL, InputError, cause, readable

WINDOWS = os.name == "nt"
DEEPEST = 200  # lists and objects within each other, in JSON from outside
_REFUSED = {errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
            errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EIO}  # fmt: skip


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder or a name that is taken into one clear line."""
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number in FULL:
            free = shutil.disk_usage(_existing(path)).free / 2**20
            raise InputError(
                f"{path}: the disk is full ({free:.0f} MiB free); nothing that was saved before is lost: "
                "make room and run the same command again"
            ) from None
        if number and (number in _REFUSED or (isinstance(error, FileNotFoundError) and _no_place(path, error))):
            raise InputError(f"{path}: cannot write here ({os.strerror(number)}); choose another out=…") from None
        raise


def _errno(error: Exception) -> int | None:
    """The system's error number, also from what safetensors and tokenizers raise: "… (os error 28)", and from what
    numpy does, which keeps the number to itself: "… requested and … written"."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, OSError) and re.search(r"requested and \d+ written", str(error)):
        return errno.ENOSPC
    said = re.search(r"\(os error (\d+)\)", str(error))
    return int(said[1]) if said else None


def _no_place(path: Path, error: FileNotFoundError) -> bool:
    """Whether the folder that `path` was to be made in is gone, or takes no files (``/proc``). Any other file that
    is missing is a fault of another kind."""
    place = Path(error.filename or path).parent
    if not (place.is_relative_to(path.parent) or path.is_relative_to(place)):
        return False
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError:
        return True
    return False


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _fsync(path: Path) -> None:
    if WINDOWS and path.is_dir():
        return  # Windows opens no folder, and keeps its entries safe itself
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)  # Windows flushes what may be written
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file under a temporary name, fsync it, rename it into place.

    Raises:
        InputError: full disk, no permission.
    """

    def fill(partial: Path) -> None:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)

    replace_file(path, fill)


def replace_file(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a whole file under a temporary name, fsync it, rename it. Raises as `write_atomic`."""
    with disk_errors(path):
        _check_replaceable(path)
        partial = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")  # others may write it now
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fill(partial)
            _fsync(partial)
            _replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        _fsync(path.parent)


def _replace(new: Path, path: Path) -> None:
    """Rename over what is there. Windows refuses that while somebody reads it: then once more, within a second."""
    for wait in (0.01, 0.05, 0.2, 0.7) if WINDOWS else ():
        with suppress(PermissionError):
            new.replace(path)
            return
        time.sleep(wait)
    new.replace(path)


def _check_replaceable(path: Path) -> None:
    """Refuse a folder, and a device such as ``/dev/null``, which a rename would do away with."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no file but a device or a pipe; choose another out=…")


def check_writable(path: Path) -> None:
    """Raise InputError now if the file `path` could not be written after hours of work; its folder is made."""
    with disk_errors(path):
        _check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def json_text(data: Any, indent: int | None = None) -> str:
    """`data` as JSON that every reader takes: NaN and the infinities, for which JSON has no words, become null, and
    what UTF-8 cannot hold is `readable`."""
    return readable(json.dumps(_finite(data), ensure_ascii=False, indent=indent, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list | tuple) else data


def write_json(path: Path, data: Any, indent: int | None = 1) -> None:
    """`json_text` and a line's end, as `write_atomic` writes."""
    write_atomic(path, json_text(data, indent) + "\n")


def parse_json(text: str | bytes, **more: Any) -> Any:
    """What JSON from outside says, by `json.loads`, which takes `more`. Raises ValueError: it is none, or is nested so
    deeply that Python's own functions would fail on it, here or later."""
    try:
        found = json.loads(text, **more)
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None
    begins = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    if sum(map(text.count, begins)) > DEEPEST and _deeper(found):  # type: ignore[arg-type]
        raise ValueError(f"nested more than {DEEPEST} deep")
    return found


def _deeper(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = ((one.values() if isinstance(one, dict) else one) for one in level if isinstance(one, dict | list))
        level = list(itertools.chain.from_iterable(inner))
    return bool(level)


def read_json(path: Path, remedy: str = "restore it from a backup") -> dict[str, Any]:
    """The object in a file. Raises InputError: it cannot be read, is no JSON, or holds something else."""
    try:
        found = parse_json(path.read_text("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {cause(error)}; {remedy}") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: must hold a JSON object, not a {type(found).__name__}; {remedy}")
    return found


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a whole folder under a temporary name, fsync it, then swap it for `folder`.

    Between the two renames of a swap the old content is at ``.NAME.old``; `recover_folder` puts it back.
    """
    if not folder.name:  # "/" and "."
        raise InputError(f"{folder}: a folder that is swapped in whole needs a name of its own; choose another out=…")
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    with disk_errors(folder):
        recover_folder(folder)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            fill(partial)
            mode = partial.stat().st_mode & 0o666  # what the umask gives; safetensors gives less
            for path in sorted(partial.rglob("*")):
                if path.is_file():
                    path.chmod(mode)
                _fsync(path)
            _fsync(partial)
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
            _fsync(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Finish or undo a swap that a kill interrupted."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists():
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)
