"""The one loop. Pretraining, SFT and whatever comes later are a stream and an objective over it.

Resume is bit for bit: batches are a pure function of the step, everything else is in the state. The loop waits for the
device only where it logs, validates or saves. In one file although it is long: it is one loop. Not here: how a batch or
a loss is made, how a step is spread over processes (engines.py), how a run's model and tokenizer are found
(commands/train.py).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn, cast

import torch

from babyllama.data.streams.batches import Batch, Rows
from babyllama.errors import InputError, Interrupted
from babyllama.model.attention import Attend, attend_sdpa
from babyllama.model.transformer import Transformer, recompute
from babyllama.run import Run
from babyllama.train.averaging import TailAverage
from babyllama.train.checkpoints import Checkpoints
from babyllama.train.engines.engines import Engine, Setting, Single, Worker
from babyllama.train.engines.mesh import Mesh
from babyllama.train.engines.world import World
from babyllama.train.guard import Outcome, Watchman
from babyllama.train.journal import Journal, Show
from babyllama.train.lisa import Lisa
from babyllama.train.losses.objectives import Objective
from babyllama.train.meter import Meter, of_card, synchronise, work_per_token
from babyllama.train.optimizers.optim import Optimizer, Schedule
from babyllama.train.plan import Plan
from babyllama.train.progress import Progress
from babyllama.train.signals import stop_flag
from babyllama.train.sinks import Service
from babyllama.train.source import Source, source
from babyllama.train.state import seed_step
from babyllama.train.validation import Measured

REWINDS = 3  # of one training; what three rewinds did not cure is no bad luck


class Diverged(InputError):
    """The loss or its gradient stopped being a number, or jumped, for longer than the guard bears."""


@dataclass(kw_only=True)
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
    validate: Callable[[Transformer], Mapping[str, Measured]]  # what could be measured, by corpus
    sample: Callable[[Transformer], Iterable[tuple[str, dict[str, Any], str]]]  # kind, what is recorded, what is shown
    export: Callable[[Transformer, Path], None] | None = None
    compile: bool = False
    engine: Engine = field(default_factory=Single)
    world: World = field(default_factory=World)
    attend: Attend = attend_sdpa  # while it trains
    float8: bool = False  # in the blocks, where the device can
    lisa: Lisa | None = None
    average: TailAverage | None = None  # of the last weights, shown and saved in their place
    sinks: tuple[Service, ...] = ()  # of the curves, beside TensorBoard
    seed: int = 1  # of what is drawn in a step: noise, dropout, LISA's blocks
    progress: Progress = field(init=False)
    worker: Worker = field(init=False)
    source: Source = field(init=False)
    meter: Meter = field(init=False)
    watchman: Watchman = field(init=False)
    checkpoints: Checkpoints = field(init=False)
    journal: Journal = field(init=False)
    bad_steps: list[Outcome] = field(init=False, default_factory=list)  # in a row, up to now
    outcome: Outcome | None = field(init=False, default=None)  # the newest; None while no step had a target
    targets: int = field(init=False, default=0)  # of the step at hand, all ranks together

    @property
    def mesh(self) -> Mesh:
        """What each of the processes holds and reads."""
        return self.engine.mesh(self.world.size)

    def train(self) -> dict[str, Any]:
        """Train to the end, from the newest whole checkpoint if there is one; returns the last figures.

        Raises:
            Diverged: more bad steps in a row than the guard bears; the checkpoints before them stay.
            Drifted: the ranks disagree (checkpoints.py).
            Interrupted: after saving, on SIGINT or SIGTERM.
        """
        if self.plan.recompute:
            self.model.through = recompute
        shares = self.plan.shares(self.mesh.readers)
        work = work_per_token(self.model, self.context, self.lisa)  # before an engine takes the model apart
        self.worker = self.engine(
            Setting(model=self.model, objective=self.objective, optimizer=self.optimizer, world=self.world,
                    device=self.device, dtype=self.dtype, clip=self.plan.clip, micro_batches=len(shares),
                    compiled=self.compile, attend=self.attend, float8=self.float8, lisa=self.lisa,
                    seed=self.seed, mesh=self.mesh)
        )  # fmt: skip
        self.watchman = Watchman(self.plan.guard, self.device, self.dtype == torch.float16)
        say = self.show.line if self.world.first else lambda _: None
        self.source = source(self.stream)
        self.checkpoints = Checkpoints(self.run, self.world, self.worker, self.watchman, self.source, self.plan.keep,
                                       branch(self.objective, self.schedule, self.steps), say)  # fmt: skip
        first, self.progress = self.checkpoints.resume()
        self.journal = Journal(self.run, self.show, first, self.world.first, self.sinks)
        self.meter = Meter(work, self.device, self.dtype, self.world.size)
        gc.freeze()  # what is there now stays; to look through it again and again would hold steps up
        try:
            with stop_flag() as stopping:
                self._warm_up(first, shares)
                self._loop(first, shares, stopping)
            self.checkpoints.wait()
        except BaseException:
            self.checkpoints.settle()  # the folder is as it stays when this returns
            raise
        finally:
            gc.unfreeze()
            self.journal.close()
            self.worker.leave()
        done = self.progress
        empty = {"empty_steps": done.empty_steps} if done.empty_steps else {}
        return {**done.last, **empty, "steps": self.steps, "tokens": done.tokens, "seconds": round(done.seconds, 1)}

    # ── the loop ───────────────────────────────────────────────────────────────────────────────────────────────
    def _loop(self, first: int, shares: list[int], stopping: Callable[[], bool]) -> None:
        self.model.train()
        step = first
        self.meter.begin(self.progress)
        while step < self.steps:
            asked = self._step(step, shares, stopping)
            step += 1
            last = step == self.steps
            stop = asked or (self.world.size == 1 and stopping())
            due = self.plan.due(step, last)
            save = due.save or step == self.checkpoints.branch  # from there it can become longer
            pause = any(due) or save or stop
            # Several ranks must hear of a bad step at the same moment; when a device reports by itself is chance.
            heard = self.watchman.read(wait=pause) if pause or self.world.size == 1 else []
            if self._judge(heard, step):
                step = self._rewind(step)
                continue
            if not pause:
                continue
            self.meter.stop(self.progress)
            if due.log:
                self._log(step)
                stop = stop or (self.world.size == 1 and stopping())
            if due.validate or due.sample:
                self._look(step, due.validate, due.sample)
            if (save or stop) and not self.bad_steps:
                self._save(step)
            if stop and not last:
                self._stop(step)
            self.meter.go()

    def _step(self, step: int, shares: list[int], stopping: Callable[[], bool]) -> bool:
        """Train on the rows of step `step`, 0 being the first; returns whether any rank was asked to stop."""
        micro = self._micro_batches(step, shares)
        read = sum(map(self.objective.weight, micro)) if self.mesh.counts(self.world.rank) else 0
        total, asked = self.world.sum(read, stopping())
        step, self.targets = step + 1, int(total)
        seed_step(self.seed, step, self.world.rank)
        self.worker.update(step, micro, total, self.schedule(step - 1, self.steps), self.watchman)
        self.source.meanwhile()
        if self.average is not None:
            self.worker.average(self.average.weight(step, self.steps))
        self.progress.tokens += self.plan.rows * self.context
        if not self.targets:
            self._count_empty(step)
        return bool(asked)

    def _save(self, step: int) -> None:
        prints = self.checkpoints.save(step, self.progress)
        if prints:
            self.journal.record(step, "ranks", fingerprints=prints, shard=self.mesh.shard)

    def _stop(self, step: int) -> NoReturn:
        self.checkpoints.wait()
        # In the middle of bad steps nothing was saved: the last checkpoint is from before them.
        where = "all saved; the same command continues from there"
        if self.bad_steps:
            where = "in a row of bad steps; the same command continues from the checkpoint before them"
        raise Interrupted(f"stopped after step {step}, {where}")

    def _micro_batches(self, step: int, shares: list[int]) -> list[Batch]:
        """The step's rows of which this rank computes all tokens, or with its neighbours each a part."""
        first = step * self.plan.rows + self.progress.rows_skipped
        self.source.prepare(first // self.plan.rows, self.worker)
        starts = accumulate(shares, initial=first + self.mesh.reader(self.world.rank) * sum(shares))
        return [self.source.batch(start, rows) for start, rows in zip(starts, shares, strict=False)]

    def _warm_up(self, step: int, shares: list[int]) -> None:
        """Compile before the clock starts, on batches whose gradients are thrown away."""
        if not self.compile or step >= self.steps:
            return
        started = time.perf_counter()
        self.model.train()
        self.worker.warm_up(self._micro_batches(step, shares))
        synchronise(self.device)
        took = self.progress.last["compile_seconds"] = round(time.perf_counter() - started, 1)
        self.journal.line(f"compiled in {took:.0f} s")

    def _count_empty(self, step: int) -> None:
        """A step without targets changes nothing; it is said the first time, and counted."""
        if not self.progress.empty_steps:
            self.journal.line(f"step {step}: none of its {self.plan.rows} rows has a target that counts towards the "
                              "loss, so nothing is learned from it; such steps are counted in run.json")  # fmt: skip
        self.progress.empty_steps += 1

    # ── the guard's outcomes ───────────────────────────────────────────────────────────────────────────────────
    def _judge(self, outcomes: list[Outcome], step: int) -> bool:
        """Note bad steps; True when the training has to rewind. Raises Diverged when it is over."""
        guard = self.plan.guard
        for outcome in outcomes:
            self.outcome = outcome
            if not outcome.bad:
                self.bad_steps = []
                continue
            self.bad_steps.append(outcome)
            loss, norm = outcome.loss, outcome.norm
            self.journal.record(outcome.step, "guard", loss=loss, norm=norm)
            self.journal.line(f"step {outcome.step}: left out, loss {loss:.4g}, gradient norm {norm:.4g}")
            if guard.action == "stop" or len(self.bad_steps) >= guard.patience:
                if guard.action == "rewind" and self.progress.rewinds < REWINDS and self.checkpoints.any():
                    return True
                raise Diverged(self._divergence())
        return False

    def _rewind(self, step: int) -> int:
        """Back to the newest checkpoint, but on to the rows that come after step `step`."""
        before = self.progress  # the checkpoint may be from before the last rewind
        back, self.progress = self.checkpoints.resume()
        self.progress.rows_skipped = before.rows_skipped + (step - back) * self.plan.rows
        self.progress.rewinds, self.bad_steps = before.rewinds + 1, []
        self.journal.line(f"rewound from step {step} to {back}; the rows in between are left out")
        self.meter.begin(self.progress)
        return back

    def _divergence(self) -> str:
        first, last = self.bad_steps[0], self.bad_steps[-1]
        finite = math.isfinite(first.loss) and math.isfinite(first.norm)
        what = f"the loss jumped to {first.loss:.4g}" if finite else "the loss or its gradient is not finite"
        when = f"at step {first.step}" + (f" to {last.step}" if last.step > first.step else "")
        self.checkpoints.wait()
        states = self.run.states()
        kept = f"the checkpoint of step {states[-1][0]} is good" if states else "there was no checkpoint yet"
        remedy = "lower optimizer.lr, lengthen schedule.warmup, or use precision=bf16 or fp32"
        return f"{self.run.path}: {what} {when}; {kept}; {remedy}"

    # ── what people see ────────────────────────────────────────────────────────────────────────────────────────
    def _log(self, step: int) -> None:
        done, outcome = self.progress, self.outcome
        if outcome is None or outcome.step != step:  # the newest loss is of a step before
            self.journal.line(f"step {step}/{self.steps}  no targets, nothing trained")
            return
        rate, mfu = self.meter.speed(done)
        lr = self.worker.rates[0][0] * self.schedule(step - 1, self.steps)
        values = {"loss": outcome.loss, **dict(zip(self.worker.metrics, outcome.metrics, strict=True)),
                  **self.source.figures, "lr": lr,
                  "norm": outcome.norm, "targets": self.targets, "tokens": done.tokens,
                  "seconds": round(done.seconds, 3), "tokens_per_second": round(rate, 1),
                  "mfu": mfu}  # fmt: skip
        if outcome.skipped:
            values["skipped"] = outcome.skipped
        if self.watchman.scaled:
            values["loss_scale"] = self.watchman.scale.item()
        values |= of_card(self.device)
        self.journal.step(step, self.steps, values)
        done.last |= {"train_loss": outcome.loss, "tokens_per_second": values["tokens_per_second"], "mfu": mfu}

    def _look(self, step: int, validate: bool, sample: bool) -> None:
        """Validation and samples, on a copy in the precision that will be saved."""
        model = self.worker.snapshot()
        if self.world.first:
            if validate:
                self._validate(step, model)
            if sample:
                for kind, values, line in self.sample(model):
                    self.journal.record(step, kind, **values)
                    self.journal.line(f"step {step}: {line}")
        self.world.wait()

    def _validate(self, step: int, model: Transformer) -> None:
        sums = self.validate(model)
        if not sums:
            return
        first, *others = cast(list[Any], list(sums.values()))
        everything = cast(Measured, sum(others, first))
        figures = everything.figures
        self.journal.record(step, "validation", corpora={name: s.figures for name, s in sums.items()}, **figures)
        last = self.progress.last
        last |= {"validation_loss": figures["loss"], "bits_per_byte": figures.get("bits_per_byte")}
        last |= {f"validation_{name}": figures[name] for name in ("reward", "exact") if name in figures}
        self.journal.line(f"step {step}: {everything.words}")
        if figures["loss"] < self.progress.best:
            self.progress.best, export = figures["loss"], self.export
            last["best_step"] = step
            if export is not None and self.plan.keep_best:
                self.checkpoints.save_best(model, export)


def branch(objective: object, schedule: Schedule, steps: int) -> int:
    """After how many of `steps` steps a training first feels that it is to have so many; 0: from the first on.

    Args:
        objective: a recipe's; of all kinds one has stages.
    """
    sampled = getattr(objective, "sampled", None)
    return schedule.branch(steps) if sampled is None else min(schedule.branch(steps), sampled.branch(steps))
