"""Engines: how one training is spread over processes. A frozen value each; called, it makes this process's Worker.

    engine: {kind: single | ddp | fsdp | deepspeed}

What is trained does not depend on the engine: the global batch is the recipe's, its loss is summed over everything and
divided once. Not here: the workers (worker.py, fsdp.py, deepspeed.py); the last two are imported when they are used.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from babyllama.amounts import amount
from babyllama.errors import InputError, needs_extra
from babyllama.recipe import Recipe
from babyllama.train.engines.captured import Captured
from babyllama.train.engines.mesh import Mesh
from babyllama.train.engines.replica import Exchange, Replica, Summed, SummedGraph
from babyllama.train.engines.setting import Setting
from babyllama.train.engines.worker import Worker
from babyllama.train.optimizers.optim import Optimizer


class _Engine(Recipe):
    """What all have, and what is asked of one instead of its name."""

    freezes: ClassVar[bool] = True  # parameters may stop and start to learn while it trains
    averages: ClassVar[bool] = True  # a mean of the last weights may be kept
    mixes: ClassVar[bool] = True  # parameters may compute in float32 beside others in half precision

    @property
    def environment(self) -> dict[str, str]:
        """Variables that have to be set before the processes meet, unless the user has set them."""
        return {}

    def mesh(self, processes: int) -> Mesh:
        """What each of so many processes holds and reads. Raises InputError for a number that does not fit."""
        return Mesh(replicate=processes)

    def check(self, processes: int, optimizer: Optimizer) -> None:
        """Raise InputError when so many processes cannot train with this optimiser in this way."""

    def check_precision(self, device: torch.device, dtype: torch.dtype) -> None:
        """Raise InputError when this device cannot train in `dtype` in this way."""


def _whole(number: int, processes: int, key: str, what: str) -> None:
    """Raise InputError unless the processes are a multiple of what `key` asks for."""
    if processes % number:
        there = amount(processes, "process", "processes")
        raise InputError(f"engine.{key}: {number} {what} {there}; start a multiple of {number}, or set engine.{key}=1")


Context = Annotated[int, Field(ge=1, description="processes that share the tokens of a row, for rows too long for one; "
                               "it divides the model's heads and the context")]  # fmt: skip


class Single(_Engine):
    """One process, one device."""

    kind: Literal["single"] = "single"

    def check(self, processes: int, optimizer: Optimizer) -> None:
        if processes > 1:
            raise InputError(
                f"engine.kind: single, but a launcher started {processes} processes; "
                "use engine.kind=ddp (or fsdp, deepspeed)"
            )

    def __call__(self, setting: Setting) -> Worker:
        self.check(setting.world.size, setting.optimizer)
        return Captured(setting) if Captured.suits(setting) else Worker(setting)


class Ddp(_Engine):
    """Every rank holds the whole model; gradients meet once a step (PyTorch DistributedDataParallel)."""

    kind: Literal["ddp"] = "ddp"
    exchange: Exchange = Field(
        default="fp32", description="what gradients travel in; bf16: half the traffic, rounded before they are summed"
    )
    overlap: bool | None = Field(
        default=None, description="true: gradients travel while the backward pass runs; false: after it, and a GPU's "
        "whole update is one CUDA graph; default: false on GPUs of one machine that do not share their rows"
    )  # fmt: skip
    context: Context = 1

    def mesh(self, processes: int) -> Mesh:
        _whole(self.context, processes, "context", "parts of a row cannot be shared by")
        return Mesh(processes, context=self.context)

    def check(self, processes: int, optimizer: Optimizer) -> None:
        self.mesh(processes)

    def __call__(self, setting: Setting) -> Worker:
        if setting.world.size == 1:
            return Worker(setting)
        graph, overlap = Captured.suits(setting), self.overlap
        if overlap is None:
            overlap = not (graph and setting.world.one_machine and self.context == 1)
        if overlap:
            return Replica(setting, self.exchange)
        return (SummedGraph if graph else Summed)(setting, self.exchange)


class Fsdp(_Engine):
    """PyTorch FSDP2: every rank holds a part of the parameters, their gradients and moments (arXiv 2304.11277).

    With `replicate` there are several such copies: weights travel inside of one, gradients also between them (HSDP).
    """

    kind: Literal["fsdp"] = "fsdp"
    reshard_after_forward: bool = Field(
        default=True, description="true: gather a block's weights again for the backward pass, as ZeRO-3; "
        "false: keep them until then, as ZeRO-2: more memory, a third less traffic"
    )  # fmt: skip
    blocks: int | None = Field(
        default=None, ge=1, description="blocks that travel together; default: as many as hold eight million parameters"
    )
    replicate: int = Field(
        default=1, ge=1, description="copies of the states, each sharded over its part of the processes, such as one "
        "a machine, whose processes then gather weights from each other only"
    )  # fmt: skip
    graph: bool | None = Field(
        default=None, description="true: a GPU's whole update is one CUDA graph, what travels too: for small models, "
        "whose steps are over before the host has launched them; default: on GPUs of one machine that do not share "
        "their rows"
    )  # fmt: skip
    context: Context = 1

    @property
    def environment(self) -> dict[str, str]:
        """As in _Engine."""
        # NCCL registers what exchanges in graphs read and write; with Muon's all-to-all the first replay then hangs.
        return {} if self.graph is False else {"NCCL_GRAPH_REGISTER": "0"}

    def mesh(self, processes: int) -> Mesh:
        _whole(self.replicate, processes, "replicate", "copies cannot be spread over")
        _whole(self.context, processes, "context", "parts of a row cannot be shared by")
        return Mesh(self.replicate, processes // self.replicate, self.context)

    def check(self, processes: int, optimizer: Optimizer) -> None:
        self.mesh(processes)
        if processes > 1 and not optimizer.by_rows:
            raise InputError(
                f"engine.kind: fsdp cannot spread {optimizer.kind}, which needs whole matrices; "
                "use engine.kind=ddp, or optimizer.kind=adamw or muon"
            )

    def __call__(self, setting: Setting) -> Worker:
        if setting.world.size == 1:
            return Worker(setting)
        self.check(setting.world.size, setting.optimizer)
        from babyllama.train.engines.fsdp import Sharded, ShardedGraph

        graph = setting.world.one_machine if self.graph is None else self.graph
        kind = ShardedGraph if graph and self.context == 1 and Captured.suits(setting) else Sharded
        return kind(setting, self.reshard_after_forward, self.blocks)


class DeepSpeed(_Engine):
    """DeepSpeed ZeRO (arXiv 1910.02054), AdamW only. One process may use it too, for `offload`."""

    freezes: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    mixes: ClassVar[bool] = False
    kind: Literal["deepspeed"] = "deepspeed"
    stage: Literal[1, 2, 3] = Field(default=2, description="sharded: 1 optimizer state, 2 + gradients, 3 + parameters")
    offload: Literal["none", "cpu"] = Field(
        default="none", description="of optimizer state, at stage 3 of parameters too"
    )

    def mesh(self, processes: int) -> Mesh:
        return Mesh(shard=processes) if self.stage == 3 else Mesh(replicate=processes)  # of the weights

    def check(self, processes: int, optimizer: Optimizer) -> None:
        if not optimizer.by_numbers:
            raise InputError(
                f"engine.kind: deepspeed cannot spread {optimizer.kind}, whose step needs whole matrices; "
                "use optimizer.kind=adamw, or engine.kind=fsdp"
            )
        if find_spec("deepspeed") is None:
            raise needs_extra("deepspeed", "deepspeed")

    def check_precision(self, device: torch.device, dtype: torch.dtype) -> None:
        if dtype != torch.float16:
            return
        from babyllama.train.engines.deepspeed import computes_fp16

        if not computes_fp16(device):
            raise InputError(
                f"precision: fp16 is nothing that deepspeed computes on this {device.type}; "
                "use precision=bf16 or fp32, or engine.kind=ddp or fsdp"
            )

    def __call__(self, setting: Setting) -> Worker:
        self.check(setting.world.size, setting.optimizer)
        self.check_precision(setting.device, setting.dtype)
        from babyllama.train.engines.deepspeed import Zero

        return Zero(setting, self.stage, self.offload == "cpu")


Engine = Annotated[Single | Ddp | Fsdp | DeepSpeed, Field(discriminator="kind")]
