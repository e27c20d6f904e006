"""After a few steps on a GPU the whole update becomes one CUDA graph, which one launch replays: of a process alone, or
of one of several whose exchange is in it (replica.py). Batches of another shape get a graph of their own.

A step of a small model is a few thousand launches; at 32 × 512 tokens the host took twice as long to make them as the
GPU to run them. What changes from step to step lies in tensors that the graph reads: the batch, its number of targets,
the schedule's factor. Not here: what an update is (worker.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from babyllama.data.streams.batches import Batch
from babyllama.hardware import allowed_memory
from babyllama.model.grouped import asks_no_host
from babyllama.train.engines.setting import Setting
from babyllama.train.engines.worker import Worker
from babyllama.train.guard import Watchman

EAGER_STEPS = 3  # of a shape before its capture: they allocate what lives on, and measure the memory
KEPT = 4  # graphs, of the shapes that came last; they share their memory
Shapes = tuple[tuple[torch.Size, ...], ...]  # of the tensors of all micro-batches
MEMORY_SHARE = 0.4  # of the device; the graph keeps its memory, so larger steps, where it gains least, go without


class Recorded(NamedTuple):
    """A graph, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    micro: list[Batch]
    numbers: Tensor
    figures: Tensor


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
        wanted = setting.compiled or (setting.objective.recorded and setting.world.size == 1)
        return wanted and setting.device.type == "cuda" and steady and whole and alone

    def _forget(self) -> None:
        """Start over: a graph reads and writes the very tensors that were there when it was captured."""
        self.graphs: dict[Shapes, Recorded] = {}  # the one used last comes last
        self.seen, self._pool = Counter[Shapes](), None

    def update(self, step: int, micro: Sequence[Batch], total: float, factor: float, watchman: Watchman) -> None:
        """As in Worker."""
        if not total:
            return
        micro = [batch.to(self.device) for batch in micro]
        numbers = torch.tensor([total, factor]).pin_memory().to(self.device, non_blocking=True)
        watchman.report(step, self._replay(micro, numbers, watchman))

    def _replay(self, micro: list[Batch], numbers: Tensor, watchman: Watchman) -> Tensor:
        shapes = tuple(tuple(part.shape for part in batch.tensors) for batch in micro)
        found = self.graphs.pop(shapes, None)
        if found is None:
            self.seen[shapes] += 1
            if self.seen[shapes] <= EAGER_STEPS or not self._fits():
                return self._advance(micro, numbers[0], numbers[1], watchman)
            if len(self.graphs) == KEPT:
                torch.cuda.synchronize(self.device)  # it may still be running
                del self.graphs[next(iter(self.graphs))]
            found = self._capture(micro, numbers, watchman)
        self.graphs[shapes] = found
        for mine, given in zip(found.micro, micro, strict=True):
            for to, part in zip(mine.tensors, given.tensors, strict=True):
                to.copy_(part)
        found.numbers.copy_(numbers)
        found.graph.replay()
        return found.figures

    def _fits(self) -> bool:
        return torch.cuda.max_memory_allocated(self.device) < MEMORY_SHARE * allowed_memory(self.device)

    def _capture(self, micro: list[Batch], numbers: Tensor, watchman: Watchman) -> Recorded:
        """Record an update of batches of these shapes; records only, teaches nothing."""
        if not self.graphs:
            self._pool = torch.cuda.graph_pool_handle()  # given up with the last graph
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            figures = self._advance(micro, numbers[0], numbers[1], watchman)
        return Recorded(graph, micro, numbers, figures)

    def _set_rates(self, factor: float | Tensor) -> None:
        for group, rate in self._groups():
            group["lr"].copy_(factor * rate)

    def leave(self) -> None:
        """As in Worker: NCCL waits for every graph that its exchanges are in."""
        if self.world.size > 1:
            torch.cuda.synchronize(self.device)
            self._forget()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """As in Worker."""
        super().restore(tensors)
        self._forget()
