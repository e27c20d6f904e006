"""One training of which a rank is killed, and which goes on in fewer and again in more processes, also by another
engine; where four end well, they train the rest that takes four. ranks.py starts it.

What it must come to is in test_law6_world.py and test_law7_world.py.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from small_training import Formula, StopAt
from spread_training import MOE, keep, made, resumed, settings, trades, train

import babyllama.train.meter
from babyllama.errors import Interrupted
from babyllama.train.averaging import TailAverage
from babyllama.train.checkpoints import Drifted
from babyllama.train.engines.world import World
from babyllama.train.trainer import Trainer

SHRUNK: dict[str, Any] = settings("muon", 4, steps=12, save_every=3)
# The step that the first four do not finish. Step 7 was taken by all after the save of step 6 began, and that one waits
# for the checkpoint of step 3, which is therefore whole.
KILLED = 8
# (engine, how many processes, which step is the last that they show before they are asked to stop; 0: none)
STAGES = {"ddp": (("ddp", 4, 0), ("ddp_context", 2, 8), ("ddp", 1, 0)),
          "fsdp": (("hsdp", 4, 0), ("fsdp", 2, 8), ("fsdp", 1, 10), ("hsdp_context", 4, 0))}  # fmt: skip
FOUR: dict[str, tuple[str, dict[str, Any]]] = {
    "hsdp-adamw-4": ("hsdp", settings("adamw", 4)),
    "hsdp-muon-moe": ("hsdp", settings("muon", 4, **MOE)),
}
FOUR_STOPPED = {"hsdp_context-muon": settings("muon", 4, average=TailAverage(share=0.75, tau=4))}


class _KillingOne(Formula):
    """SIGKILL for the third rank as it reads its rows of the step that must not be finished."""

    def batch(self, first_row: int, count: int) -> Any:
        if first_row // 16 == KILLED - 1 and os.environ["RANK"] == "2":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(first_row, count)


class _NudgingOne(Formula):
    """The last rank's rows of the embedding move by themselves as it reads its rows of the second step."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def batch(self, first_row: int, count: int) -> Any:
        if first_row // 16 == 1 and os.environ["RANK"] == "3":
            weight: Any = self.trainer.model.embed_tokens.weight.data
            weight.to_local().add_(0.1)
        return super().batch(first_row, count)


def shrink(folder: Path, fork_ranks: Callable[[Callable[[], None], int], None]) -> None:
    """Each engine's training in the folder ``shrinking-ENGINE``, stage by stage."""
    for name, stages in STAGES.items():
        for stage, (engine, size, at) in enumerate(stages):
            fork_ranks(partial(_stage, folder, f"shrinking-{name}", engine, stage, at), size)


def _stage(folder: Path, name: str, engine: str, stage: int, at: int) -> None:
    babyllama.train.meter.peak_flops = lambda *_: 1e12  # nobody asks how fast this machine is
    world = World.from_environment()
    world.join(torch.device("cpu"))
    trainer = made(folder, name, world, engine, StopAt(at), **SHRUNK)
    if stage == 0:
        trainer.stream = _KillingOne()
    try:
        trainer.train()
        keep(trainer, folder, name)
        if world.size == 4:
            _four(folder, world)
    except Interrupted:
        pass
    if world.first:
        said: Any = trainer.show
        (folder / f"{name}-{stage}.txt").write_text("\n".join(said.lines))


def _four(folder: Path, world: World) -> None:
    trades(folder, world)
    for name, (engine, kwargs) in FOUR.items():
        train(folder, name, world, engine, **kwargs)
    for name, kwargs in FOUR_STOPPED.items():
        engine = name.split("-")[0]
        train(folder, name, world, engine, **kwargs)
        resumed(folder, name, world, engine, **kwargs)
    trainer = made(folder, "drift-hsdp", world, "hsdp", **{**settings("adamw", 4), "save_every": 2})
    trainer.stream = _NudgingOne(trainer)
    try:
        trainer.train()
        said = ""
    except Drifted as error:
        said = str(error)
    found = world.gather(said)
    if world.first:
        (folder / "drift-hsdp.json").write_text(json.dumps(found))
