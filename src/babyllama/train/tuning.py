"""Which parameters a training changes: all of them, some blocks at a time, an adapter's, or those of OneBit's form.

Not here: the adapters (model/lora.py), LISA's draw (lisa.py), what is saved of each (commands/train.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from babyllama.errors import InputError
from babyllama.model.lora import Dora, Lora, attach
from babyllama.model.nf4 import pack_base
from babyllama.model.transformer import Transformer
from babyllama.quant.folder import is_packed
from babyllama.quant.onebit import start
from babyllama.recipe import Recipe
from babyllama.train.engines.engines import Engine
from babyllama.train.lisa import Lisa
from babyllama.train.optimizers.optim import AdamW, Muon, Optimizer


class Full(Recipe):
    """Every parameter."""

    kind: Literal["full"] = "full"


class OneBit(Recipe):
    """Every parameter, the blocks' matrices rounded to their signs wherever they are used (arXiv 2402.11295).

    Starts from a dense model by SVID, and learns from it unless `objective` says otherwise. What is saved goes on with
    kind full.
    """

    kind: Literal["onebit"] = "onebit"


Adapter = Annotated[Full | Lisa | Lora | Dora | OneBit, Field(discriminator="kind")]


def usual_optimizer(adapter: Adapter, new: bool, compares: bool) -> Optimizer:
    """What trains where the recipe names no optimiser.

    A model that is there forgets what it has learned at the rate of new weights; a low-rank adapter's factors bear a
    higher rate than whole weights.

    Args:
        new: its weights are.
        compares: it learns which answers are better than others, for which small steps are enough.
    """
    if isinstance(adapter, Lora):
        return AdamW(lr=2e-4 if compares else 1e-3, weight_decay=0.0)
    if new or isinstance(adapter, OneBit):
        return Muon()
    return AdamW(lr=2e-5, weight_decay=0.0) if compares else Muon(lr=4e-3, adam_lr=1e-3)


def put_on(model: Transformer, adapter: Adapter, seed: int) -> None:
    """Make a loaded float32 model ready to be trained in this way. Raises InputError where it does not fit."""
    if isinstance(adapter, Lora) and model.config.weights != "dense":
        raise InputError(f"adapter.kind: {adapter.kind} could not be merged into {model.config.weights} weights, "
                         "which are rounded where they are used; use adapter.kind=full")  # fmt: skip
    if not isinstance(adapter, Lora) and is_packed(model):
        raise InputError(f"adapter.kind: {adapter.kind} changes whole weights, this model's are packed in few bits; "
                         "train adapter.kind=lora over them, or give the model that they were made from")  # fmt: skip
    if isinstance(adapter, OneBit) and model.config.moe is not None:
        raise InputError("adapter.kind: onebit is for dense blocks, this model's have experts; use adapter.kind=full")
    if isinstance(adapter, Lora):
        pack_base(model, adapter.base)
        attach(model, adapter, seed)
    elif isinstance(adapter, Lisa):
        adapter.check(len(model.layers))
    elif isinstance(adapter, OneBit):
        start(model)


def check_together(adapter: Adapter, optimizer: Optimizer, engine: Engine, new: bool) -> None:
    """Raise InputError for choices that exclude each other."""
    if isinstance(adapter, Lora | OneBit) and new:
        raise InputError(f"adapter.kind: {adapter.kind} needs a trained base; give init=from init.path=…")
    if isinstance(adapter, Lora) and not optimizer.by_numbers:
        raise InputError(f"optimizer.kind: {optimizer.kind} is for whole matrices, not for {adapter.kind}'s factors; "
                         "use optimizer.kind=adamw")  # fmt: skip
    if optimizer.beside_factors and not (isinstance(adapter, Lora) and adapter.train):
        raise InputError("optimizer.whole_lr: is the rate of the modules of adapter.train, and it names none; "
                         "use optimizer.lr, or give adapter.train")  # fmt: skip
    if isinstance(adapter, Lisa) and not engine.freezes:
        raise InputError(f"engine.kind: {engine.kind} cannot freeze blocks while it trains, as adapter.kind=lisa does; "
                         "use engine.kind=ddp or fsdp")  # fmt: skip
