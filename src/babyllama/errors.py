"""The one exception that stands for a fault in what the user gave: a file, a key, a value, a request.

The command line prints it as one line and exits with code 2; anything else is a defect of ours and keeps
its traceback. Not here: recovery, logging.
"""

import errno
import os
import re
import shlex
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT}  # what the system says where there is no room
_SURROGATE, _HALF = re.compile(r"[\ud800-\udfff]"), re.compile(r"[\ud800-\udc7f\udd00-\udfff]")
_BETWEEN = re.compile(r"([ \n/:,;]+)")  # the parts of paths and messages; in no encoding second bytes of characters


class InputError(ValueError):
    """What is wrong, where (path, line, key), with which value, and the remedy, in one line."""


class MissingExtra(InputError):
    """An optional package is not installed."""


def needs_extra(package: str, extra: str) -> MissingExtra:
    """The error for an optional package that is not installed; how it is installed goes by how babyllama was."""
    clone = Path(__file__).parents[2]
    way = f"in {clone}: pip install -e '.[{extra}]'" if (clone / "pyproject.toml").is_file() else (
          f"pip install 'babyllama[{extra}]'")  # fmt: skip
    return MissingExtra(f"this needs the package {package}; {way}")


def cause(error: Exception) -> str:
    """What the system says went wrong, without its number and without the path, which our line has already."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8: save it in that encoding"
    return getattr(getattr(error, "reason", error), "strerror", None) or str(error)


def at_home(given: str | Path) -> Path:
    """A path as a user gave it, where ``~`` is a home folder. Raises InputError: there is no such home folder, or no
    file can have this name."""
    path = Path(given)
    if "\0" in str(path) or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise InputError(f"no file can have this name: {str(path)[:60]!r}…; give a path")
    try:
        return path.expanduser()
    except RuntimeError:
        raise InputError(f"there is no home folder {path.parts[0]}; give the whole path") from None


def pasted(path: Path) -> str:
    """As a shell takes it in a command to paste: in quotes where blanks or other signs of the shell are in it."""
    return str(path) if re.fullmatch(r"[\w@%+:,./\\-]+", str(path)) else shlex.quote(str(path))


def readable(text: str) -> str:
    """The same without what UTF-8 cannot hold: parts of file names that are no UTF-8 are read as GB18030, in which
    older programs write Chinese names."""
    if not _SURROGATE.search(text):
        return text
    parts = (part.encode("utf-8", "surrogateescape") for part in _BETWEEN.split(_HALF.sub("\ufffd", text)))
    return "".join(part.decode("utf-8" if is_utf8(part) else "gb18030", "replace") for part in parts)


def is_utf8(data: bytes) -> bool:
    """Whether it reads as UTF-8 from its first to its last byte."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def remedy_for(status: int, otherwise: str) -> str:
    """What to do about an HTTP status of a server that may want a key; `otherwise`: about any other."""
    return "give its key: api_key=… or, so that no history keeps it, OPENAI_API_KEY" if status == 401 else otherwise


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived, and everything so far is saved; the message says how to go on. Exit code 130."""
