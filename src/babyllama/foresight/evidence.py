"""What the doctor looks at: a training's first steps once more, its raw batches, its record and its checkpoints.

Everything is measured beside the training, by plain means: a loss and a gradient by torch's own cross-entropy on full
float32 logits, the weights before and after a step, the targets against the tokens. Not here: what it means
(doctor.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from babyllama.data.streams.batches import IGNORE, Batch, Rows
from babyllama.errors import InputError, Interrupted
from babyllama.run import Run
from babyllama.train.optimizers.optim import AdamW, Muon, Optimizer, in_block
from babyllama.train.state import read_shards, sharded
from babyllama.train.trainer import Diverged, Trainer

NEVER = 1 << 40  # steps
LOGITS = 1 << 28  # float32 logits held at a time by the reference, 1 GiB
Line = dict[str, Any]  # one line of metrics.jsonl


@dataclass(frozen=True)
class Tally:
    """Counts over raw batches, as the stream hands them out.

    A target is judged where the two inputs after it lie in its document. A document counts that ends inside its row:
    in a row with segments where they change, in a plain stream where an end token comes next.
    """

    places: int = 0
    targets: int = 0  # that the loss counts
    judged: int = 0
    following: int = 0  # of those judged: equal to the next input, as they must
    same: int = 0  # … to the input at their own place
    beyond: int = 0  # … to the input two places on
    documents: int = 0
    untaught: int = 0  # documents without any target
    ended: int = 0  # documents whose last target is the end token

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Reference:
    """The first step by plain autograd: mean loss over its targets, the gradient's norm before clipping.

    `update` is the largest change of a weight that one step of Adam can make, in learning rates: close to 1.
    """

    loss: float
    norm: float
    update: float


@dataclass(frozen=True)
class Rehearsal:
    """A training's first steps, taken in a temporary folder. `moved` is None when Adam trains nothing."""

    lines: tuple[Line, ...] = ()
    tally: Tally = field(default_factory=Tally)
    reference: Reference | None = None  # None: not one target in the first step
    moved: float | None = None  # largest change of a weight in the first step taken, in the recipe's learning rates
    ratios: tuple[float, ...] = ()  # of each step: the median matrix's change, as a share of the matrix
    diverged: str = ""  # what the trainer said when it gave up


@dataclass(frozen=True)
class Weights:
    """How many of a folder's matrices' entries are numbers of a half precision, and of which."""

    where: str
    exact: float  # share, 0 … 1
    precision: str  # bf16 or fp16, whichever has more


@dataclass(frozen=True)
class Evidence:
    """All that the checks may look at; what is empty or None was not to be had."""

    accumulate: int
    scaled: bool  # float16 with a loss scale
    eos: int | None = None
    documents_per_token: float = 0.0  # of the prepared data
    recorded: tuple[Line, ...] = ()
    rehearsal: Rehearsal | None = None
    states: tuple[Weights, ...] = ()
    restarted: Weights | None = None  # the weights that a run began with whose parent had read the same data


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
    return Tally(tokens.numel(), *(int(count.sum()) for count in counts))


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

    def __init__(self, trainer: Trainer, adam: Adam, tell: Callable[[int], None]) -> None:
        self.trainer, self.adam, self.tell = trainer, adam, tell
        self.before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
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


@dataclass(frozen=True)
class Adam:
    """The part of an optimiser recipe whose first step has a size that is known beforehand."""

    lr: float
    eps: float
    everything: bool

    @classmethod
    def of(cls, optimizer: Optimizer) -> Adam:
        if not isinstance(optimizer, Muon):
            return cls(optimizer.lr, optimizer.eps, isinstance(optimizer, AdamW))
        return cls(optimizer.adam_lr, optimizer.adam_eps, False)

    def owns(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether Adam trains this parameter."""
        return self.everything or not in_block(name, parameter)


def rehearse(trainer: Trainer, steps: int, eos: int | None = None,
             tell: Callable[[int], None] = lambda _: None) -> Rehearsal:  # fmt: skip
    """Take the first `steps` of a training that has not begun, eagerly and in one process; its run stays as it is.

    Args:
        tell: is told each step that is done.

    Raises:
        InputError: the loss is no number before anything was learned.
    """
    adam, rows = Adam.of(trainer.optimizer), trainer.plan.rows
    first = [trainer.stream.batch(row, 1) for row in range(rows)]
    reference = refer(trainer, first, adam)
    moves, counted = _Moves(trainer, adam, tell), _Counted(trainer.stream, steps * rows, eos)
    plan = trainer.plan.model_copy(update={"log_every": 1, "validate_every": NEVER, "sample_every": NEVER,
                                           "save_every": NEVER, "keep_best": False})  # fmt: skip
    diverged = ""
    with TemporaryDirectory(prefix="babyllama-") as folder:
        run = Run(Path(folder))
        try:
            replace(trainer, run=run, stream=counted, plan=plan, show=moves, validate=lambda _: {},
                    sample=lambda _: (), export=None, compile=False).train()  # fmt: skip
        except _Enough:
            pass
        except Diverged as error:
            diverged = str(error).removeprefix(f"{run.path}: ")
        except Interrupted:
            raise Interrupted("interrupted; nothing was kept") from None
        lines = tuple(run.metrics())
    return Rehearsal(lines, counted.tally, reference, moves.moved, tuple(moves.ratios), diverged)


def refer(trainer: Trainer, rows: Iterable[Batch], adam: Adam) -> Reference | None:
    """The step that `rows` make, by autograd through torch's cross-entropy of full float32 logits.

    Raises:
        InputError: its loss is no number.
    """
    rows = list(rows)
    model, total = trainer.model.to(trainer.device).train(), sum(row.weight for row in rows)
    if not total:
        return None
    loss = torch.zeros((), dtype=torch.float64, device=trainer.device)
    for batch in _joined(rows, max(1, LOGITS // (trainer.context * model.config.vocab_size))):
        batch = batch.to(trainer.device)
        logits = model(batch.tokens, batch.positions, batch.segments).float()
        part = cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum")
        (part / total).backward()
        loss += part.detach().double() / total
    grads = [(n, p, p.grad) for n, p in model.named_parameters() if p.grad is not None]
    norm = math.sqrt(sum(g.double().square().sum().item() for _, _, g in grads))
    peak = max((g.abs().max().item() for n, p, g in grads if adam.owns(n, p)), default=0.0)
    model.zero_grad(set_to_none=True)
    if not math.isfinite(loss.item()):
        raise InputError(f"the loss is {loss.item()} before anything was learned: the weights that it starts from hold "
                         "numbers that are not finite; choose another init.path, or make the model anew")  # fmt: skip
    peak *= min(1.0, trainer.plan.clip / max(norm, 1e-30))
    return Reference(loss.item(), norm, peak / (peak + adam.eps))


def _joined(rows: Sequence[Batch], most: int) -> Iterable[Batch]:
    """Rows put together to batches of at most `most`."""
    for start in range(0, len(rows), most):
        parts = ((b.tokens, b.targets, b.positions, b.segments) for b in rows[start : start + most])
        columns = zip(*parts, strict=True)
        yield Batch(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


# ── weights ────────────────────────────────────────────────────────────────────────────────────────────────────────
def masters(run: Run) -> tuple[Weights, ...]:
    """The float32 masters of every checkpoint that can be read."""
    found = []
    for step, folder in run.states():
        whole = read_shards(folder).items() if sharded(folder) else stored([folder / "state.safetensors"])
        found.append(weights(((n, t) for n, t in whole if n.startswith("master.")), folder.name) if step else None)
    return tuple(state for state in found if state is not None)


def stored(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of safetensors files, one at a time; nothing more where a file is damaged."""
    with suppress(OSError, SafetensorError):
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                yield from ((name, tensors.get_tensor(name)) for name in tensors.keys())  # noqa: SIM118  (not a dict)


def weights(named: Iterable[tuple[str, Tensor]], where: str) -> Weights | None:
    """Of all matrices in `named`; None when there are none."""
    exact, entries = {"bf16": 0, "fp16": 0}, 0
    for tensor in (tensor.float() for _, tensor in named if tensor.ndim >= 2):
        entries += tensor.numel()
        for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
            exact[precision] += int((tensor.to(dtype).float() == tensor).sum())
    precision = max(exact, key=lambda name: exact[name])
    return Weights(where, exact[precision] / entries, precision) if entries else None
