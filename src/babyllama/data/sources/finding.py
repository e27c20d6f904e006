"""Which files a path means, and what of a folder or an archive is not read. Not here: reading them (readers.py)."""

from __future__ import annotations

import glob
from contextlib import suppress
from pathlib import Path
from typing import Literal

from babyllama.data.sources.zips import ZIP, Member, is_read, members, suffix_of
from babyllama.errors import InputError, at_home

Format = Literal["auto", "jsonl", "json", "parquet", "csv", "tsv", "txt", "lines", "blocks"]
SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "tsv",
    ".txt": "txt",
}  # fmt: skip
IN_ARCHIVES = [suffix for suffix in SUFFIXES if suffix != ".parquet"]  # whose reader has to jump about in a file


NO_TEXT = {  # what people have beside texts → what to save it as
    **dict.fromkeys((".pdf", ".doc", ".docx", ".wps", ".rtf", ".epub", ".mobi", ".ppt", ".pptx"), ".txt"),
    **dict.fromkeys((".xls", ".xlsx", ".et", ".ods"), ".csv"),
}


def find_files(path: str, archives: bool = True) -> list[Path]:
    """A file, every corpus file below a folder, or the matches of a glob, sorted. Raises InputError if none.

    Of a folder, hidden files and folders are passed over (`passed_over` names them). `archives`: zip archives count.
    """
    given = at_home(path)
    if given.is_file():
        return [given]
    if given.is_dir():
        known = {*SUFFIXES, ZIP} if archives else SUFFIXES
        found = sorted(p for p in given.rglob("*") if p.is_file() and not _hidden(p, given) and suffix_of(p) in known)
        if not found:
            raise InputError(_nothing_known(path, given))
        return found
    there = next(folder for folder in (*given.parents, Path()) if folder.is_dir())  # its brackets are no pattern
    pattern = Path(glob.escape(str(there))) / given.relative_to(there)
    matches = glob.glob(str(pattern), recursive=True)  # noqa: PTH207  Path.glob takes no absolute pattern
    found = sorted(p for p in map(Path, matches) if p.is_file())
    if not found:
        hint = "; in a pattern [ab] is one sign, a or b: write [[] for a bracket" if "[" in given.name else ""
        raise InputError(f"{path}: no such file or folder, and nothing matches it as a pattern{hint}")
    return found


def _nothing_known(path: str, folder: Path) -> str:
    known = f"known are {' '.join(SUFFIXES)}, or .gz, .zst, .zip"
    other = next((p for p in sorted(folder.rglob("*")) if p.is_file() and not _hidden(p, folder)), None)
    if other is None:
        return f"{path}: no corpus file in this folder; {known}"
    shown = f"{path}: no corpus file in this folder, but {other.relative_to(folder)}; {known}"
    if (told := NO_TEXT.get(other.suffix.lower())) is not None:
        return f"{shown}; save such a file as {told} in UTF-8, with the program that opens it"
    pattern = other.parent / f"*{other.suffix}"
    return f"{shown}; texts of another name are given by a pattern with their format: {{path: {pattern}, format: txt}}"


def passed_over(path: str) -> list[str]:
    """What `find_files` and archives leave out, sorted: files of a folder, relative to it, and members of archives."""
    given = at_home(path)
    if given.is_dir():
        every = [p for p in given.rglob("*") if p.is_file() or (p.is_symlink() and not p.exists())]
        left = [p for p in every if _hidden(p, given) or suffix_of(p) not in {*SUFFIXES, ZIP} or not p.exists()]
        archives = [p for p in every if p.suffix.lower() == ZIP and p not in left]
    else:
        left, archives = [], [given] if given.is_file() and given.suffix.lower() == ZIP else []
    inside = [m for archive in archives for m in _members(archive) if not is_read(m, IN_ARCHIVES)]
    root = given if given.is_dir() else given.parent
    return sorted(
        [*(str(p.relative_to(root)) for p in left), *(f"{m.archive.relative_to(root)}/{m.name}" for m in inside)]
    )


def _members(archive: Path) -> list[Member]:
    with suppress(InputError):  # a damaged one is reported where it is read
        return members(archive)
    return []


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
