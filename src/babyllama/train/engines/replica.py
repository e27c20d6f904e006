"""DDP: a whole copy of the model on each rank, gradients averaged once a step. Not here: the step (worker.py)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from babyllama.data.streams.batches import Batch
from babyllama.train.engines.precision import LossModule
from babyllama.train.engines.worker import Worker


class Replica(Worker):
    """A whole copy of the model on each rank; DDP averages the gradients."""

    module: DistributedDataParallel

    def _prepare(self, loss: LossModule) -> nn.Module:
        self._averaged = self._sharers = self.world.size
        self._settled = False
        module = super()._prepare(loss)
        if self.setting.lisa is not None:  # wrapped by each `_rewrap`, before the first step
            self._inner = module
            return module
        return self._wrapped(module)

    def _rewrap(self) -> None:
        self.module, self._settled = self._wrapped(self._inner), False

    def _wrapped(self, module: nn.Module) -> DistributedDataParallel:
        buffers = [name for name, _ in module.named_buffers()]  # functions of the config: the same everywhere
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, buffers)
        return DistributedDataParallel(module, gradient_as_bucket_view=True)

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
