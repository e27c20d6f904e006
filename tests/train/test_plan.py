"""What is due after a step, and which rows a process reads. Lengths and shares are in test_trainer.py."""

from itertools import chain

import pytest
from small_training import Formula, small_trainer

from babyllama.data.streams.batches import Batch
from babyllama.errors import InputError
from babyllama.train.engines.world import World
from babyllama.train.plan import Due, Plan
from babyllama.train.progress import Progress
from babyllama.train.source import source


def test_little_data_in_large_steps_is_told():
    """That of 44 votes two steps remained nobody was told."""
    plan = Plan(epochs=3, micro_batch_size=8, accumulate=4)
    said = plan.too_few(16, 64)
    assert (
        said
        and said.startswith("2 steps will hardly")
        and "plan.micro_batch_size=1 plan.accumulate=1 it makes 48" in said
    )
    assert plan.too_few(3200, 64) is None and Plan(steps=2).too_few(16, 64) is None
    assert Plan(epochs=3, micro_batch_size=1, accumulate=1).too_few(1, 64) is None


def test_intervals_are_counted_from_the_first_step_and_the_last_has_all():
    plan = Plan(steps=7, log_every=2, validate_every=3, sample_every=4, save_every=6)
    assert [plan.due(step, step == 7) for step in (1, 2, 3, 4, 6, 7)] == [
        Due(False, False, False, False), Due(True, False, False, False), Due(False, True, False, False),
        Due(True, False, True, False), Due(True, True, False, True), Due(True, True, True, True)]  # fmt: skip


class Asked(Formula):
    """Notes the rows that it is asked for."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def batch(self, first_row: int, count: int) -> Batch:
        self.rows += range(first_row, first_row + count)
        return super().batch(first_row, count)


@pytest.mark.parametrize("micro,accumulate,size", [(6, 3, 2), (4, 4, 1), (3, 8, 3), (16, 1, 4), (5, 7, 5)])
def test_every_row_of_a_step_is_read_by_one_process_once(tmp_path, micro, accumulate, size):
    """Also where a process's share is no multiple of micro_batch_size, and after rows that a rewind passed over."""
    read = []
    for rank in range(size):
        trainer = small_trainer(tmp_path / f"{rank}", stream=Asked, micro_batch_size=micro, accumulate=accumulate)
        trainer.world, trainer.source = World(rank, size), source(trainer.stream)
        trainer.progress, trainer.worker = Progress(rows_skipped=2 * micro * accumulate), None
        trainer._micro_batches(3, trainer.plan.shares(size))
        read.append(trainer.stream.rows)
    rows = micro * accumulate
    assert list(chain(*read)) == list(range(5 * rows, 6 * rows)) and len({len(r) for r in read}) == 1


def test_a_step_that_no_memory_holds_is_refused_before_it_begins():
    have = 24 << 30
    for keys, said in (({"micro_batch_size": 10**8}, "micro_batch_size: 100000000 rows × 1 .*halve it"),
                       ({"accumulate": 10**10}, "accumulate: 32 rows × 10000000000 .*take fewer")):  # fmt: skip
        with pytest.raises(InputError, match=said) as error:
            Plan(steps=1, **keys).check_memory(1, 256, 192, have)
        assert "this device has 24.0 GiB" in str(error.value) and "\n" not in str(error.value)
    Plan(steps=1, micro_batch_size=10**8).check_memory(10**4, 256, 192, have)  # shared by many
    Plan(steps=1, micro_batch_size=512, accumulate=64).check_memory(1, 2048, 4096, have)
