"""Small trainings in several processes: each part of `PARTS` leaves what it found in a folder.

ranks.py starts them. What is expected of them is in test_law6_world.py and test_law7_world.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mishaps import BUCKETS, HELD, SEEN, Counting, Drifting, Killed, Looking, Spying, poison
from small_preferences import KINDS
from small_rollouts import OBJECTIVE, calling, practised
from small_training import VOCAB, Formula, Made, Packed, Silent, StopAt, small_trainer

from babyllama.data.streams.batches import Rows
from babyllama.errors import InputError, Interrupted
from babyllama.model.attention import Attend, ShiftedSparse, attend_eager, attend_sdpa, documents
from babyllama.model.config import Moe
from babyllama.model.laws import ClexRope, DynamicNtkRope
from babyllama.train.averaging import TailAverage
from babyllama.train.engines.engines import Ddp, DeepSpeed, Engine, Fsdp
from babyllama.train.engines.mesh import Mesh
from babyllama.train.engines.world import World
from babyllama.train.losses.sampled import Sampled
from babyllama.train.optimizers.optim import AdamW, Muon
from babyllama.train.trainer import Trainer

ENGINES: dict[str, Engine] = {
    "ddp": Ddp(),
    "ddp_after": Ddp(overlap=False),
    "fsdp": Fsdp(),
    "fsdp_kept": Fsdp(reshard_after_forward=False),
    "fsdp_grouped": Fsdp(blocks=2),
    "hsdp": Fsdp(replicate=2),
    "ddp_context": Ddp(context=2),
    "fsdp_context": Fsdp(context=2),
    "hsdp_context": Fsdp(replicate=2, context=2),
    **{f"zero{stage}": DeepSpeed(stage=stage) for stage in (1, 2, 3)},
    **{f"zero{stage}_cpu": DeepSpeed(stage=stage, offload="cpu") for stage in (2, 3)},
}
ALL = ("ddp", "fsdp", "zero1", "zero2", "zero3")
# A large eps: Adam divides a gradient near zero by itself, which would turn rounding into whole steps. Muon's rounding
# is said: each process's stopwatch would choose its own, and on a busy machine another one.
OPTIMIZERS = {"adamw": AdamW(lr=1e-2, eps=1e-3),
              "muon": Muon(lr=2e-3, weight_decay=0.1, adam_eps=1e-3, rounding="fp32")}  # fmt: skip
MOE = {"moe": Moe(experts=3, active=2, shared=1)}  # three: two ranks cannot share them equally
AVERAGE = {"average": TailAverage(share=0.75, tau=2)}  # from the second step of four on
CLEX = ClexRope(max_t=4)  # a law that learns, in float32 whatever the precision
NTK = DynamicNtkRope(factor=4.0, original=5)
MICRO = {1: 16, 4: 4, 16: 1}  # accumulate → micro_batch_size: 16 rows a step


def settings(optimizer: str, accumulate: int, **more: Any) -> dict[str, Any]:
    """What is trained, in any number of processes."""
    return {"optimizer": OPTIMIZERS[optimizer], "accumulate": accumulate, "micro_batch_size": MICRO[accumulate],
            "steps": 4, "save_every": 1000, "validate_every": 1000, **more}  # fmt: skip


def sampled() -> Rows:
    """Rows whose loss is over a part of the vocabulary."""
    return Sampled(stages=((1.0, 0.5),)).over(Formula(), VOCAB, 64)


# name → (engine, what): the full grid for the two engines of PyTorch, a part of it for DeepSpeed.
CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"{engine}-{optimizer}-{accumulate}": (engine, settings(optimizer, accumulate))
       for engine in ("ddp", "fsdp") for optimizer in OPTIMIZERS for accumulate in MICRO},
    **{f"{engine}-adamw-4": (engine, settings("adamw", 4)) for engine in ENGINES
       if engine not in ("ddp", "fsdp", "hsdp", "hsdp_context")},
    "fsdp_grouped-untied-4": ("fsdp_grouped", settings("muon", 4, tie=False, recompute=True)),
    "zero3-adamw-1": ("zero3", settings("adamw", 1)),
    # Nine rows for each process: micro-batches of five and four.
    "ddp-adamw-uneven": ("ddp", {**settings("adamw", 4), "accumulate": 3, "micro_batch_size": 6}),
    "fsdp-untied-4": ("fsdp", settings("muon", 4, tie=False, kv_heads=1, recompute=True)),
    **{f"{engine}-muon-moe": (engine, settings("muon", 4, **MOE)) for engine in ("ddp", "fsdp")},
    **{f"{engine}-adamw-average": (engine, settings("adamw", 4, **AVERAGE)) for engine in ("ddp", "fsdp")},
    "zero2-adamw-moe": ("zero2", settings("adamw", 4, **MOE)),
    "ddp-adamw-clex": ("ddp", settings("adamw", 4, rope=CLEX)),
    "fsdp-adamw-clex": ("fsdp", settings("adamw", 4, rope=CLEX)),
    "fsdp-muon-clex": ("fsdp", settings("muon", 4, rope=CLEX)),
    **{f"{engine}-adamw-{kind}": (engine, settings("adamw", 4, **KINDS[kind]))
       for engine in ("ddp", "fsdp") for kind in ("dpo", "kto")},
    # Half a row each: documents apart, at positions of which a law goes by the documents' lengths, and stretched ones.
    "fsdp_context-packed": ("fsdp_context", settings("muon", 4, stream=Packed, rope=NTK, kv_heads=1, recompute=True)),
    "ddp_context-adamw-clex": ("ddp_context", settings("adamw", 4, rope=CLEX)),
    "ddp_context-adamw-sampled": ("ddp_context", settings("adamw", 4, stream=sampled)),
    "zero3-untied-4": ("zero3", settings("adamw", 4, tie=False, kv_heads=1)),
    **{f"{engine}-made-adamw": (engine, settings("adamw", 4, stream=Made))
       for engine in ("ddp", "fsdp", "zero2", "zero3")},
    # Each rank answers its share of the prompts; four steps are one rollout and the first of the next.
    **{f"{engine}-rollouts-adamw": (engine, settings("adamw", 4, stream=practised, objective=OBJECTIVE, steps=5))
       for engine in ("ddp", "fsdp", "zero3")},
    "fsdp-agents-adamw": ("fsdp", settings("adamw", 4, stream=calling, objective=OBJECTIVE, steps=5)),
}  # fmt: skip
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Of CURVES, each also stopped after its second step (one process is asked to in the first: the others must hear of it)
# and continued: what it must come to is what it comes to there.
WHOLE = ("ddp-muon-4", "fsdp-muon-4", "fsdp-adamw-4", "zero2-adamw-4", "zero3-adamw-4")
STOPPED = (*WHOLE, "ddp-adamw-clex", "fsdp-adamw-clex", "fsdp-muon-moe", "fsdp-adamw-average", "fsdp-adamw-kto",
           "fsdp-made-adamw", "ddp-rollouts-adamw")  # fmt: skip
# From whose checkpoint which engine goes on, in two processes. `one` was written by a single process.
CROSSED = [("ddp-muon-4", "fsdp"), ("fsdp-muon-4", "ddp"), ("fsdp-adamw-4", "zero2"), ("zero3-adamw-4", "fsdp"),
           ("one-muon-4", "fsdp"), ("one-adamw-4", "ddp"), ("one-adamw-4", "zero3")]  # fmt: skip
KILLED = settings("muon", 4, steps=8, save_every=3)


# ── tools ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def losses(trainer: Trainer) -> list[list[float]]:
    """(step, loss, norm, lr, targets, tokens so far) of every step."""
    kept = ("step", "loss", "norm", "lr", "targets", "tokens")
    return [[m[name] for name in kept] for m in trainer.run.metrics() if m["kind"] == "train"]


def made(folder: Path, name: str, world: World, engine: str, show: Silent | None = None, **kwargs: Any) -> Trainer:
    return small_trainer(folder / name, engine=ENGINES[engine], world=world, show=show or Silent(), **kwargs)


def keep(trainer: Trainer, folder: Path, name: str, **more: Any) -> None:
    """Write the curve, the weights and `more`; other processes may then use the run."""
    weights = trainer.worker.snapshot().state_dict()
    if trainer.world.first:
        (folder / f"{name}.json").write_text(json.dumps({"losses": losses(trainer), **more}))
        torch.save(weights, folder / f"{name}.pt")
        trainer.run.unlock()


def train(folder: Path, name: str, world: World, engine: str, **kwargs: Any) -> Trainer:
    trainer = made(folder, name, world, engine, **kwargs)
    trainer.train()
    keep(trainer, folder, name)
    return trainer


def stopped(folder: Path, name: str, world: World, engine: str, at: int, **kwargs: Any) -> None:
    """A training that SIGTERM for one process ends, when it has shown step `at`."""
    trainer = made(folder, name, world, engine, StopAt(at), **kwargs)
    try:
        trainer.train()
    except Interrupted:
        trainer.run.unlock()
    else:
        raise RuntimeError(f"{name} was not stopped")


# ── parts ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def curves(folder: Path, world: World) -> None:
    for name, (engine, kwargs) in CURVES.items():
        train(folder, name, world, engine, **kwargs)


def halves(folder: Path, world: World) -> None:
    """Each engine in bf16 and fp16: what is computed in what, what is saved in what."""
    for engine in ALL:
        for name, dtype in HALVES.items():
            SEEN.clear()
            trainer = made(folder, f"{engine}-{name}", world, engine, dtype=dtype, **settings("adamw", 4))
            trainer.objective = Spying()
            try:
                trainer.train()
            except InputError as error:  # on CPUs without fp16, of DeepSpeed; the test asks it whether that is so
                trainer.run.unlock()
                if world.first:
                    (folder / f"{engine}-{name}.refused").write_text(str(error))
                continue
            keep(trainer, folder, f"{engine}-{name}", seen=sorted(set(SEEN)), scale=trainer.watchman.scale.item(),
                 scaled=trainer.watchman.scaled)  # fmt: skip
    for name in ("ddp", "ddp_after"):
        trainer = made(folder, f"{name}-exchange-bf16", world, name, **settings("adamw", 4))
        trainer.engine = Ddp(exchange="bf16", overlap=name == "ddp")
        trainer.train()
        keep(trainer, folder, f"{name}-exchange-bf16")
    for engine in ("ddp", "fsdp"):
        train(folder, f"{engine}-clex-bf16", world, engine, dtype=torch.bfloat16, **settings("adamw", 4, rope=CLEX))


def guarded(folder: Path, world: World) -> None:
    """A NaN on one rank is left out on all."""
    for engine in ALL:
        trainer = poison(made(folder, f"{engine}-nan", world, engine, **settings("adamw", 1)))
        trainer.train()
        keep(trainer, folder, f"{engine}-nan")


def drift(folder: Path, world: World) -> None:
    trainer = small_trainer(folder / "drift", engine=Drifting(), world=world, **settings("adamw", 4))
    try:
        trainer.train()
        kind, said = "", ""
    except InputError as error:
        kind, said = type(error).__name__, str(error)
    found = world.gather((kind, said))
    if world.first:
        (folder / "drift.json").write_text(json.dumps(found))


def exchanges(folder: Path, world: World) -> None:
    """How often gradients travel in four steps of eight micro-batches a rank, and what FSDP holds in between."""
    counted, held = {}, {}
    trainer = made(folder, "counted-ddp", world, "ddp", **settings("adamw", 16))
    trainer.engine = Counting()  # type: ignore[assignment]
    trainer.train()
    counted["ddp"] = BUCKETS.count(0)
    name = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
    original = getattr(dist, name)
    for engine in ("fsdp", "fsdp_kept"):
        calls: list[int] = []

        def counting(*args: Any, calls: list[int] = calls, **kwargs: Any) -> Any:
            calls.append(1)
            return original(*args, **kwargs)

        trainer = made(folder, f"counted-{engine}", world, engine, **settings("adamw", 16))
        trainer.objective = Looking()
        HELD.clear()
        setattr(dist, name, counting)
        trainer.train()
        setattr(dist, name, original)
        counted[engine], held[engine] = len(calls), list(HELD)
    if world.first:
        (folder / "held.json").write_text(json.dumps(held))
        (folder / "exchanges.json").write_text(json.dumps(counted))


def shapes(folder: Path, world: World) -> None:
    """Muon on matrices whose rows the ranks cannot share equally, some of which a rank has nothing of, on stacks of
    matrices of which each has some, on the same matrices everywhere, and on copies of shards: how far from one
    process's steps each is, and what share of that one's matrices a rank orthogonalises."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    from babyllama.train.optimizers.muon import StackedMuon

    class Counting(StackedMuon):
        count = 0

        def _work(self, matrices: torch.Tensor, rows: int | None) -> torch.Tensor:
            self.count += len(matrices)
            return super()._work(matrices, rows)

    ranks, generator = init_device_mesh("cpu", (world.size,)), torch.Generator().manual_seed(0)
    grid = init_device_mesh("cpu", (world.size, 1))
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "whole": torch.clone, "split": lambda v: distribute_tensor(v, ranks, [Shard(0)]), "shared": torch.clone,
        "copies": lambda v: distribute_tensor(v, grid, [Replicate(), Shard(0)])}  # fmt: skip
    apart, counts = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)
    for *shape, rows in ((5, 3, None), (1, 4, None), (7, 7, None), (3, 9, None), (3, 4, 6, None), (1, 6, 2, None),
                         (6, 5, 2)):  # fmt: skip
        values = [torch.randn(shape, generator=generator) for _ in range(3)]
        held = {way: [torch.nn.Parameter(place(v)) for v in values] for way, place in ways.items()}
        rates = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "beta2": 0.9, "dtype": torch.float32}
        optimizers = {way: Counting([{"params": held[way], "rows": rows}], **rates,
                                    ranks=world.size if way == "shared" else 1) for way in ways}  # fmt: skip
        for step in range(3):
            grads = [torch.randn(shape, generator=generator) for _ in values]
            for way, optimizer in optimizers.items():
                for parameter, grad in zip(held[way], grads, strict=True):
                    parameter.grad = ways[way](grad)
                optimizer.found_inf = torch.tensor(float(step == 1))  # type: ignore[attr-defined]
                optimizer.step()
        for way, parameters in held.items():
            counts[way] += optimizers[way].count
            for mine, whole in zip(parameters, held["whole"], strict=True):
                full = mine.data.full_tensor() if isinstance(mine.data, DTensor) else mine
                apart[way] = max(apart[way], (full - whole).abs().max().item())
    if world.first:
        found = {way: [apart[way], counts[way] / counts["whole"]] for way in ways}
        (folder / "shapes.json").write_text(json.dumps(found))


# (query heads, key heads, attends, with documents): S²-Attn over no more heads than two or four ranks can halve
TRADES: list[tuple[int, int, Attend, bool]] = [
    (4, 4, attend_sdpa, False), (4, 2, attend_sdpa, True), (4, 1, attend_eager, False), (12, 3, attend_sdpa, False),
    (8, 8, ShiftedSparse(group_size=4), False), (8, 4, ShiftedSparse(group_size=4), True),
    (8, 1, ShiftedSparse(group_size=4), False)]  # fmt: skip


def trades(folder: Path, world: World) -> None:
    """Attention by ranks that trade tokens for heads, and its gradients: how far from that in one process."""
    from babyllama.train.engines.context import Part

    part, generator = Part(world, Mesh(world.size, context=world.size), torch.device("cpu")), torch.Generator()

    def mine(x: torch.Tensor) -> torch.Tensor:
        return part(x.transpose(1, 2)).transpose(1, 2)

    apart = []
    for heads, keys, attend, packed in TRADES:
        generator.manual_seed(heads)
        whole = [torch.randn(2, n, 16, 4, generator=generator).requires_grad_() for n in (heads, keys, keys)]
        parts = [mine(x.detach()).clone().requires_grad_() for x in whole]
        segments = (torch.arange(16) >= torch.tensor([[5], [10]])).long()
        mask = documents(segments) if packed else None
        expected, found = attend(*whole, mask), part.attend(attend)(*parts, mask)
        weights = torch.randn(expected.shape, generator=generator)
        (expected * weights).sum().backward()
        (found * mine(weights)).sum().backward()
        pairs = [(expected, found), *((a.grad, b.grad) for a, b in zip(whole, parts, strict=True))]
        apart.append(max(world.gather(max((mine(a) - b).abs().max().item() for a, b in pairs))))
    if world.first:
        (folder / f"trades-{world.size}.json").write_text(json.dumps(apart))


def resumed(folder: Path, name: str, world: World, engine: str, at: int = 1, **kwargs: Any) -> None:
    """A training with a stop; what lies there in between is copied for others to continue."""
    stopped(folder, f"stopped-{name}", world, engine, at, **kwargs)
    if world.first:
        for copy in ("alone", *(new for old, new in CROSSED if old == name)):
            shutil.copytree(folder / f"stopped-{name}", folder / f"{name}-to-{copy}")
    world.wait()
    train(folder, f"stopped-{name}", world, engine, **kwargs)


def resumes(folder: Path, world: World) -> None:
    for name in STOPPED:
        engine, kwargs = CURVES[name]
        resumed(folder, name, world, engine, **kwargs)
    for name, engine in CROSSED:
        train(folder, f"{name}-to-{engine}", world, engine, **settings(name.split("-")[1], 4))


def kill(folder: Path, world: World) -> None:
    """Both ranks die at once, as in a power cut."""
    trainer = made(folder, "killed", world, "fsdp", **KILLED)
    trainer.stream = Killed()
    trainer.train()


PARTS = (curves, halves, guarded, drift, exchanges, shapes, trades, resumes, kill)
