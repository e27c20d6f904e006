"""The kernels' arithmetic where there is no GPU; on one: tests/test_gpu.py."""

from pathlib import Path

from interpreter import interpreted, needs_interpreter

INTERPRETED = Path(__file__).with_name("interpreted_since.py")


@needs_interpreter
def test_they_attend_as_a_mask_of_all_pairs_says():
    done = interpreted(INTERPRETED)
    assert done.stdout.strip() == "all as the mask of all pairs", done.stderr
