"""Data sets on ModelScope, by the addresses that its own client asks: what files there are, and their bytes.

``MODELSCOPE_ENDPOINT`` (another address) and ``MODELSCOPE_API_TOKEN`` hold as for that client. A file is kept in the
cache of babyllama under its data set and revision; what broke off is continued. Not here: which data set (hub.py).
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urlencode

from babyllama.atomic import disk_errors
from babyllama.data.sources.packages import cache_folder
from babyllama.data.sources.remote import RemoteFile, read_whole
from babyllama.errors import InputError

NEWEST = "master"
_PAGE = 200  # files in an answer
_CHUNK = 1 << 20


def list_files(repo: str, revision: str) -> dict[str, str | None]:
    """Name → sha256 of every file of a data set, as the server says; offline, the names that the cache has.

    Raises:
        InputError: no such data set; the server cannot be asked and the cache has none.
    """
    found, page = dict[str, str | None](), 1
    try:
        while True:
            words = {"Revision": revision, "Recursive": "True", "PageNumber": page, "PageSize": _PAGE}
            url = f"{_endpoint()}/api/v1/datasets/{quote(repo)}/repo/tree?{urlencode(words)}"
            entries = _entries(repo, read_whole(RemoteFile(url, _headers())))
            found |= {entry["Path"]: entry.get("Sha256") or None for entry in entries if entry.get("Type") != "tree"}
            if len(entries) < _PAGE:
                break
            page += 1
    except InputError as error:
        folder = _folder(repo, revision)
        kept = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".partial"]
        if not kept:
            raise InputError(f"{repo}: ModelScope does not list its files ({error}). If it is there under another "
                             "owner: path: ms://OWNER/NAME/FILES") from None  # fmt: skip
        return {path.relative_to(folder).as_posix(): None for path in kept}
    return {name: sha256 for name, sha256 in found.items() if _is_plain(name)}


def _entries(repo: str, answer: bytes) -> list[dict[str, str]]:
    try:
        data = json.loads(answer)["Data"]
        entries = (data["Files"] or []) if isinstance(data, dict) else data
        return [{**entry, "Path": str(entry["Path"])} for entry in entries]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"it answered {answer[:80].decode('utf-8', 'replace')!r}") from None


def _is_plain(name: str) -> bool:
    """Whether it stays inside the cache."""
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts and "\\" not in name


def remote_file(repo: str, name: str, revision: str) -> RemoteFile:
    """The file where ModelScope has it."""
    return RemoteFile(f"{_endpoint()}/datasets/{quote(repo)}/resolve/{quote(revision)}/{quote(name)}", _headers())


def fetch_file(repo: str, name: str, revision: str, sha256: str | None) -> tuple[Path, str]:
    """The file in the cache, and its sha256; fetched unless the cache has it with the `sha256` that is wanted.

    Raises:
        InputError: it cannot be fetched, or is another one; a full disk.
    """
    path = _folder(repo, revision) / name
    if path.is_file() and (found := _sha256(path)) and sha256 in (None, found):
        return path, found
    partial = path.with_name(f"{path.name}.partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with remote_file(repo, name, revision).open() as source:
            there = partial.stat().st_size if sha256 and partial.is_file() and source.seekable() else 0
            if there:
                source.seek(there)
            with partial.open("ab" if there else "wb") as file:
                while data := source.read(_CHUNK):
                    file.write(data)
        found = _sha256(partial)
        if sha256 not in (None, found):
            partial.unlink()
            raise InputError(f"{repo}: {name} came with sha256 {found}, not {sha256}; changed meanwhile or damaged on "
                             "its way: run the same command again")  # fmt: skip
        partial.replace(path)
    return path, found


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _folder(repo: str, revision: str) -> Path:
    return cache_folder() / "modelscope" / repo / revision


def _endpoint() -> str:
    return (os.environ.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn").rstrip("/")


def _headers() -> tuple[tuple[str, str], ...]:
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    return (("Authorization", f"Bearer {token}"), ("Cookie", f"m_session_id={token}")) if token else ()
