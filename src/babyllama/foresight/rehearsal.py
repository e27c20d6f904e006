"""A training's first steps once more, and its raw batches.

Everything is measured beside the training, by plain means: a loss and a gradient by torch's own cross-entropy on full
float32 logits, the weights before and after a step, the targets against the tokens. Not here: what it means
(doctor.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from babyllama.data.streams.batches import IGNORE, Batch, Rows
from babyllama.errors import InputError, Interrupted
from babyllama.foresight.evidence import Gain, Reference, Rehearsal, Tally
from babyllama.hardware import finest
from babyllama.run import Run
from babyllama.train.optimizers.optim import AdamPart, Cosine
from babyllama.train.trainer import Diverged, Trainer

NEVER = 1 << 40  # steps
SMALL = 0.05  # of the first loss: a gain below it is looked at more closely
TRIAL = 20  # steps
LOGITS = 1 << 28  # float32 logits held at a time by the reference, 1 GiB


# ── batches ────────────────────────────────────────────────────────────────────────────────────────────────────────
def tally(batch: Batch, eos: int | None) -> Tally:
    """Count one batch."""
    tokens, targets = batch.tokens, batch.targets  # (B, T)
    kept = targets != IGNORE
    segments = torch.zeros_like(tokens) if batch.segments is None else batch.segments
    judged = kept[:, :-2] & (segments[:, :-2] == segments[:, 2:])
    alike = [judged & (targets[:, :-2] == other) for other in (tokens[:, 1:-1], tokens[:, :-2], tokens[:, 2:])]
    ends = _ends(batch, eos)  # (B, T − 1)
    place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    last = torch.where(kept, place, -1).cummax(1).values  # the newest target up to each place
    first = torch.where(pad(ends, (1, 0)), place, 0).cummax(1).values  # of the document
    taught = ends & (last >= first)[:, :-1]
    said = targets.gather(1, last.clamp(min=0))[:, :-1]
    ended = taught & (said == (IGNORE if eos is None else eos))
    if batch.segments is None:  # there the end token is known to come next, so it must be the target right here
        taught, ended = ends, ends & (targets[:, :-1] == eos)
    counts = (kept, judged, *alike, ends, ends & ~taught, ended)
    blank = int((~kept.any(1)).sum())
    return Tally(tokens.numel(), *(int(count.sum()) for count in counts), rows=len(tokens), blank=blank)


def _ends(batch: Batch, eos: int | None) -> Tensor:
    """(B, T − 1): a document's last place, if the row goes on behind it."""
    if batch.segments is not None:
        return batch.segments[:, :-1] != batch.segments[:, 1:]
    if eos is None:
        return torch.zeros_like(batch.tokens[:, 1:], dtype=torch.bool)
    return (batch.tokens[:, 1:] == eos) & (batch.tokens[:, :-1] != eos)  # not the padding, all of it end tokens


# ── the first steps ────────────────────────────────────────────────────────────────────────────────────────────────
class _Enough(Exception):
    """The rehearsal is over."""


class _Counted:
    """A stream that counts what it hands out, and ends the rehearsal at row `stop`."""

    def __init__(self, inner: Rows, stop: int, eos: int | None) -> None:
        self.inner, self.stop, self.eos, self.tally = inner, stop, eos, Tally()

    def batch(self, first_row: int, count: int) -> Batch:
        if first_row >= self.stop:
            raise _Enough
        batch = self.inner.batch(first_row, count)
        self.tally += tally(batch, self.eos)
        return batch


class _Moves:
    """Shows nothing, but looks at the weights after each step."""

    def __init__(self, trainer: Trainer, adam: AdamPart, tell: Callable[[int], None]) -> None:
        self.trainer, self.adam, self.tell = trainer, adam, tell
        self.before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        self.start = {name: p.to("cpu", copy=True) for name, p in self.before.items()}
        self.moved: float | None = None
        self.ratios: list[float] = []

    def step(self, step: int, steps: int, values: dict[str, Any]) -> None:
        self.tell(step)
        ratios, largest = [], 0.0
        for name, parameter in self.trainer.model.named_parameters():
            if name not in self.before:
                continue
            change = parameter.detach() - self.before[name]
            if parameter.ndim >= 2:
                ratios.append(change.norm() / self.before[name].norm().clamp(min=1e-12))
            if self.moved is None and self.adam.owns(name, parameter):
                largest = max(largest, change.abs().max().item())
            self.before[name].copy_(parameter.detach())
        if largest:
            self.moved = largest / (self.adam.lr * self.trainer.schedule(step - 1, self.trainer.steps))
        self.ratios.append(torch.stack(ratios).median().item() if ratios else 0.0)

    def line(self, text: str) -> None:
        pass

    def still(self) -> tuple[str, ...]:
        """What learns and has not changed by one bit; of LISA's sleeping blocks nothing is expected."""
        if self.trainer.lisa is not None:
            return ()
        return tuple(name for name, p in self.start.items() if torch.equal(self.before[name].cpu(), p))

    def growth(self) -> float:
        """The median matrix's norm now, as a share of that at the start; of matrices that were not zero."""
        shares = [(self.before[name].norm().cpu() / norm).item() for name, p in self.start.items()
                  if p.ndim >= 2 and (norm := p.norm()) > 0]  # fmt: skip
        return median(shares) if shares else 1.0

    def put_back(self) -> None:
        """The weights as they were before the first step."""
        with torch.no_grad():
            for name, parameter in self.trainer.model.named_parameters():
                if name in self.start:
                    parameter.copy_(self.start[name])


def rehearse(trainer: Trainer, steps: int, eos: int | None = None, tell: Callable[[int], None] = lambda _: None,
             everything: bool = False) -> Rehearsal:  # fmt: skip
    """Take the first `steps` of a training that has not begun, eagerly and in one process; its run stays as it is.

    Where they gain hardly anything, some are taken again at the optimiser's default rates, for comparison.

    Args:
        tell: is told each step that is done.
        everything: all parameters ought to learn; else those that want a gradient.

    Raises:
        InputError: the loss is no number before the first step.
    """
    adam, rows = trainer.optimizer.adam, trainer.plan.rows
    first = [trainer.stream.batch(row, 1) for row in range(rows)]
    frozen = [name for name, p in trainer.model.named_parameters() if not p.requires_grad] if everything else []
    reference = refer(trainer, first, adam)
    moves, counted = _Moves(trainer, adam, tell), _Counted(trainer.stream, steps * rows, eos)
    lines, diverged = _take(trainer, moves, counted)
    taken, gain, trial = len(moves.ratios), None, None
    found = (moves.moved, tuple(moves.ratios), moves.growth(), (*frozen, *moves.still()))
    if reference is not None and taken and not diverged:
        path = sum(trainer.schedule(step, trainer.steps) for step in range(taken))
        gain = Gain(reference.loss, _loss(trainer, first), taken, path)
        if gain.nats < SMALL * reference.loss:
            moves.put_back()
            trial = _trial(trainer, first, reference.loss, min(steps, TRIAL))
    moved, ratios, growth, still = found
    return Rehearsal(lines, counted.tally, reference, moved, ratios, diverged, gain, trial, growth, still)


def _take(trainer: Trainer, show: Any, stream: Rows) -> tuple[tuple[dict[str, Any], ...], str]:
    """Steps until the stream ends: (metrics, how the trainer gave up)."""
    plan = trainer.plan.model_copy(update={"log_every": 1, "validate_every": NEVER, "sample_every": NEVER,
                                           "save_every": NEVER, "keep_best": False})  # fmt: skip
    diverged = ""
    with TemporaryDirectory(prefix="babyllama-") as folder:
        run = Run(Path(folder))
        try:
            replace(trainer, run=run, stream=stream, plan=plan, show=show, validate=lambda _: {},
                    sample=lambda _: (), export=None, compile=False).train()  # fmt: skip
        except _Enough:
            pass
        except Diverged as error:
            diverged = str(error).removeprefix(f"{run.path}: ")
        except Interrupted:
            raise Interrupted("interrupted; nothing was kept") from None
        return tuple(run.metrics()), diverged


def _trial(trainer: Trainer, first: Sequence[Batch], before: float, steps: int) -> Gain:
    """The same steps at the optimiser's default rates, without warm-up, clipped at 1."""
    plan = trainer.plan.model_copy(update={"clip": 1.0})
    other = replace(trainer, optimizer=trainer.optimizer.usual(), schedule=Cosine(warmup=0.0, final=1), plan=plan)
    moves = _Moves(other, other.optimizer.adam, lambda _: None)
    _take(other, moves, _Counted(trainer.stream, steps * plan.rows, None))
    return Gain(before, _loss(trainer, first), len(moves.ratios), len(moves.ratios))


@torch.no_grad()
def _loss(trainer: Trainer, rows: Sequence[Batch]) -> float:
    """Of the model as it is, nats a target."""
    trainer.model.train()
    return sum(_summed(trainer, batch).item() for batch in _batches(trainer, rows)) / sum(b.weight for b in rows)


def _batches(trainer: Trainer, rows: Sequence[Batch]) -> Iterable[Batch]:
    """Rows in batches whose logits are not too many, on the training's device."""
    for batch in _joined(rows, max(1, LOGITS // (trainer.context * trainer.model.config.vocab_size))):
        yield batch.to(trainer.device)


def _summed(trainer: Trainer, batch: Batch) -> Tensor:
    """The loss of a batch by plain means: cross-entropy of full float32 logits; by its objective where no plain means
    compute it."""
    if not trainer.objective.plain:
        return trainer.objective(trainer.model, batch)[0]
    logits = trainer.model(batch.tokens, batch.positions, batch.segments).float()
    return cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum")


def refer(trainer: Trainer, rows: Iterable[Batch], adam: AdamPart) -> Reference | None:
    """The step that `rows` make, by autograd through `_summed`; None without any target.

    Raises:
        InputError: its loss is no number.
    """
    rows = list(rows)
    model, total = trainer.model.to(trainer.device).train(), sum(row.weight for row in rows)
    if not total:
        return None
    loss = torch.zeros((), dtype=finest(trainer.device), device=trainer.device)
    for batch in _batches(trainer, rows):
        part = _summed(trainer, batch)
        (part / total).backward()
        loss += part.detach().to(loss.dtype) / total
    grads = [(n, p, p.grad) for n, p in model.named_parameters() if p.grad is not None]
    norm = math.sqrt(sum(g.to(loss.dtype).square().sum().item() for _, _, g in grads))
    peak = max((g.abs().max().item() for n, p, g in grads if adam.owns(n, p)), default=0.0)
    model.zero_grad(set_to_none=True)
    if not math.isfinite(loss.item()):
        raise InputError(f"the loss is {loss.item()} before the first step: the weights that it starts from hold "
                         "numbers that are not finite; choose another init.path, or make the model anew")  # fmt: skip
    peak *= min(1.0, trainer.plan.clip / max(norm, 1e-30))
    return Reference(loss.item(), norm, peak / (peak + adam.eps))


def _joined(rows: Sequence[Batch], most: int) -> Iterable[Batch]:
    """Rows put together to batches of at most `most`."""
    for start in range(0, len(rows), most):
        yield Batch.joined(rows[start : start + most])
