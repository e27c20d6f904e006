"""Our own training, steppable: the only place in bench/ that knows how the trainer drives an engine's worker.

Not here: data, clocks, what is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch

from babyllama.data.streams.batches import Batch, Rows, Stream
from babyllama.data.streams.resident import Resident
from babyllama.load import DTYPES, Precision, default_precision
from babyllama.model.attention import Attend, attend_sdpa
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.train.averaging import TailAverage
from babyllama.train.engines.engines import Engine, Setting, Single, Worker
from babyllama.train.engines.world import World
from babyllama.train.guard import Outcome, Watchman
from babyllama.train.losses.objectives import NextToken
from babyllama.train.optimizers.optim import Optimizer, Schedule
from babyllama.train.plan import Plan
from babyllama.train.tuning import Adapter, put_on


@dataclass(frozen=True)
class Stepper:
    """A training that waits to be told how many steps to take.

    Attributes:
        steps: takes so many more; returns without waiting for the device.
        warm_up: compiles on a batch that teaches nothing.
        model: the model as it is now, in the precision that it computes in.
        lost: how many steps the guard left out so far; waits for the device.
        newest: what came of the newest step; waits for the device.
        leave: the last call, where several processes train.
    """

    steps: Callable[[int], None]
    warm_up: Callable[[], None]
    model: Callable[[], Transformer]
    lost: Callable[[], int]
    newest: Callable[[], Outcome]
    leave: Callable[[], None]


def our_stepper(config: ModelConfig, stream: Rows, plan: Plan, optimizer: Optimizer, schedule: Schedule,
                device: torch.device, *, precision: Precision | None = None, compiled: bool = True, seed: int = 1,
                adjust: Callable[[Transformer], None] = lambda _: None, reuse: bool = False,
                objective: NextToken | None = None, engine: Engine | None = None,
                world: World | None = None, average: TailAverage | None = None,
                attend: Attend = attend_sdpa, float8: bool = False, adapter: Adapter | None = None
                ) -> Stepper:  # fmt: skip
    """What `Trainer` does between its logs, for `plan.steps` steps in all.

    Args:
        adjust: changes the fresh float32 weights in place before the training begins.
        reuse: take the module of an earlier training of this shape, which must be over, and its compiled code.
        engine, world: of which this process is one; alone when absent.
        average: of the last weights, which `model` then gives.
        adapter: what trains instead of the weights; not with `reuse`.
    """
    world = world or World()
    engine = engine or Single()
    mesh = engine.mesh(world.size)
    shares = plan.shares(mesh.readers)
    dtype = DTYPES[precision or default_precision(device)]
    model = _model(config, str(device)) if reuse else Transformer(config).to(device)  # type: ignore[arg-type]
    with torch.no_grad():
        initialise(model, seed)
        adjust(model)
    model.train().requires_grad_(True)
    if adapter is not None:
        put_on(model, adapter, seed)
    rows = (
        isinstance(stream, Stream) and device.type == "cuda" and Resident.of(stream, plan.context or 0, device)
    ) or stream
    if objective is not None and objective.sampled is not None:
        rows = objective.sampled.over(rows, config.vocab_size, (plan.steps or 0) * plan.rows)
    worker: Worker = engine(
        Setting(
            model=model,
            objective=objective or NextToken(),
            optimizer=optimizer,
            world=world,
            device=device,
            dtype=dtype,
            clip=plan.clip,
            micro_batches=len(shares),
            compiled=compiled,
            mesh=mesh,
            attend=attend,
            float8=float8,
        )
    )
    watchman = Watchman(plan.guard, device, dtype == torch.float16)
    done = lost = 0
    newest: list[Outcome] = []

    def micro_batches(step: int) -> list[Batch]:
        starts = accumulate(shares, initial=step * plan.rows + mesh.reader(world.rank) * sum(shares))
        return [rows.batch(start, size) for start, size in zip(starts, shares, strict=False)]

    def steps(count: int) -> None:
        nonlocal done
        for _ in range(count):
            micro = micro_batches(done)
            (total,) = world.sum(sum(batch.weight for batch in micro) if mesh.counts(world.rank) else 0)
            worker.update(done + 1, micro, total, schedule(done, plan.steps or done + 1), watchman)
            note(watchman.read())
            done += 1
            if average is not None:
                worker.average(average.weight(done, plan.steps or done))

    def note(outcomes: list[Outcome]) -> None:
        nonlocal lost
        lost += sum(outcome.bad for outcome in outcomes)
        newest[:] = outcomes[-1:] or newest

    def lost_steps() -> int:
        note(watchman.read(wait=True))
        return lost

    def newest_outcome() -> Outcome:
        lost_steps()
        return newest[0]

    return Stepper(steps, lambda: worker.warm_up(micro_batches(0)), worker.snapshot, lost_steps, newest_outcome,
                   worker.leave)  # fmt: skip


@cache
def _model(config: ModelConfig, device: str) -> Transformer:
    """One model of a shape in a process: a second training with it finds its compiled code again."""
    return Transformer(config).to(device)
