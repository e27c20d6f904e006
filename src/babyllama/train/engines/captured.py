"""After a few steps on a GPU the whole update becomes one CUDA graph, which one launch replays: of a process alone, or
of one of several whose exchange is in it (replica.py). Where batches of other shapes follow, some steps in a row, it is
recorded anew.

A step of a small model is a few thousand launches; at 32 × 512 tokens the host took twice as long to make them as the
GPU to run them. What changes from step to step lies in tensors that the graph reads: the batch, its number of targets,
the schedule's factor. Not here: what an update is (worker.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from babyllama.data.streams.batches import Batch
from babyllama.hardware import allowed_memory
from babyllama.model.grouped import asks_no_host
from babyllama.train.engines.setting import Setting
from babyllama.train.engines.worker import Worker
from babyllama.train.guard import Watchman

EAGER_STEPS = 3  # before the capture: they allocate what lives on, and measure the memory
MEMORY_SHARE = 0.4  # of the device; the graph keeps its memory, so larger steps, where it gains least, go without


class Captured(Worker):
    """Worker whose learning rates are tensors and whose update is captured once its shapes have settled."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        for group, rate in self._groups():
            group["lr"] = torch.tensor(rate, device=self.device)
            group["capturable"] = True
        self._forget()

    @staticmethod
    def suits(setting: Setting) -> bool:
        """Whether every step is the same work: LISA and GaLore change theirs, some RoPE laws ask the host, and so do
        objectives that are not steady, and experts on older GPUs or in other than bf16."""
        steady = setting.objective.steady and setting.optimizer.captured and setting.model.rope.static
        whole = setting.lisa is None and not setting.adapter
        alone = setting.model.config.moe is None or asks_no_host(setting.device, setting.dtype)
        return setting.compiled and setting.device.type == "cuda" and steady and whole and alone

    def _forget(self) -> None:
        """Start over: a graph reads and writes the very tensors that were there when it was captured."""
        self.graph: torch.cuda.CUDAGraph | None = None
        self.settled, self.seen, self.shapes = 0, [], []  # steps of the shapes seen last; those of the graph

    def update(self, step: int, micro: Sequence[Batch], total: float, factor: float, watchman: Watchman) -> None:
        """As in Worker."""
        if not total:
            return
        micro = [batch.to(self.device) for batch in micro]
        numbers = torch.tensor([total, factor]).pin_memory().to(self.device, non_blocking=True)
        watchman.report(step, self._replay(micro, numbers, watchman))

    def _replay(self, micro: list[Batch], numbers: Tensor, watchman: Watchman) -> Tensor:
        shapes = [[part.shape for part in batch.tensors] for batch in micro]
        if self.graph is None or shapes != self.shapes:
            self.settled = self.settled + 1 if shapes == self.seen else 1
            self.seen = shapes
            if self.settled > EAGER_STEPS and self._fits():
                if self.graph is not None:
                    torch.cuda.synchronize(self.device)  # it may still be running
                    self.graph = None  # what it holds goes before the next one takes its own
                self._capture(micro, numbers, watchman)
                self.shapes = shapes
        if self.graph is None or shapes != self.shapes:
            return self._advance(micro, numbers[0], numbers[1], watchman)
        for mine, given in zip(self.micro, micro, strict=True):
            for to, part in zip(mine.tensors, given.tensors, strict=True):
                to.copy_(part)
        self.numbers.copy_(numbers)
        self.graph.replay()
        return self.figures

    def _fits(self) -> bool:
        return torch.cuda.max_memory_allocated(self.device) < MEMORY_SHARE * allowed_memory(self.device)

    def _capture(self, micro: list[Batch], numbers: Tensor, watchman: Watchman) -> None:
        """Record an update of batches of these shapes; records only, teaches nothing."""
        self.micro, self.numbers = micro, numbers
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.figures = self._advance(self.micro, numbers[0], numbers[1], watchman)
        self.graph = graph

    def _set_rates(self, factor: float | Tensor) -> None:
        for group, rate in self._groups():
            group["lr"].copy_(factor * rate)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """As in Worker."""
        super().restore(tensors)
        self._forget()
