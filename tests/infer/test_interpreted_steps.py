"""The decoding kernels' arithmetic where there is no GPU; on one: test_fused_decoding.py."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest

INTERPRETED = Path(__file__).with_name("interpreted_steps.py")
NUMPY = tuple(map(int, numpy.__version__.split(".")[:2]))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton, which PyTorch for CPUs does not bring")
@pytest.mark.skipif(NUMPY >= (2, 4), reason="triton's interpreter needs numpy below 2.4")
@pytest.mark.parametrize("part", ["dense", "draws", "packed"])
def test_they_compute_what_the_forward_path_does(part):
    done = subprocess.run([sys.executable, str(INTERPRETED), part], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "as the forward path", done.stderr
