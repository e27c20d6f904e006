"""Streams, objectives and engines that look on, or that do what must not go unnoticed; for spread_training.py."""

from __future__ import annotations

import os
import signal
from typing import Any, ClassVar

from small_training import Formula
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor import DTensor

from babyllama.recipe import Recipe
from babyllama.train.engines.engines import Ddp
from babyllama.train.engines.replica import Replica
from babyllama.train.losses.objectives import NextToken
from babyllama.train.trainer import Trainer

SEEN: list[tuple[str, str]] = []  # by Spying
BUCKETS: list[int] = []  # by Counting
HELD: list[bool] = []  # by Looking


class Spying(NextToken):
    """NextToken that notes what the model computes in, and what it is."""

    def __call__(self, model: Any, batch: Any) -> Any:
        SEEN.append((str(model.hidden(batch.tokens).dtype), type(model).__name__))
        return NextToken()(model, batch)


class Looking(NextToken):
    """NextToken that notes whether this rank still has the whole first block when the forward pass is over."""

    def __call__(self, model: Any, batch: Any) -> Any:
        found = super().__call__(model, batch)
        HELD.append(not isinstance(model.layers[0].mlp.up_proj.weight, DTensor))
        return found


class Poisoned(Formula):
    """A row of step 3, which one rank alone reads, makes its batch bad."""

    def batch(self, first_row: int, count: int) -> Any:
        self.bad = first_row <= 16 * 2 + 9 < first_row + count
        return super().batch(first_row, count)


class Nan(Recipe):
    """NextToken; NaN for a bad batch."""

    plain: ClassVar[bool] = True
    recorded: ClassVar[bool] = False
    steady: ClassVar[bool] = True
    stream: Any

    def __call__(self, model: Any, batch: Any) -> Any:
        loss, sums = NextToken()(model, batch)
        return loss * (float("nan") if self.stream.bad else 1.0), sums

    def weight(self, batch: Any) -> float:
        return batch.weight


def poison(trainer: Trainer) -> Trainer:
    trainer.stream = Poisoned()
    trainer.objective = Nan(stream=trainer.stream)
    return trainer


class Killed(Formula):
    """SIGKILL at the seventh step."""

    def batch(self, first_row: int, count: int) -> Any:
        if first_row >= 16 * 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(first_row, count)


class _Drifting(Replica):
    def _synchronising(self, last: bool) -> Any:
        return self.module.no_sync()


class _Counting(Replica):
    def _prepare(self, loss: Any) -> Any:
        module = super()._prepare(loss)

        def hook(state, bucket):  # DDP would read an annotation as text
            BUCKETS.append(bucket.index())
            return allreduce_hook(state, bucket)

        module.register_comm_hook(None, hook)
        return module


class Drifting(Ddp):
    """Fault 1 as an engine: under accumulation the gradients are never exchanged."""

    def __call__(self, setting: Any) -> Any:
        return _Drifting(setting)


class Counting(Ddp):
    """DDP that notes each exchange of a bucket."""

    def __call__(self, setting: Any) -> Any:
        return _Counting(setting)
