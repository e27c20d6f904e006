"""Muon's kernels against their PyTorch twins, where there is no GPU; on one: tests/test_gpu.py."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest

INTERPRETED = Path(__file__).with_name("interpreted_muon.py")
NUMPY = tuple(map(int, numpy.__version__.split(".")[:2]))


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton, which PyTorch for CPUs does not bring")
@pytest.mark.skipif(NUMPY >= (2, 4), reason="triton's interpreter needs numpy below 2.4")
def test_they_compute_what_pytorch_does():
    done = subprocess.run([sys.executable, str(INTERPRETED)], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "all as in PyTorch", done.stderr
