"""The decoding kernels' arithmetic where there is no GPU; on one: test_fused_decoding.py."""

from pathlib import Path

import pytest

from interpreter import interpreted, needs_interpreter

INTERPRETED = Path(__file__).with_name("interpreted_steps.py")


@pytest.mark.slow
@needs_interpreter
@pytest.mark.parametrize("part", ["dense", "draws", "packed", "reading"])
def test_they_compute_what_the_forward_path_does(part):
    done = interpreted(INTERPRETED, part)
    assert done.stdout.strip() == "as the forward path", done.stderr
