"""C++ files of this package as libraries: compiled where they run, once, by the compiler that is there.

A compiled file lies in the user's cache folder, named by everything it depends on. Not here: what the libraries
compute (infer/library.py, tokenizer/fast.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-w")
CPUS = ("-march=native",), ("-mcpu=native",), ()


def compiled(
    source: Path, ways: Sequence[Sequence[str]] = ((),), depends: object = None, gil: bool = False
) -> ctypes.CDLL:
    """`source` as a library, made where it is not there yet.

    Args:
        ways: flags after `FLAGS`, the first that compile and load are taken.
        depends: what else the compiled file depends on.
        gil: it is never called by two threads at a time.

    Raises:
        OSError: no compiler, or it does not compile or load; why, in one line.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    file = cache_folder() / f"{source.stem}-{_fingerprint(source, ways, depends, compiler)}.so"
    if not file.exists():
        if compiler is None:
            raise OSError("no C++ compiler (c++, g++ or clang++) is installed")
        _compile(compiler, source, ways, file)
    return (ctypes.PyDLL if gil else ctypes.CDLL)(str(file))


def _compile(compiler: str, source: Path, ways: Sequence[Sequence[str]], file: Path) -> None:
    """Write `file`, whole or not at all. Several processes may do so at once."""
    last = ""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / "compiled.so"
        for way in ways:
            for cpu in CPUS:
                command = [compiler, *FLAGS, *cpu, str(source), "-o", str(made), *way]
                done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
                if done.returncode == 0 and _loads(made):
                    made.replace(file)
                    return
                last = (done.stderr.strip().splitlines() or ["the compiled file does not load"])[0]
    raise OSError(f"{compiler}: {last}")


def _loads(file: Path) -> bool:
    """Whether this process can load it."""
    now = getattr(os, "RTLD_NOW", ctypes.DEFAULT_MODE)  # which Windows does anyway
    with contextlib.suppress(OSError):
        return bool(ctypes.CDLL(str(file), mode=now))
    return False


def cache_folder() -> Path:
    """Of the user: XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "babyllama"


def _fingerprint(source: Path, ways: Sequence[Sequence[str]], depends: object, compiler: str | None) -> str:
    """Of the source, how it is compiled, by and for what."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text("utf-8", "replace").split("\n\n")[0].splitlines() if cpu.exists() else []
    kept = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    parts = source.read_text("utf-8"), FLAGS, CPUS, ways, depends, compiler, platform.platform(), kept
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
