"""The one loop. Pretraining, SFT and whatever comes later are a stream and an objective over it.

Resume is bit for bit: batches are a pure function of the step, everything else is in the state. The loop waits for the
device only where it logs, validates or saves. Not here: how a batch or a loss is made, how a step is spread over
processes (engines.py), how a run's model and tokenizer are found (commands/train.py).
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from babyllama.atomic import write_folder
from babyllama.data.streams.batches import Batch, Rows
from babyllama.errors import InputError, Interrupted
from babyllama.hardware import peak_flops
from babyllama.model.attention import Attend, attend_sdpa
from babyllama.model.transformer import Transformer, recompute
from babyllama.run import Run
from babyllama.train.board import Board
from babyllama.train.engines.engines import Engine, Setting, Single, Worker
from babyllama.train.engines.world import World
from babyllama.train.guard import Verdict, Watchman
from babyllama.train.lisa import Lisa
from babyllama.train.losses.objectives import Objective
from babyllama.train.optimizers.optim import Optimizer, Schedule
from babyllama.train.plan import Plan
from babyllama.train.state import Saver, generators, seed_step, set_generators
from babyllama.train.validation import LossSums

REWINDS = 3  # of one training; what three rewinds did not cure is no bad luck


class Show(Protocol):
    """Where people watch: a progress bar, or plain lines."""

    def step(self, step: int, steps: int, values: dict[str, Any]) -> None: ...
    def line(self, text: str) -> None: ...


class Diverged(InputError):
    """The loss or its gradient stopped being a number, or jumped, for longer than the guard bears."""


class Drifted(InputError):
    """The ranks' parameters are no longer the same."""


@dataclass
class Trainer:
    """Everything one training needs; `train()` is the loop.

    `export` writes a model folder; without it no best/ is kept. Only the first rank writes, logs and shows.
    """

    run: Run
    model: Transformer
    stream: Rows
    objective: Objective
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
    export: Callable[[Transformer, Path], None] | None = None
    compile: bool = False
    engine: Engine = field(default_factory=Single)
    world: World = field(default_factory=World)
    attend: Attend = attend_sdpa  # while it trains
    lisa: Lisa | None = None
    seed: int = 1  # of what is drawn in a step: noise, dropout, LISA's blocks
    tokens_seen: int = 0
    seconds: float = 0.0  # of training alone: no compiling, validating, sampling or saving
    last: dict[str, Any] = field(default_factory=dict)
    best: float = math.inf
    rows_skipped: int = 0  # by rewinding
    rewinds: int = 0
    worker: Worker = field(init=False)
    work: float = field(init=False)  # FLOPs a token
    watchman: Watchman = field(init=False)
    saver: Saver = field(init=False, default_factory=Saver)
    board: Board | None = field(init=False, default=None)
    bad_steps: list[Verdict] = field(init=False, default_factory=list)  # in a row, up to now
    verdict: Verdict | None = field(init=False, default=None)  # the newest; None while no step had a target
    targets: int = field(init=False, default=0)  # of the step at hand, all ranks together

    def train(self) -> dict[str, Any]:
        """Train to the end, from the newest whole checkpoint if there is one; returns the last figures.

        Raises:
            Diverged: more bad steps in a row than the guard bears; the checkpoints before them stay.
            Drifted: the ranks disagree.
            Interrupted: after saving, on SIGINT or SIGTERM.
        """
        if self.plan.recompute:
            self.model.through = recompute
        shares, self.work = self.plan.shares(self.world.size), self._work()
        self.worker = self.engine(Setting(self.model, self.objective, self.optimizer, self.world, self.device,
                                          self.dtype, self.plan.clip, len(shares), self.compile, self.attend,
                                          self.lisa, self.seed))  # fmt: skip
        self.watchman = Watchman(self.plan.guard, self.device, self.dtype == torch.float16)
        first = self._resume()
        self.board = Board(self.run.path, first + 1) if self.world.first else None
        self.peak = peak_flops(self.device, self.dtype) * self.world.size
        try:
            with _stop_flag() as stopping:
                self._warm_up(first, shares)
                self._loop(first, shares, stopping)
            self.saver.wait()
        finally:
            if self.board is not None:
                self.board.close()
        return {**self.last, "steps": self.steps, "tokens": self.tokens_seen, "seconds": round(self.seconds, 1)}

    # ── the loop ───────────────────────────────────────────────────────────────────────────────────────────────
    def _loop(self, first: int, shares: list[int], stopping: Callable[[], bool]) -> None:
        self.model.train()
        step, self.lap = first, time.perf_counter()
        self.logged = self.tokens_seen, self.seconds  # at the last log
        while step < self.steps:
            micro = self._micro_batches(step, shares)
            total, asked = self.world.sum(sum(batch.weight for batch in micro), stopping())
            step, self.targets = step + 1, int(total)
            seed_step(self.seed, step, self.world.rank)
            self.worker.update(step, micro, total, self.schedule(step - 1, self.steps), self.watchman)
            self.tokens_seen += self.plan.rows * self.context
            last = step == self.steps
            stop = bool(asked) or (self.world.size == 1 and stopping())
            log, validate, sample, save = (
                last or step % every == 0
                for every in (
                    self.plan.log_every,
                    self.plan.validate_every,
                    self.plan.sample_every,
                    self.plan.save_every,
                )
            )
            due = log or validate or sample or save or stop
            # Several ranks must hear of a bad step at the same moment; when a device reports by itself is chance.
            heard = self.watchman.read(wait=due) if due or self.world.size == 1 else []
            if self._judge(heard, step):
                step = self._rewind(step)
                continue
            if not due:
                continue
            self._stop_clock()
            if log:
                self._log(step)
                stop = stop or (self.world.size == 1 and stopping())
            if validate or sample:
                self._look(step, validate, sample)
            if (save or stop) and not self.bad_steps:
                self._save(step)
            if stop and not last:
                self.saver.wait()
                # In the middle of bad steps nothing was saved: the last checkpoint is from before them.
                where = "all saved; the same command continues from there"
                if self.bad_steps:
                    where = "in a row of bad steps; the same command continues from the checkpoint before them"
                raise Interrupted(f"stopped after step {step}, {where}")
            self.lap = time.perf_counter()

    def _work(self) -> float:
        """FLOPs a token: a third of a full training's is for the gradients of weights, and some may be frozen."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        if self.lisa is not None:
            blocks = sum(p.numel() for p in self.model.layers.parameters())
            trained -= blocks * (1 - self.lisa.layers / len(self.model.layers))
        share = min(1.0, trained / self.model.config.parameters)
        return self.model.config.flops_per_token(self.context) * (2 + share) / 3

    def _micro_batches(self, step: int, shares: list[int]) -> list[Batch]:
        """This rank's part of a step's rows."""
        start = step * self.plan.rows + self.rows_skipped + self.world.rank * sum(shares)
        return [self.stream.batch(start + number * rows, rows) for number, rows in enumerate(shares)]

    def _warm_up(self, step: int, shares: list[int]) -> None:
        """Compile before the clock starts, on a batch whose gradients are thrown away."""
        if not self.compile or step >= self.steps:
            return
        started = time.perf_counter()
        self.model.train()
        self.worker.warm_up(self._micro_batches(step, shares))
        self._synchronise()
        self.last["compile_seconds"] = round(time.perf_counter() - started, 1)
        self._line(f"compiled in {self.last['compile_seconds']:.0f} s")

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _stop_clock(self) -> None:
        self._synchronise()
        self.seconds += time.perf_counter() - self.lap

    # ── the guard's verdicts ───────────────────────────────────────────────────────────────────────────────────
    def _judge(self, verdicts: list[Verdict], step: int) -> bool:
        """Note bad steps; True when the training has to rewind. Raises Diverged when it is over."""
        guard = self.plan.guard
        for verdict in verdicts:
            self.verdict = verdict
            if not verdict.bad:
                self.bad_steps = []
                continue
            self.bad_steps.append(verdict)
            self._record(verdict.step, "guard", loss=verdict.loss, norm=verdict.norm)
            self._line(f"step {verdict.step}: left out, loss {verdict.loss:.4g}, gradient norm {verdict.norm:.4g}")
            if guard.action == "stop" or len(self.bad_steps) >= guard.patience:
                if guard.action == "rewind" and self.rewinds < REWINDS and self._any_state():
                    return True
                raise Diverged(self._divergence())
        return False

    def _any_state(self) -> bool:
        self.saver.wait()
        return self.world.agree(bool(self.run.states()) if self.world.first else None)

    def _rewind(self, step: int) -> int:
        """Back to the newest checkpoint, but on to the rows that come after step `step`."""
        skipped, rewinds = self.rows_skipped, self.rewinds + 1  # the checkpoint may be from before the last rewind
        back = self._resume()
        self.rows_skipped = skipped + (step - back) * self.plan.rows
        self.rewinds, self.bad_steps = rewinds, []
        self._line(f"rewound from step {step} to {back}; the rows in between are left out")
        self.logged, self.lap = (self.tokens_seen, self.seconds), time.perf_counter()
        return back

    def _divergence(self) -> str:
        first, last = self.bad_steps[0], self.bad_steps[-1]
        finite = math.isfinite(first.loss) and math.isfinite(first.norm)
        what = f"the loss jumped to {first.loss:.4g}" if finite else "the loss or its gradient is not finite"
        when = f"at step {first.step}" + (f" to {last.step}" if last.step > first.step else "")
        self.saver.wait()
        states = self.run.states()
        kept = f"the checkpoint of step {states[-1][0]} is good" if states else "there was no checkpoint yet"
        remedy = "lower optimizer.lr, lengthen schedule.warmup, or use precision=bf16 or fp32"
        return f"{self.run.path}: {what} {when}; {kept}; {remedy}"

    # ── what people see ────────────────────────────────────────────────────────────────────────────────────────
    def _log(self, step: int) -> None:
        if self.verdict is None:
            self._line(f"step {step}: no target so far counts towards the loss; nothing was learned")
            return
        tokens, seconds = self.tokens_seen - self.logged[0], self.seconds - self.logged[1]
        self.logged = self.tokens_seen, self.seconds
        rate = tokens / max(1e-9, seconds)
        mfu = rate * self.work / self.peak
        lr = self.worker.rates[0][0] * self.schedule(step - 1, self.steps)
        values = {"loss": self.verdict.loss, "lr": lr, "norm": self.verdict.norm, "targets": self.targets,
                  "tokens": self.tokens_seen, "seconds": round(self.seconds, 2), "tokens_per_second": round(rate, 1),
                  "mfu": round(mfu, 4)}  # fmt: skip
        if self.verdict.skipped:
            values["skipped"] = self.verdict.skipped
        if self.watchman.scaled:
            values["loss_scale"] = self.watchman.scale.item()
        if self.device.type == "cuda":
            values["peak_gib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
        self._record(step, "train", **values)
        if self.world.first:
            self.show.step(step, self.steps, values)
        self.last |= {"train_loss": self.verdict.loss, "tokens_per_second": values["tokens_per_second"],
                      "mfu": values["mfu"]}  # fmt: skip

    def _look(self, step: int, validate: bool, sample: bool) -> None:
        """Validation and samples, on a copy in the precision that will be saved."""
        model = self.worker.snapshot()
        if self.world.first:
            if validate:
                self._validate(step, model)
            if sample:
                for prompt, text in self.sample(model):
                    self._record(step, "sample", prompt=prompt, text=text)
                    self._line(f"step {step}: {prompt} ▸ {text}")
        self.world.wait()

    def _validate(self, step: int, model: Transformer) -> None:
        sums = self.validate(model)
        everything = sum(sums.values(), LossSums())
        if not everything.tokens:
            return
        figures = everything.figures
        self._record(step, "validation", corpora={name: s.figures for name, s in sums.items()}, **figures)
        self.last |= {"validation_loss": figures["loss"], "bits_per_byte": figures["bits_per_byte"]}
        bits = figures["bits_per_byte"]
        shown = "" if bits is None else f", {bits:.4f} bits per byte"
        self._line(f"step {step}: validation loss {figures['loss']:.4f}{shown}")
        if figures["loss"] < self.best:
            self.best, export = figures["loss"], self.export
            self.last["best_step"] = step
            if export is not None and self.plan.keep_best:
                self.saver.start(lambda: write_folder(self.run.path / "best", lambda folder: export(model, folder)))

    def _record(self, step: int, kind: str, **values: Any) -> None:
        if self.board is not None:
            self.run.log(step, kind=kind, **values)
            self.board.add(step, kind, values)

    def _line(self, text: str) -> None:
        if self.world.first:
            self.show.line(text)

    # ── checkpoints ────────────────────────────────────────────────────────────────────────────────────────────
    def _save(self, step: int) -> None:
        """Begin to write a checkpoint; the copy is made here, the writing goes on beside the training."""
        self._check_ranks(step)
        facts = {"step": step, "tokens": self.tokens_seen, "seconds": self.seconds, "last": self.last,
                 "best": None if math.isinf(self.best) else self.best, "rows_skipped": self.rows_skipped,
                 "rewinds": self.rewinds, "world_size": self.world.size}  # fmt: skip
        extra = {f"guard.{name}": value for name, value in self.watchman.state.items()}
        for rank, states in enumerate(self.world.gather(generators())):
            extra |= {f"generator.{rank}.{name}": state for name, state in states.items()}
        self.saver.wait()  # one checkpoint in memory at a time
        self.saver.start(self.worker.writer(self.run, step, extra, facts, self.plan.keep))

    def _resume(self) -> int:
        """Take up the newest whole checkpoint, if there is one; returns its step."""
        found = self.world.agree(self.run.latest_state(self._line) if self.world.first else None)
        if found is None:
            if self.world.first:
                self.run.rewind_metrics(-1)
            return 0
        step, folder = found
        tensors, facts = self.worker.read(folder)
        self.watchman.restore(tensors)
        mine = f"generator.{self.world.rank}."
        set_generators({name.removeprefix(mine): t for name, t in tensors.items() if name.startswith(mine)})
        self.tokens_seen, self.seconds, self.last = facts["tokens"], facts["seconds"], facts["last"]
        self.best = math.inf if facts["best"] is None else facts["best"]
        self.rows_skipped, self.rewinds = facts["rows_skipped"], facts["rewinds"]
        if self.world.first:
            self.run.drop_states(after=step)
            self.run.rewind_metrics(step)
        self._line(f"continuing after step {step}")
        return step

    def _check_ranks(self, step: int) -> None:
        """Raise Drifted unless every rank has the same parameters, to the bit."""
        if self.world.size == 1:
            return
        first, *others = every = self.world.gather(self.worker.fingerprint())
        self._record(step, "ranks", fingerprints=[f"{sum(prints.values()) % 2**64:016x}" for prints in every])
        for rank, other in enumerate(others, 1):
            wrong = [name for name in first if first[name] != other.get(name)]
            if wrong:
                raise Drifted(
                    f"{self.run.path}: at step {step} the parameters of rank {rank} differ from rank 0's "
                    f"({', '.join(wrong[:3])}{', …' if len(wrong) > 3 else ''}); the last checkpoint is from before: "
                    "check that all processes run the same code on the same data"
                )


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
