"""A training that takes a second: a tiny model, a stream that is a formula."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from babyllama.data.streams.batches import IGNORE, Batch, Rows
from babyllama.data.streams.stretch import Stretched
from babyllama.model.config import ModelConfig, Moe, extended
from babyllama.model.laws import RopeConfig
from babyllama.model.transformer import Transformer, attach_value_head, initialise, with_reward_head
from babyllama.recipe import Recipe
from babyllama.run import Run
from babyllama.train.engines.engines import Single
from babyllama.train.engines.setting import Setting
from babyllama.train.engines.worker import Worker
from babyllama.train.engines.world import World
from babyllama.train.losses.objectives import NextToken
from babyllama.train.losses.policy import Ppo
from babyllama.train.optimizers.optim import AdamW, Cosine, Optimizer
from babyllama.train.plan import Plan
from babyllama.train.trainer import Trainer
from babyllama.train.tuning import Full, Lisa, put_on

VOCAB, CONTEXT = 37, 12


class Nothing(Recipe):
    """A recipe that says nothing."""


class Formula:
    """Row r is drawn from a generator seeded with r; rows differ in how many targets count."""

    def batch(self, first_row: int, count: int) -> Batch:
        rows = [
            torch.randint(0, VOCAB, (CONTEXT + 1,), generator=self._seed(r))
            for r in range(first_row, first_row + count)
        ]
        tokens = torch.stack(rows)
        targets = tokens[:, 1:].clone()
        for index, r in enumerate(range(first_row, first_row + count)):
            targets[index, : r % (CONTEXT - 1)] = IGNORE
        return Batch(tokens[:, :-1].contiguous(), targets, None, None)

    @staticmethod
    def _seed(row: int) -> torch.Generator:
        return torch.Generator().manual_seed(row)


class Packed(Formula):
    """The same rows, each of two documents that do not see each other."""

    def batch(self, first_row: int, count: int) -> Batch:
        whole, place = super().batch(first_row, count), torch.arange(CONTEXT)
        starts = 1 + torch.arange(first_row, first_row + count)[:, None] % (CONTEXT - 1)  # of the second
        segments = (place >= starts).long()
        positions = place - segments * starts
        return Batch(whole.tokens, whole.targets, positions, segments)


class Made:
    """Rows that the model writes itself, in each step some more: its greedy continuations of four tokens. The newest
    twelve are read, so rows hang on steps long past."""

    def __init__(self) -> None:
        self.written, self.step = torch.zeros(0, CONTEXT + 1, dtype=torch.int64), -1

    def prepare(self, step: int, worker: Worker) -> None:
        if step == self.step:
            return
        rows = torch.arange(4)[:, None] + 4 * (step % 9)  # (4, 1)
        with worker.policy() as model:
            for _ in range(3 * worker.world.rank):  # ranks need not keep step
                model(rows)
            for _ in range(CONTEXT):
                rows = torch.cat([rows, model(rows)[:, -1:].argmax(-1)], 1)
        self.written, self.step = torch.cat([self.written, rows])[-12:], step

    def meanwhile(self) -> None:
        """Nothing."""

    def batch(self, first_row: int, count: int) -> Batch:
        rows = self.written[torch.arange(first_row, first_row + count) % len(self.written)]
        return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), None, None)

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return {"written": self.written, "step": torch.tensor(self.step)}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.written, self.step = state["written"], int(state["step"])

    @property
    def figures(self) -> dict[str, float]:
        return {"written": float(len(self.written))}


@dataclass(frozen=True)
class By:
    """An objective that is computed by a function; what its sums count for, and what it claims, is NextToken's."""

    plain: ClassVar[bool] = True
    recorded: ClassVar[bool] = False
    steady: ClassVar[bool] = True
    compute: Callable[[Transformer, Batch], tuple[torch.Tensor, dict[str, torch.Tensor]]]

    def __call__(self, model: Transformer, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.compute(model, batch)

    def weight(self, batch: Batch) -> float:
        return batch.weight


class Through(Single):
    """One process whose worker is of a class of its own."""

    worker: type[Worker]

    def __call__(self, setting: Setting) -> Worker:
        return self.worker(setting)


class Silent:
    """Collects what would be shown."""

    def __init__(self, pause: float = 0.0) -> None:
        self.lines: list[str] = []
        self.pause = pause

    def step(self, step: int, steps: int, values: dict[str, Any]) -> None:
        time.sleep(self.pause)
        print(f"step {step}", flush=True)

    def line(self, text: str) -> None:
        self.lines.append(text)


class StopAt(Silent):
    """Signals this process once a step is shown."""

    def __init__(self, at: int, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.at, self.number = at, number

    def step(self, step: int, steps: int, values: dict[str, Any]) -> None:
        if step == self.at:
            os.kill(os.getpid(), self.number)


def small_trainer(out: Path, *, optimizer: Optimizer | None = None, dtype: torch.dtype = torch.float32, steps: int = 12,
                  kv_heads: int = 2, tie: bool = True, rope: RopeConfig | None = None, moe: Moe | None = None,
                  show: Silent | None = None, **plan: Any) -> Trainer:  # fmt: skip
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=kv_heads,
        max_position_embeddings=CONTEXT, tie_word_embeddings=tie, moe=moe)  # fmt: skip
    stream: Rows = plan.pop("stream", Formula)()
    if rope is not None:
        config = extended(config, rope)
        stream = Stretched(stream, CONTEXT, rope.stretch, CONTEXT, seed=1) if rope.stretch else stream
    model = Transformer(config)
    initialise(model, 0)
    if plan.pop("scores", False):
        model = with_reward_head(model, 0)
    adapter = plan.pop("adapter", Full())
    put_on(model, adapter, seed=1)
    arguments = {
        key: plan.pop(key)
        for key in ("engine", "world", "export", "objective", "seed", "schedule", "average")
        if key in plan
    }
    objective = arguments.pop("objective", NextToken())
    if isinstance(getattr(objective, "method", None), Ppo):
        attach_value_head(model)
    arguments["lisa"] = adapter if isinstance(adapter, Lisa) else None
    run = Run(out) if "world" in arguments and not arguments["world"].first else Run.create(out, "train", Nothing())
    plan = {"steps": steps, "micro_batch_size": 4, "log_every": 1, "save_every": 5, "validate_every": 4, **plan}
    return Trainer(
        run=run, model=model, stream=stream, objective=objective, optimizer=optimizer or AdamW(lr=1e-2),
        plan=Plan(**plan), steps=steps, context=CONTEXT, device=torch.device("cpu"), dtype=dtype,
        show=show or Silent(), validate=lambda _: {}, sample=lambda _: [], **{"schedule": Cosine(), **arguments},
    )  # fmt: skip


def setting_of(model: torch.nn.Module, **more: Any) -> Setting:
    """What an engine is given, for one process in float32, unless said otherwise."""
    given = {"objective": NextToken(), "optimizer": AdamW(), "world": World(), "dtype": torch.float32, "clip": 1.0,
             "device": torch.device("cpu"), "micro_batches": 1, "compiled": False, **more}  # fmt: skip
    return Setting(model=model, **given)  # type: ignore[arg-type]


def finished(out: Path, **kwargs: Any) -> Trainer:
    """A small trainer that has trained, its run free for others."""
    trainer = small_trainer(out, **kwargs)
    trainer.train()
    trainer.run.unlock()
    return trainer


def fingerprint(trainer: Trainer) -> tuple[dict[str, bytes], list[tuple[float, ...]]]:
    """Every parameter's bytes, and the logged losses without the clock."""
    bits = {n: p.detach().float().numpy().tobytes() for n, p in trainer.model.named_parameters()}
    return bits, [(m["step"], m["loss"], m["norm"], m["lr"], m["tokens"]) for m in trainer.run.metrics()]


def warm() -> None:
    """Import what a training imports late: once, before many are forked. Nothing is computed, so no thread is there.
    And as in conftest.py, nobody waits for the disk."""
    import torch._dynamo
    import torch.utils.tensorboard

    torch.set_num_threads(1)
    os.fsync = lambda _: None
