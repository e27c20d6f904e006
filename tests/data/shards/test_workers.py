"""Order, faults and the end of worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import double
from small_data import alive, until

from babyllama.data.shards.workers import spread
from babyllama.errors import InputError


def known(number: int) -> int | None:
    return -number if number % 5 == 1 else None


def test_in_order_and_known_ones_are_not_done_again() -> None:
    assert list(spread(double, range(30), known, 3)) == [-n if n % 5 == 1 else 2 * n for n in range(30)]
    assert list(spread(double, iter(()), known, 2)) == []


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [(40, InputError, "bad 40"), (50, RuntimeError, "KeyError: 50"), (60, InputError, "a worker process was killed")],
)
def test_faults(bad: int, kind: type[Exception], message: str) -> None:
    found = []
    with pytest.raises(kind, match=message):
        for result in spread(double, range(bad - 2, bad + 3), lambda _: None, 2):
            found.append(result)  # noqa: PERF402  what came before the fault counts
    assert found == ([2 * bad - 4, 2 * bad - 2] if bad != 60 else found)


PROGRAM = """
import time
from babyllama.data.shards.workers import spread
if __name__ == "__main__":
    blobs = (b"x" * (8 << 20) for _ in range(10_000))
    for _ in spread(len, blobs, lambda _: None, 2):
        print("working", flush=True)
"""


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGINT, signal.SIGINT], [signal.SIGKILL]])
def test_nothing_is_left_behind(tmp_path: Path, signals: list[signal.Signals]) -> None:
    """Ctrl-C reaches the whole group, as from a terminal; a kill reaches the main process only."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == b"working\n"
    for number in signals:
        (process.send_signal if number == signal.SIGKILL else lambda s: os.killpg(process.pid, s))(number)
    process.stdout.close()
    process.wait(20)
    until(lambda: not alive(process.pid), 10, "a worker is left")
