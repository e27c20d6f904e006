"""One more token for every row of a cache; on a GPU as one CUDA graph, which one launch replays.

A step of a small model is a few hundred launches, and the host takes longer to make them than the GPU to run them.
Not here: prompts, sampling, when to stop (engine.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from babyllama.model.attention import KVCache

EAGER_STEPS = 16  # before a capture, which takes as long as about so many: short answers go without
SLOTS = 256  # that a graph reads at least; then twice as many each time


class Decoder:
    """(tokens (B,), positions (B,)) → logits (B, V), for one cache: of a conversation or of a batch of answers.

    A graph reads a fixed number of slots: more than are in use, which the cache's mask hides. A step of the same
    shapes is launched before it is recorded, since recording must neither compile nor load a kernel.

    Args:
        step: makes the logits and writes to `cache`.
        captures: whether there may be a graph: on a GPU only, and where a step asks the host nothing.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor], cache: KVCache, captures: bool) -> None:
        self.step, self.cache, self.captures = step, cache, captures
        self.taken = 0
        self.forget()

    def forget(self) -> None:
        """The cache has other rows from here on: a graph reads and writes the tensors that were there."""
        self.graph: torch.cuda.CUDAGraph | None = None
        self.slots = 0  # that a graph reads; what comes with more is launched

    def __call__(self, tokens: Tensor, positions: Tensor, end: int) -> Tensor:
        """The logits stay valid until the next call. `end` is the largest position + 1."""
        self.taken += 1
        self.cache.reserve(end)
        if not self.captures or self.taken <= EAGER_STEPS:
            return self.step(tokens, positions)
        if end > self.slots:
            self.forget()
            self.slots = min(self.cache.max_tokens, max(SLOTS, 1 << (end - 1).bit_length()))
            self.cache.reserve(self.slots)
            return self.step(tokens, positions)
        if self.graph is None:
            self._capture(tokens, positions)
        if self.graph is None:
            return self.step(tokens, positions)
        self.tokens.copy_(tokens)
        self.positions.copy_(positions)
        self.graph.replay()
        return self.logits

    def _capture(self, tokens: Tensor, positions: Tensor) -> None:
        """Record a step; this writes nothing. Where it fails, for want of memory say, steps go on being launched."""
        self.cache.reserve(self.slots)
        self.tokens, self.positions = tokens.clone(), positions.clone()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.logits = self.step(self.tokens, self.positions)
            self.graph = graph
        except RuntimeError:
            self.captures = False
