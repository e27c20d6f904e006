"""The one loop. Pretraining, SFT and whatever comes later are a stream and an objective over it.

Resume is bit for bit: batches are a pure function of the step, everything else is in the state. Not here: how a batch
or a loss is made, how a run's model and tokenizer are found (commands/train.py).
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from pydantic import Field, model_validator
from torch.nn.utils import clip_grad_norm_

from babyllama.data.batches import Batch
from babyllama.errors import InputError, Interrupted
from babyllama.model.transformer import Transformer
from babyllama.recipe import Recipe
from babyllama.run import Run
from babyllama.train.board import Board
from babyllama.train.hardware import peak_flops
from babyllama.train.objectives import NextToken
from babyllama.train.optim import Masters, Optimizer, Schedule
from babyllama.train.state import load_state, save_state
from babyllama.train.validation import LossSums


class Plan(Recipe):
    """How long and in what portions to train. Give exactly one of steps, epochs, tokens."""

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    tokens: int | None = Field(default=None, ge=1)
    context: int | None = Field(default=None, ge=2, description="tokens a row; the model's longest when absent")
    micro_batch_size: int = Field(default=32, ge=1, description="rows in one forward pass")
    accumulate: int = Field(default=1, ge=1, description="forward passes in one optimiser step")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    log_every: int = Field(default=10, ge=1, description="steps")
    validate_every: int = Field(default=250, ge=1, description="steps")
    validation_tokens: int = Field(default=65_536, ge=1, description="read at most, of each corpus")
    sample_every: int = Field(default=250, ge=1, description="steps")
    save_every: int = Field(default=250, ge=1, description="steps")
    keep: int = Field(default=2, ge=2, description="checkpoints; two, so that a damaged one has another before it")

    @model_validator(mode="after")
    def _one_length(self) -> Plan:
        if sum(x is not None for x in (self.steps, self.epochs, self.tokens)) != 1:
            raise ValueError("give exactly one of steps, epochs, tokens")
        return self

    @property
    def rows(self) -> int:
        """Rows in one optimiser step."""
        return self.micro_batch_size * self.accumulate

    def total_steps(self, rows_in_epoch: int, context: int) -> int:
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            return max(1, math.ceil(self.epochs * rows_in_epoch / self.rows))
        return max(1, math.ceil((self.tokens or 0) / (self.rows * context)))


class Rows(Protocol):
    """A stream addressed by row: row r is the same whenever and by whomever it is asked for."""

    def batch(self, first_row: int, count: int) -> Batch: ...


class Show(Protocol):
    """Where people watch: a progress bar, or plain lines."""

    def step(self, step: int, steps: int, values: dict[str, Any]) -> None: ...
    def line(self, text: str) -> None: ...


class Diverged(InputError):
    """The loss or its gradient stopped being a number."""


@dataclass
class Trainer:
    """Everything one training needs; `run()` is the loop."""

    run: Run
    model: Transformer
    stream: Rows
    objective: NextToken
    optimizer: Optimizer
    schedule: Schedule
    plan: Plan
    steps: int
    context: int
    device: torch.device
    dtype: torch.dtype
    show: Show
    validate: Callable[[Transformer], dict[str, LossSums]]
    sample: Callable[[Transformer], Iterable[tuple[str, str]]]
    compile: bool = False
    tokens_seen: int = 0
    seconds: float = 0.0
    last: dict[str, Any] = field(default_factory=dict)
    board: Board = field(init=False)
    peak: float = field(init=False)
    logged: tuple[int, float] = field(init=False)  # tokens and seconds at the last log

    def train(self) -> dict[str, Any]:
        """Train to the end, from the newest whole checkpoint if there is one; returns the last figures.

        Raises:
            Diverged: a non-finite loss; the checkpoints before it stay.
            Interrupted: after saving, on SIGINT or SIGTERM.
        """
        masters = Masters(self.model, self.dtype)
        optimizers = self.optimizer.build(masters.named)
        first = self._resume(masters, optimizers)
        self.board = Board(self.run.path, first + 1)
        self.peak = peak_flops(self.device, self.dtype)
        try:
            self._loop(first, masters, optimizers)
        finally:
            self.board.close()
        return {**self.last, "steps": self.steps, "tokens": self.tokens_seen, "seconds": round(self.seconds, 1)}

    def _loop(self, first: int, masters: Masters, optimizers: list[torch.optim.Optimizer]) -> None:
        forward = torch.compile(self.model.hidden) if self.compile else self.model.hidden
        full_rates = [[group["lr"] for group in o.param_groups] for o in optimizers]
        self.model.train()
        self.logged = self.tokens_seen, self.seconds
        with _stop_flag() as stopping:
            for step in range(first, self.steps):
                started, done = time.perf_counter(), step + 1
                factor = self.schedule(step, self.steps)
                for optimizer, rates in zip(optimizers, full_rates, strict=True):
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate * factor
                with _forward(self.model, forward):
                    loss, norm = self._update(step, masters, optimizers)
                self.seconds += time.perf_counter() - started  # validation, samples and saving are not in it
                # An infinite gradient is fp16's way to ask for a smaller scale; elsewhere it is the end.
                finite = math.isfinite(loss) and (math.isfinite(norm) or masters.scaled)
                last = done == self.steps
                if done % self.plan.log_every == 0 or last or not finite:
                    self._log(done, loss, norm, full_rates[0][0] * factor)
                if not finite:
                    raise Diverged(self._divergence(done))
                if done % self.plan.validate_every == 0 or last:
                    self._validate(done)
                if done % self.plan.sample_every == 0 or last:
                    self._sample(done)
                if done % self.plan.save_every == 0 or last or stopping():
                    self._save(done, masters, optimizers)
                if stopping() and not last:
                    raise Interrupted(f"stopped after step {done}, all saved; the same command continues from there")

    def _update(self, step: int, masters: Masters, optimizers: list[torch.optim.Optimizer]) -> tuple[float, float]:
        """One optimiser step. Sum over all micro-batches, divide once by what the whole step holds."""
        size = self.plan.micro_batch_size
        start = step * self.plan.rows
        micro = [self.stream.batch(start + i * size, size) for i in range(self.plan.accumulate)]
        total = sum(batch.weight for batch in micro)
        self.tokens_seen += sum(batch.tokens.numel() for batch in micro)
        if total == 0:
            return 0.0, 0.0
        loss_sum = torch.zeros((), device=self.device)
        for batch in micro:
            loss, _ = self.objective(self.model, batch.to(self.device))
            (loss * (masters.scale / total)).backward()
            masters.collect()
            loss_sum += loss.detach()
        norm = clip_grad_norm_(masters.owned, self.plan.clip, foreach=True)
        loss_value = float(loss_sum) / total
        if math.isfinite(loss_value) and not masters.overflowed(norm) and math.isfinite(norm):
            for optimizer in optimizers:
                optimizer.step()
            masters.publish()
        masters.zero_grad()
        return loss_value, float(norm)

    def _log(self, step: int, loss: float, norm: float, lr: float) -> None:
        tokens, seconds = self.tokens_seen - self.logged[0], self.seconds - self.logged[1]
        self.logged = self.tokens_seen, self.seconds
        rate = tokens / max(1e-9, seconds)
        mfu = rate * self.model.config.flops_per_token(self.context) / self.peak
        values = {"loss": loss, "lr": lr, "norm": norm, "tokens": self.tokens_seen, "seconds": round(self.seconds, 2),
                  "tokens_per_second": round(rate, 1), "mfu": round(mfu, 4)}  # fmt: skip
        self._record(step, "train", **values)
        self.show.step(step, self.steps, values)
        self.last |= {"train_loss": loss, "tokens_per_second": values["tokens_per_second"], "mfu": values["mfu"]}

    def _validate(self, step: int) -> None:
        sums = self.validate(self.model)
        everything = sum(sums.values(), LossSums())
        if not everything.tokens:
            return
        figures = everything.figures
        self._record(step, "validation", corpora={name: s.figures for name, s in sums.items()}, **figures)
        self.last |= {"validation_loss": figures["loss"], "bits_per_byte": figures["bits_per_byte"]}
        bits = figures["bits_per_byte"]
        shown = "" if bits is None else f", {bits:.4f} bits per byte"
        self.show.line(f"step {step}: validation loss {figures['loss']:.4f}{shown}")

    def _sample(self, step: int) -> None:
        for prompt, text in self.sample(self.model):
            self._record(step, "sample", prompt=prompt, text=text)
            self.show.line(f"step {step}: {prompt} ▸ {text}")

    def _record(self, step: int, kind: str, **values: Any) -> None:
        self.run.log(step, kind=kind, **values)
        self.board.add(step, kind, values)

    def _resume(self, masters: Masters, optimizers: list[torch.optim.Optimizer]) -> int:
        found = self.run.latest_state(self.show.line)
        if found is None:
            self.run.rewind_metrics(-1)
            return 0
        step, folder = found
        facts = load_state(folder, masters, optimizers)
        self.tokens_seen, self.seconds, self.last = facts["tokens"], facts["seconds"], facts["last"]
        self.run.drop_states(after=step)
        self.run.rewind_metrics(step)
        self.show.line(f"continuing after step {step}")
        return step

    def _save(self, step: int, masters: Masters, optimizers: list[torch.optim.Optimizer]) -> None:
        facts = {"step": step, "tokens": self.tokens_seen, "seconds": self.seconds, "last": self.last}
        self.run.save_state(step, lambda folder: save_state(folder, masters, optimizers, facts), keep=self.plan.keep)

    def _divergence(self, step: int) -> str:
        states = self.run.states()
        kept = f"the checkpoint of step {states[-1][0]} is good" if states else "there was no checkpoint yet"
        remedy = "lower optimizer.lr, lengthen schedule.warmup, or use precision=bf16 or fp32"
        return f"{self.run.path}: the loss or its gradient is not finite at step {step}; {kept}; {remedy}"


@contextmanager
def _forward(model: Transformer, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Inside, the model computes through `forward` (compiled); validation and samples, outside, stay eager."""
    model.hidden = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.hidden


@contextmanager
def _stop_flag() -> Iterator[Callable[[], bool]]:
    """While inside, the first SIGINT or SIGTERM asks the loop to save and stop; a second SIGINT stops at once."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    try:
        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: nobody can signal us
        before = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
