"""DDP: a whole copy of the model on each rank, gradients brought together once a step.

Replica: beside the backward pass. A gradient that comes early travels early, so blocks are compiled one by one and go
down to half precision one by one: in one piece all gradients would come at the end. Summed: after it, all at once.
Nothing overlaps, but the model is compiled as one, and each step is the same calls, which a CUDA graph can hold
(SummedGraph). Not here: the step (worker.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from babyllama.data.streams.batches import Batch
from babyllama.train.engines.captured import Captured
from babyllama.train.engines.precision import LossModule
from babyllama.train.engines.setting import Setting
from babyllama.train.engines.worker import Worker

Exchange = Literal["fp32", "bf16"]


class Replica(Worker):
    """A whole copy of the model on each rank; DDP averages the gradients.

    Args:
        exchange: what gradients travel in.
    """

    module: DistributedDataParallel
    _by_block = True

    def __init__(self, setting: Setting, exchange: Exchange = "fp32") -> None:
        self._exchange = exchange
        super().__init__(setting)

    def _prepare(self, loss: LossModule) -> nn.Module:
        self._averaged = self._sharers = self.world.size
        self._settled = False
        module = super()._prepare(loss)
        if self.setting.lisa is not None:  # wrapped by each `_rewrap`, before the first step
            self._inner = module
            return module
        return self._wrapped(module)

    def _place_whole(self) -> None:
        self.model.to(self.device)
        self._through: Any = torch.compile(self.model.through) if self.setting.compiled else self.model.through

    @contextmanager
    def _computing(self) -> Iterator[None]:
        before, self.model.through = self.model.through, self._through
        try:
            with super()._computing():
                yield
        finally:
            self.model.through = before

    def _rewrap(self) -> None:
        self.module, self._settled = self._wrapped(self._inner), False

    def _wrapped(self, module: nn.Module) -> DistributedDataParallel:
        buffers = [name for name, _ in module.named_buffers()]  # functions of the config: the same everywhere
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, buffers)
        wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True)
        if self._exchange == "bf16":
            wrapped.register_comm_hook(self.world.size, _mean_in_bf16)
        return wrapped

    def add_gradients(self, micro: Sequence[Batch], share: Tensor) -> Tensor:
        """As in Worker. DDP regroups its buckets after its first backward pass, which changes the order in which many
        ranks' gradients add up: a first pass that counts for nothing lets resumed runs add as those never stopped."""
        if not self._settled:
            self._settled = True
            devices = [self.device] if self.device.type == "cuda" else []
            with torch.random.fork_rng(devices):  # it draws nothing of what the step draws
                super().add_gradients(micro[:1], torch.zeros_like(share))
            self.zero_grad()
        return super().add_gradients(micro, share)

    def _synchronising(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self.module.no_sync()


class Summed(Worker):
    """A whole copy of the model on each rank; once all micro-batches are done, their gradients are summed.

    Args:
        exchange: what gradients travel in.
    """

    def __init__(self, setting: Setting, exchange: Exchange = "fp32") -> None:
        self._exchange = exchange
        super().__init__(setting)

    def _prepare(self, loss: LossModule) -> nn.Module:
        self._sharers = self.world.size
        return super()._prepare(loss)

    def add_gradients(self, micro: Sequence[Batch], share: Tensor) -> Tensor:
        """As in Worker; every rank has gradients of the same parameters."""
        sums = super().add_gradients(micro, share)
        grads = self._grads()
        together = torch.cat([grad.flatten() for grad in grads])
        if self._exchange == "bf16":
            together = together.bfloat16()
        parts = self.world.reduce_(together).split([grad.numel() for grad in grads])
        torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])
        return sums


class SummedGraph(Summed, Captured):
    """Summed, whose whole update is a CUDA graph, its exchange too."""


def _mean_in_bf16(size, bucket):  # DDP would read annotations, which are texts here
    """torch's bf16_compress_hook, which is for NCCL alone."""
    rounded = bucket.buffer().bfloat16().div_(size)
    sent: Any = dist.all_reduce(rounded, async_op=True)
    return sent.get_future().then(lambda done: bucket.buffer().copy_(done.value()[0]))
