"""Muon's kernels against their PyTorch twins, where there is no GPU; on one: tests/test_gpu.py."""

from pathlib import Path

from interpreter import interpreted, needs_interpreter

INTERPRETED = Path(__file__).with_name("interpreted_muon.py")


@needs_interpreter
def test_they_compute_what_pytorch_does():
    done = interpreted(INTERPRETED)
    assert done.stdout.strip() == "all as in PyTorch", done.stderr
