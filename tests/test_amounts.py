"""Amounts in words: plurals, large numbers, sizes, durations at the edges of their units."""

from __future__ import annotations

import pytest

from babyllama.amounts import amount, duration, short, size


def test_plurals():
    assert [amount(n, "row") for n in (0, 1, 2, 4096)] == ["0 rows", "1 row", "2 rows", "4,096 rows"]
    assert [amount(n, "batch", "batches") for n in (1, 2)] == ["1 batch", "2 batches"]


def test_large_numbers_and_sizes():
    numbers = (7, 9100, 30462, 999_999, 2_940_000, 1.5e9)
    assert [short(n) for n in numbers] == ["7", "9,100", "30.5 k", "1 M", "2.94 M", "1.5 B"]
    assert [size(n) for n in (512, 2048, 11.2 * 2**20, 3 * 2**30)] == ["512 B", "2.0 KiB", "11.2 MiB", "3.0 GiB"]


@pytest.mark.parametrize(("seconds", "said"), [
    (0, "0.0 s"), (0.4, "0.4 s"), (9.96, "10 s"), (42.4, "42 s"), (59.7, "1 min"), (150, "2 min 30 s"),
    (3599.9, "1 h"), (7200, "2 h"), (7500, "2 h 5 min"), (9000, "2 h 30 min"), (2 * 86400, "2 d"),
    (3 * 86400 + 4 * 3600, "3 d 4 h"),
])  # fmt: skip
def test_durations(seconds, said):
    assert duration(seconds) == said
