"""Which parameters a training changes: all of them, some blocks at a time, or an adapter's.

Not here: the adapters (model/lora.py), LISA's draw (lisa.py), what is saved of each (commands/train.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from babyllama.errors import InputError
from babyllama.model.lora import Dora, Lora, attach
from babyllama.model.nf4 import pack
from babyllama.model.transformer import Transformer
from babyllama.recipe import Recipe
from babyllama.train.lisa import Lisa
from babyllama.train.optim import AdamW, Optimizer


class Full(Recipe):
    """Every parameter."""

    kind: Literal["full"] = "full"


Adapter = Annotated[Full | Lisa | Lora | Dora, Field(discriminator="kind")]

# What an adapter is trained with when the recipe names no optimiser: factors bear a higher rate than whole weights.
ADAPTER_OPTIMIZER = AdamW(lr=1e-3, weight_decay=0.0)


def put_on(model: Transformer, adapter: Adapter, seed: int) -> None:
    """Make a loaded float32 model ready to be trained in this way. Raises InputError where it does not fit."""
    if isinstance(adapter, Lora):
        pack(model, adapter.base)
        attach(model, adapter, seed)
    elif isinstance(adapter, Lisa):
        adapter.check(len(model.layers))


def check(adapter: Adapter, optimizer: Optimizer, engine: str, new: bool) -> None:
    """Raise InputError for choices that exclude each other."""
    if isinstance(adapter, Lora) and new:
        raise InputError(f"adapter.kind: {adapter.kind} needs a trained base; give init.kind=from init.path=…")
    if isinstance(adapter, Lora) and optimizer.kind != "adamw":
        raise InputError(f"optimizer.kind: {optimizer.kind} is for whole matrices, not for {adapter.kind}'s factors; "
                         "use optimizer.kind=adamw")  # fmt: skip
    if isinstance(adapter, Lisa) and engine == "deepspeed":
        raise InputError("engine.kind: deepspeed cannot freeze blocks while it trains, as adapter.kind=lisa does; "
                         "use engine.kind=ddp or fsdp")  # fmt: skip
