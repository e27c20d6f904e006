"""Files of the Hugging Face hub: the one place that asks it, through its own client and cache; or of ModelScope.

``HF_ENDPOINT`` (a mirror), ``HF_HOME`` and ``HF_TOKEN`` hold as everywhere. With ``BABYLLAMA_HUB=modelscope`` corpora
known by name are asked of ModelScope, as the same data sets; ``ms://`` names any there (modelscope.py). A file is
named by its revision and its sha256 where they are known here or given by the user; large files carry their sha256 in
the cache in any case, and it is checked at each use. Not here: what the files hold.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from babyllama.data.sources import modelscope
from babyllama.data.sources.remote import RemoteFile, reach
from babyllama.errors import InputError, needs_extra

SCHEMES = {"hf://": "huggingface", "ms://": "modelscope"}  # of a path → `HubFile.hub`


@dataclass(frozen=True)
class HubFile:
    """One file of a repository. Without `revision` the newest is taken; `sha256` refuses any other content.

    `hub` is "huggingface" or "modelscope".
    """

    repo: str
    name: str
    kind: str = "dataset"  # or "model"
    revision: str | None = None
    sha256: str | None = None
    hub: str = "huggingface"

    @property
    def on_modelscope(self) -> bool:
        return self.hub == "modelscope"


class Fetched(NamedTuple):
    """A file in the cache, with what names it: the commit it came from (where the cache tells) and its content."""

    path: Path
    revision: str | None
    sha256: str


def usual_hub() -> str:
    """Where corpora known by name are asked for. Raises InputError: the environment names no hub."""
    chosen = os.environ.get("BABYLLAMA_HUB") or "huggingface"
    if chosen not in SCHEMES.values():
        raise InputError(f"BABYLLAMA_HUB is {chosen!r}; known are {' and '.join(SCHEMES.values())}")
    return chosen


def hub_file(path: str) -> HubFile | None:
    """What hf://OWNER/NAME/FILES names; None if the path has another form."""
    found = re.fullmatch(r"(\w+://)([^/]+/[^/]+)/(.+)", path)
    return HubFile(found[2], found[3], hub=SCHEMES[found[1]]) if found and found[1] in SCHEMES else None


def expand(file: HubFile, pin: bool = False) -> list[HubFile]:
    """The files whose names a pattern (``data/*.parquet``) fits, in the order of their names, all of one commit; a name
    without a pattern is itself, of whatever commit is the newest if it is not to be pinned. Offline, those that the
    cache has.

    Raises:
        InputError: huggingface_hub is missing; the hub cannot be asked and the cache has none; no name fits.
    """
    if file.on_modelscope:
        revision = file.revision or modelscope.NEWEST
        found = modelscope.list_files(file.repo, revision)
        return [replace(file, name=name, revision=revision, sha256=file.sha256 or found[name])
                for name in _fitting(file, found)]  # fmt: skip
    if not pin and not any(sign in file.name for sign in "*?["):
        return [file]
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(needs_extra("huggingface_hub", "data")) from None
    api = huggingface_hub.HfApi()
    try:
        revision = api.repo_info(file.repo, repo_type=file.kind, revision=file.revision).sha
        names = api.list_repo_files(file.repo, repo_type=file.kind, revision=revision)
    except Exception as error:
        names, revision = _kept(file)
        if not names:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise InputError(f"{file.repo}: its files cannot be listed ({reason}); check the network, set HF_ENDPOINT "
                             "to a mirror, or download them by hand and give their path") from None  # fmt: skip
    return [replace(file, name=name, revision=revision) for name in _fitting(file, names)]


def _fitting(file: HubFile, names: Iterable[str]) -> list[str]:
    fitting = sorted(name for name in names if fnmatch.fnmatchcase(name, file.name))
    if not fitting:
        raise InputError(f"{file.repo}: no file fits {file.name}; it has {', '.join(sorted(names)[:5])} …")
    return fitting


def _kept(file: HubFile) -> tuple[list[str], str | None]:
    """Names of the files in the cache, and their commit."""
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(file.repo, repo_type=file.kind, revision=file.revision,
                                                        local_files_only=True))  # fmt: skip
    except Exception:
        return [], None
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()], folder.name


def fetch(file: HubFile, instead: str) -> Fetched:
    """The file, from the cache or the hub.

    Args:
        instead: what to do when it cannot be fetched, for the message.

    Raises:
        InputError: huggingface_hub is missing; offline, refused or not found; other content than was asked for.
    """
    if file.on_modelscope:
        revision = file.revision or modelscope.NEWEST
        try:
            path, sha256 = modelscope.fetch_file(file.repo, file.name, revision, file.sha256)
        except InputError as error:
            raise InputError(f"{error}; or {instead}") from None
        return Fetched(path, revision, sha256)
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(f"{needs_extra('huggingface_hub', 'data')}; or {instead}") from None
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    named = {"repo_type": file.kind, "revision": file.revision}
    try:
        kept = huggingface_hub.try_to_load_from_cache(file.repo, file.name, **named)
        if not isinstance(kept, str) and not huggingface_hub.constants.HF_HUB_OFFLINE:
            reach(endpoint)  # the client would knock six times: half a minute, or minutes where packets are dropped
        path = Path(huggingface_hub.hf_hub_download(file.repo, file.name, **named))
    except Exception as error:  # the package and its HTTP client raise many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0][:200]
        raise InputError(
            f"{file.repo}: {file.name} cannot be fetched from {endpoint} ({reason}); check the network, "
            f"set HF_ENDPOINT to a mirror, or {instead}"
        ) from None
    return _checked(file, path)


def streamed(file: HubFile) -> RemoteFile:
    """The file where the hub has it, to be read without being kept; of the newest commit unless it is pinned, and
    with nothing to check its content by. Raises InputError: huggingface_hub is missing, the hub cannot be asked."""
    if file.on_modelscope:
        return modelscope.remote_file(file.repo, file.name, file.revision or modelscope.NEWEST)
    try:
        import huggingface_hub
        from huggingface_hub.utils import build_hf_headers
    except ImportError:
        raise needs_extra("huggingface_hub", "data") from None
    url = huggingface_hub.hf_hub_url(file.repo, file.name, repo_type=file.kind, revision=file.revision)
    return RemoteFile(url, tuple(build_hf_headers().items()))


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
