"""Files of the Hugging Face hub: the one place that downloads from it, through its own client and cache.

``HF_ENDPOINT`` (a mirror), ``HF_HOME`` and ``HF_TOKEN`` hold as everywhere. A file is named by its revision and its
sha256 where they are known here or given by the user; large files carry their sha256 in the cache in any case, and it
is checked at each use. Not here: what the files hold.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from babyllama.errors import InputError, needs_extra


@dataclass(frozen=True)
class HubFile:
    """One file of a repository. Without `revision` the newest is taken; `sha256` refuses any other content."""

    repo: str
    name: str
    kind: str = "dataset"  # or "model"
    revision: str | None = None
    sha256: str | None = None


class Fetched(NamedTuple):
    """A file in the cache, with what names it: the commit it came from (where the cache tells) and its content."""

    path: Path
    revision: str | None
    sha256: str


def fetch(file: HubFile, instead: str) -> Fetched:
    """The file, from the cache or the hub.

    Args:
        instead: what to do when it cannot be fetched, for the message.

    Raises:
        InputError: huggingface_hub is missing; offline, refused or not found; other content than was asked for.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(f"{needs_extra('huggingface_hub', 'data')}; or {instead}") from None
    try:
        path = Path(huggingface_hub.hf_hub_download(file.repo, file.name, repo_type=file.kind, revision=file.revision))
    except Exception as error:  # the package and its HTTP client raise many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0][:200]
        endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        raise InputError(
            f"{file.repo}: {file.name} cannot be fetched from {endpoint} ({reason}); check the network, "
            f"set HF_ENDPOINT to a mirror, or {instead}"
        ) from None
    return _checked(file, path)


def _checked(file: HubFile, path: Path) -> Fetched:
    with path.open("rb") as handle:
        sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
    if file.sha256 is not None and sha256 != file.sha256:
        raise InputError(f"{path}: sha256 is {sha256}, not {file.sha256}; another version, or damaged: remove it")
    stored = path.resolve().name  # the cache names a large file by its sha256
    if re.fullmatch("[0-9a-f]{64}", stored) and stored != sha256:
        raise InputError(f"{path}: damaged (its sha256 is {sha256}); remove it, and it is fetched again")
    commit = re.search(r"/snapshots/([0-9a-f]{40})/", path.as_posix())
    return Fetched(path, commit[1] if commit else file.revision, sha256)
