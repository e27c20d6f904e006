"""native.cpp as a library: compiled where it runs, once, by the compiler that is there.

The compiled file lies in the user's cache folder, named by everything it depends on. Where there is no compiler a note
says so. Not here: what the library is given (native.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from ctypes import c_int64, c_void_p
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("native.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-w", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math",
         "-fno-math-errno")  # fmt: skip
# The threads are PyTorch's own, whose OpenMP is already loaded; a compiler's own comes second, one thread last.
THREADS = (("-fopenmp", "-nodefaultlibs", "-lstdc++", "-lm", "-lc", "-lgcc"), ("-fopenmp",), ())
CPUS = ("-march=native",), ("-mcpu=native",), ()


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled file, made where it is not there yet; None, and a note once, where it cannot be."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    file = cache_folder() / f"native-{_fingerprint(compiler)}.so"
    reason = "no C++ compiler (c++, g++ or clang++) is installed"
    if not file.exists() and compiler:
        reason = compiled(compiler, file)
    try:
        found = ctypes.CDLL(str(file))
        found.babyllama_step.argtypes, found.babyllama_step.restype = (c_void_p, c_void_p), None
        found.babyllama_steps.argtypes, found.babyllama_steps.restype = (c_void_p,) * 3, c_int64
        return found
    except OSError as error:
        print(
            f"note: decoding on a CPU goes by PyTorch's operators, a third as fast: {reason or error}", file=sys.stderr
        )
        return None


def compiled(compiler: str, file: Path) -> str | None:
    """Write `file`, whole or not at all; why not. Several processes may do so at once."""
    last = ""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            made = Path(folder) / "native.so"
            for threads in THREADS:
                for cpu in CPUS:
                    command = [compiler, *FLAGS, *cpu, str(SOURCE), "-o", str(made), *threads]
                    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
                    if done.returncode == 0 and _loads(made):
                        made.replace(file)
                        return None
                    last = (done.stderr.strip().splitlines() or ["the compiled file does not load"])[0]
    except OSError as error:
        last = str(error)
    return f"{compiler}: {last}"


def _loads(file: Path) -> bool:
    """Whether this process can load it."""
    now = getattr(os, "RTLD_NOW", ctypes.DEFAULT_MODE)  # which Windows does anyway
    with contextlib.suppress(OSError):
        return bool(ctypes.CDLL(str(file), mode=now))
    return False


def cache_folder() -> Path:
    """Of the user: XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "babyllama"


def _fingerprint(compiler: str | None) -> str:
    """Of the source, how it is compiled, by and for what."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text("utf-8", "replace").split("\n\n")[0].splitlines() if cpu.exists() else []
    kept = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    parts = SOURCE.read_text("utf-8"), FLAGS, THREADS, CPUS, compiler, platform.platform(), torch.__version__, kept
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
