"""What people see off a terminal: a line for each logged step, with what is left; other ranks are silent."""

from __future__ import annotations

import pytest

from babyllama.train.watch import Watch

VALUES = {"loss": 2.34567, "lr": 0.0123, "tokens_per_second": 12345.6, "mfu": None, "seconds": 30.0}


@pytest.mark.parametrize(("mfu", "shown"), [(None, ""), (0.456, "  MFU 45.6%")])
def test_a_step_is_one_line_with_the_time_left(capsys, mfu, shown):
    with Watch(steps=40) as watch:
        watch.step(10, 40, {**VALUES, "mfu": mfu})
        watch.line("[bold] is no markup " + "long " * 40)
    step, line = capsys.readouterr().out.splitlines()
    assert step == f"step 10/40  loss 2.3457  lr 1.23e-02  12,346 tok/s{shown}  1 min 30 s left"
    assert line.startswith("[bold] is no markup long") and len(line) > 200


def test_other_ranks_are_silent(capsys):
    with Watch(steps=2, shown=False) as watch:
        watch.step(1, 2, VALUES)
        watch.line("said once")
    assert capsys.readouterr().out == ""
