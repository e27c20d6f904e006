"""The packed kernels' arithmetic where there is no GPU; on one: tests/test_gpu.py."""

from pathlib import Path

from interpreter import interpreted, needs_interpreter

INTERPRETED = Path(__file__).with_name("interpreted.py")


@needs_interpreter
def test_they_multiply_by_the_dense_weight():
    done = interpreted(INTERPRETED)
    assert done.stdout.strip() == "all as the dense weight", done.stderr
