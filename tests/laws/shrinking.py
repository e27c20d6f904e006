"""One training of which a rank is killed, and which goes on in fewer and again in more processes; ranks.py starts it.

What it must come to is in test_law7_world.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from small_training import Formula, StopAt
from spread_training import keep, made, settings

import babyllama.train.meter
from babyllama.errors import Interrupted
from babyllama.train.engines.world import World

SHRUNK: dict[str, Any] = settings("muon", 4, steps=12, save_every=3)
# The step that the first four do not finish. Step 7 was taken by all after the save of step 6 began, and that one waits
# for the checkpoint of step 3, which is therefore whole.
KILLED = 8
# (how many processes, which step is the last that they show before they are asked to stop; 0: none)
STAGES = {"ddp": ((4, 0), (2, 8), (1, 0)), "fsdp": ((4, 0), (2, 8), (1, 10), (4, 0))}


class _KillingOne(Formula):
    """SIGKILL for the third rank as it reads its rows of the step that must not be finished."""

    def batch(self, first_row: int, count: int) -> Any:
        if first_row // 16 == KILLED - 1 and os.environ["RANK"] == "2":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(first_row, count)


def shrink(folder: Path, fork_ranks: Callable[[Callable[[], None], int], None]) -> None:
    """Each engine's training in the folder ``shrinking-ENGINE``, stage by stage."""
    for engine, stages in STAGES.items():
        for stage, (size, at) in enumerate(stages):
            fork_ranks(partial(_stage, folder, engine, stage, at), size)


def _stage(folder: Path, engine: str, stage: int, at: int) -> None:
    babyllama.train.meter.peak_flops = lambda *_: 1e12  # nobody asks how fast this machine is
    world, name = World.from_environment(), f"shrinking-{engine}"
    world.join(torch.device("cpu"))
    trainer = made(folder, name, world, engine, StopAt(at), **SHRUNK)
    if stage == 0:
        trainer.stream = _KillingOne()
    try:
        trainer.train()
        keep(trainer, folder, name)
    except Interrupted:
        pass
    if world.first:
        said: Any = trainer.show
        (folder / f"{name}-{stage}.txt").write_text("\n".join(said.lines))
