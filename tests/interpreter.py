"""Kernels by Triton's interpreter, in a process of its own, where there is no GPU."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest

NUMPY = tuple(map(int, numpy.__version__.split(".")[:2]))


def needs_interpreter(test):
    """Leaves a test out where there is none."""
    test = pytest.mark.skipif(NUMPY >= (2, 4), reason="triton's interpreter needs numpy below 2.4")(test)
    absent = find_spec("triton") is None
    return pytest.mark.skipif(absent, reason="needs triton, which PyTorch for CPUs does not bring")(test)


def interpreted(script: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """What a script that turns the interpreter on says."""
    return subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, timeout=300)
