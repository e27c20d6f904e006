"""Trainings that SIGKILL ends; also a script, which imports once and forks each of them.

What they must come to is in test_law7_resume.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from small_training import Silent, small_trainer, warm

from babyllama.model.lora import Lora
from babyllama.train.optimizers.optim import AdamW, Muon

# name → what is trained, and the step at which another process kills it
KILLED: dict[str, tuple[dict[str, Any], int]] = {
    "adamw-3": ({"optimizer": AdamW(lr=1e-2)}, 3),
    "muon-11": ({"optimizer": Muon(rounding="fp32")}, 11),  # said: each process's stopwatch would choose its own
    "adamw-13": ({"optimizer": AdamW(lr=1e-2)}, 13),
    "lora-12": ({"adapter": Lora(rank=4)}, 12),
}
STEPS = 18


class Waiting(Silent):
    """Takes its time, and some steps after `at` waits for the end: the kill may come late, and before it nothing is
    finished."""

    def __init__(self, at: int) -> None:
        super().__init__(pause=0.03)
        self.last = at + 3

    def step(self, step: int, steps: int, values: dict[str, Any]) -> None:
        super().step(step, steps, values)
        if step == self.last:
            signal.pause()


def kill_all(folder: Path) -> None:
    """Leave in `folder` what each of KILLED had saved, its run still locked by a process that is no more."""
    done = subprocess.run([sys.executable, __file__, str(folder)], env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def _kill(out: Path, kwargs: dict[str, Any], at: int) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 1)
        os.close(writing)
        small_trainer(out, steps=STEPS, show=Waiting(at), **kwargs).train()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as shown:
        for _ in range(at):
            shown.readline()
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


if __name__ == "__main__":
    warm()
    for name, (kwargs, at) in KILLED.items():
        _kill(Path(sys.argv[1]) / name, kwargs, at)
