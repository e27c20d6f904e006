"""Adapters, LISA and GaLore in two processes, which ranks.py starts; what is expected is in test_law7_tuning.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from spread_training import resumed, settings, train

from babyllama.data.streams.batches import Batch
from babyllama.model.lora import Dora, Lora
from babyllama.model.transformer import Transformer
from babyllama.train.engines.world import World
from babyllama.train.lisa import Lisa
from babyllama.train.losses.objectives import NextToken
from babyllama.train.optimizers.optim import AdamW, GaLore

# name → what differs from a full training with AdamW.
TUNED: dict[str, dict[str, Any]] = {
    "lora": {"adapter": Lora(rank=4, alpha=8)},
    "lora-untied-plus": {"adapter": Lora(rank=4, train=("embed_tokens", "lm_head", "norms")), "tie": False},
    "dora-plus": {"adapter": Dora(rank=4, train=("embed_tokens", "norms")), "kv_heads": 1, "recompute": True},
    "two-rates": {
        "adapter": Lora(rank=4, train=("embed_tokens", "norms")),
        "optimizer": AdamW(lr=1e-2, eps=1e-3, whole_lr=1e-3),
    },
    "qlora": {"adapter": Lora(rank=4, base="nf4")},
    "lisa": {"adapter": Lisa(layers=1, every=2)},
    "galore": {"optimizer": GaLore(lr=1e-2, rank=4, refresh=3, eps=1e-3)},
}
# What draws in a step draws by rank, so that two processes learn another thing than one: law 7 only.
DRAWN = {"dropout": {"adapter": Lora(rank=4, dropout=0.3)}, "neftune": {"objective": NextToken(neftune=5.0)}}
ENGINES = {"ddp": TUNED, "fsdp": {k: v for k, v in TUNED.items() if k != "galore"},
           "zero2": {k: TUNED[k] for k in ("lora", "dora-plus", "two-rates", "qlora")},
           "zero3": {k: TUNED[k] for k in ("lora", "dora-plus", "qlora")}}  # fmt: skip
CASES = [(engine, name) for engine, names in ENGINES.items() for name in names]
RESUMED = [
    ("ddp", "lora"),
    ("ddp", "lisa"),
    ("ddp", "galore"),
    ("ddp", "neftune"),
    ("ddp", "dropout"),
    ("fsdp", "neftune"),
    ("fsdp", "dora-plus"),
    ("fsdp", "lisa"),
    ("zero2", "qlora"),
]
SEEN: list[str] = []  # the blocks that want gradients, call by call


class Watching(NextToken):
    """Notes which blocks are awake."""

    def __call__(self, model: Transformer, batch: Batch) -> Any:
        SEEN.append("".join(str(n) for n, b in enumerate(model.layers) if any(p.requires_grad for p in b.parameters())))
        return super().__call__(model, batch)


def what(name: str) -> dict[str, Any]:
    """The arguments of `small_trainer`."""
    return {**settings("adamw", 4), **{**TUNED, **DRAWN}[name]}


def tuned(folder: Path, world: World) -> None:
    for engine, name in CASES:
        train(folder, f"{engine}-{name}", world, engine, **what(name))


def halves(folder: Path, world: World) -> None:
    for engine in ("ddp", "fsdp", "zero2"):
        train(folder, f"{engine}-bf16", world, engine, dtype=torch.bfloat16, **what("dora-plus"))


def resumes(folder: Path, world: World) -> None:
    for engine, name in RESUMED:
        if name in DRAWN:
            train(folder, f"{engine}-{name}", world, engine, **what(name))
        at = 2 if name == "lisa" else 1  # its second draw is for the last two steps
        resumed(folder, f"{engine}-{name}", world, engine, at, **what(name))


def drawn(folder: Path, world: World) -> None:
    """LISA's blocks on each rank."""
    SEEN.clear()
    train(folder, "drawn", world, "ddp", objective=Watching(), **{**what("lisa"), "steps": 12})
    (folder / f"drawn-{world.rank}.txt").write_text(" ".join(SEEN))


PARTS = (tuned, halves, resumes, drawn)
