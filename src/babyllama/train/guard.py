"""The guard: which steps are taken. A loss that is no number or that jumps must not reach the weights.

It decides on the device, so the host never waits for a step; the host reads the outcomes a few steps later. float16's
loss scale lives here too: an overflow is an outcome like the others. Not here: what then happens (trainer.py).
"""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from babyllama.errors import InputError
from babyllama.recipe import Recipe

FIRST_SCALE, CALM_STEPS = 2.0**15, 1000
LEAST_SCALE = 2.0**-24  # float16's smallest number; what overflows even so is no mere overflow
MEMORY = 0.98  # of the running mean: about fifty steps


class Guard(Recipe):
    """Against steps that would ruin the model. Each bad step is left out; `action` is what a row of them leads to.

    A step is bad when its loss or gradient is not finite, or when its loss lies `spike` standard deviations above the
    running mean of the last fifty or so.
    """

    action: Literal["skip", "rewind", "stop"] = Field(
        default="skip", description="once `patience` runs out, skip stops and rewind goes back to the last checkpoint "
        "and past those rows; stop: at the first bad step"
    )  # fmt: skip
    patience: int = Field(default=5, ge=1, description="bad steps in a row that are skipped before `action`")
    spike: float | None = Field(
        default=10.0,
        gt=0,
        description="standard deviations above the recent losses that make a step bad; null: only NaN and infinity",
    )
    settle: int = Field(default=100, ge=1, description="good steps before losses are judged")


class Outcome(NamedTuple):
    """What the host learns of one step."""

    step: int
    loss: float
    norm: float
    bad: bool  # left out, and no mere overflow
    skipped: int  # steps left out so far, overflows included
    metrics: tuple[float, ...] = ()  # what else the objective measured, in its order


class Watchman:
    """The guard at work on one device. All its numbers are device scalars, and part of the resume state."""

    def __init__(self, guard: Guard, device: torch.device, scaled: bool) -> None:
        self.guard, self.scaled = guard, scaled

        def number(value: float) -> Tensor:
            return torch.tensor(value, dtype=torch.float32, device=device)

        self.scale = number(FIRST_SCALE if scaled else 1.0)
        self.calm, self.good, self.skipped = number(0), number(0), number(0)
        self.mean, self.variance = number(0), number(0)
        self.outcomes: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def judge(self, loss: Tensor, norm: Tensor, metrics: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Whether a step may be taken, the same on every rank, and the figures for `report`.

        All of it happens on the device, in place, so that a CUDA graph can hold it.

        Args:
            loss: mean over the global batch.  norm: of the global gradient, unscaled.  metrics: (M,), to be passed on.
        """
        loss, norm = loss.detach().float(), norm.detach().float()
        finite = loss.isfinite() & norm.isfinite()
        overflow = loss.isfinite() & ~norm.isfinite() & (self.scale > LEAST_SCALE if self.scaled else False)
        ok = finite & self.bears(loss)
        self._learn(loss, ok)
        if self.scaled:
            self._rescale(overflow)
        self.skipped += (~ok).float()
        figures = torch.stack([loss, norm, (~ok & ~overflow).float(), self.skipped])
        return ok, figures if metrics is None else torch.cat([figures, metrics.float()])

    def bears(self, loss: Tensor) -> Tensor:
        """Whether a step of this mean loss may be taken, as far as the loss tells: a boolean scalar."""
        if self.guard.spike is None:
            return loss.isfinite()
        # Never less than 0.05 nats: a memorised stream has hardly any variance left.
        limit = self.mean + self.guard.spike * self.variance.sqrt().clamp(min=0.05)
        return loss.isfinite() & ~((self.good >= self.guard.settle) & (loss > limit))

    def _learn(self, loss: Tensor, ok: Tensor) -> None:
        memory = (self.good / (self.good + 1)).clamp(max=MEMORY)
        away = loss - self.mean
        self.variance.copy_(torch.where(ok, memory * (self.variance + (1 - memory) * away * away), self.variance))
        self.mean.copy_(torch.where(ok, self.mean + (1 - memory) * away, self.mean))
        self.good += ok.float()

    def _rescale(self, overflow: Tensor) -> None:
        grown = self.calm + 1 >= CALM_STEPS
        self.scale.copy_(torch.where(overflow, self.scale / 2, torch.where(grown, self.scale * 2, self.scale)))
        self.calm.copy_(torch.where(overflow | grown, 0.0, self.calm + 1))

    def report(self, step: int, figures: Tensor) -> None:
        """Send a step's figures to the host, which reads them when they have come."""
        if not figures.is_cuda:
            self.outcomes.append((step, figures, None))
            return
        host = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
        host.copy_(figures, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self.outcomes.append((step, host, done))

    def read(self, wait: bool = False) -> list[Outcome]:
        """The outcomes that have come in since the last call; with `wait`, of every step so far."""
        found = []
        while self.outcomes:
            step, figures, done = self.outcomes[0]
            if done is not None:
                if not wait and not done.query():
                    break
                done.synchronize()
            self.outcomes.popleft()
            loss, norm, bad, skipped, *metrics = figures.tolist()
            found.append(Outcome(step, loss, norm, bool(bad), int(skipped), tuple(metrics)))
        return found

    @property
    def state(self) -> dict[str, Tensor]:
        """For resume."""
        return {name: getattr(self, name) for name in ("scale", "calm", "good", "skipped", "mean", "variance")}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take the state back, from ``guard.NAME``. Outcomes that nobody read are forgotten."""
        missing = [name for name in self.state if f"guard.{name}" not in state]
        if missing:
            raise InputError(
                f"the checkpoint has no guard.{missing[0]}: it is of another version; choose another out=…"
            )
        for name in self.state:
            getattr(self, name).copy_(state[f"guard.{name}"])
        self.outcomes.clear()
