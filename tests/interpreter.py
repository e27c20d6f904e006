"""Kernels by Triton's interpreter, in a process of its own, where there is no GPU."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest


def numbers(package: str) -> tuple[int, int]:
    """Its version's first two numbers; (0, 0) where it is not installed."""
    try:
        major, minor = re.findall(r"\d+", version(package))[:2]
    except PackageNotFoundError:
        return 0, 0
    return int(major), int(minor)


def missing(triton: tuple[int, int], numpy: tuple[int, int]) -> str:
    """What keeps the interpreter from running; empty: nothing."""
    if triton == (0, 0):
        return "needs triton, which PyTorch for CPUs does not bring: pip install -e '.[kernels]'"
    return "triton's interpreter needs numpy below 2.4, or triton 3.7" if triton < (3, 7) and numpy >= (2, 4) else ""


def needs_interpreter(test):
    """Leaves a test out where there is none."""
    why = missing(numbers("triton"), numbers("numpy"))
    return pytest.mark.skipif(bool(why), reason=why)(test)


def interpreted(script: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """What a script that turns the interpreter on says."""
    return subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, timeout=300)
