"""Threads of a step: by a clock that is told, the fastest number is found, and found again when that changes."""

from __future__ import annotations

import pytest
import torch

from babyllama.infer.threads import Threads, count, wide


def taken(threads: Threads, seconds: dict[int, float], steps: int) -> list[int]:
    """Steps that take as long as their number of threads says; the numbers."""
    used = []
    for _ in range(steps):
        used.append(threads._other if threads._trying else threads.now)
        threads.note(seconds[used[-1]])
    return used


@pytest.mark.parametrize("best", [1, 2, 4, 8])
def test_the_fastest_number_is_found(best):
    threads = Threads(8)
    times = {count: 0.01 * 2 ** abs(count.bit_length() - best.bit_length()) for count in (1, 2, 4, 8)}
    taken(threads, times, 300)
    assert threads.now == best
    used = taken(threads, times, 50_000)  # 500 seconds
    assert used.count(best) > 0.99 * len(used)  # trials have become rare
    changed = dict(zip(times, reversed(times.values()), strict=True))  # another program has come, or has gone
    taken(threads, changed, 20_000)
    assert threads.now == min(changed, key=changed.__getitem__)


def test_a_hopeless_number_is_tried_for_one_step():
    threads = Threads(2)
    threads.now = 1
    assert taken(threads, {1: 0.01, 2: 1.0}, 3000).count(2) <= 10


def test_a_step_has_its_number_and_pytorch_one_but_for_whole_passes():
    before = torch.get_num_threads()
    assert count() == before
    threads = Threads(4)
    threads.now = 2
    with threads:
        assert (count(), torch.get_num_threads()) == (2, 1)
        with wide():
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 1
    with pytest.raises(KeyboardInterrupt), threads, wide():
        raise KeyboardInterrupt
    assert count() == torch.get_num_threads() == before
