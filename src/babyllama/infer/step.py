"""One more token for rows that decode: what a faster way to compute it replaces.

`Forward` is the least to bring along: one forward pass. Who also samples by himself, or makes several tokens at once,
brings a whole `Step`. On a GPU `Captured` records steps as CUDA graphs, which are kept as long as the engine.
Not here: prompts, which rows there are, when an answer ends (engine.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from babyllama.infer.choosing import Uses
from babyllama.infer.rows import Rows, Sampled
from babyllama.infer.threads import wide
from babyllama.model.cache import KVCache
from babyllama.model.transformer import Transformer

EAGER_STEPS = 16  # before a capture, which takes as long as about so many: short answers go without
SLOTS = 256  # that a graph reads at least; then twice as many each time
Made = TypeVar("Made")


class Forward(Protocol):
    """rows.token and rows.position of the rows `which` → logits (B, V) of the tokens after them.

    Keys and values go to the same rows of the cache, whose slots below `end` are all that need be read; `end` is
    above every position.
    """

    def __call__(self, which: slice, end: int) -> Tensor: ...


class Step(Protocol):
    """At least 1 and at most `limit` tokens for every row of `which`; `rows` and `cache` are as after those steps.

    As `Rows.choose` does it, the last token is in rows.token, and position and counter are as many further: but only
    of rows below rows.live. Nothing waits for the device.

    Attributes:
        most: the largest `limit` that is of use.
    """

    most: int

    def __call__(self, which: slice, end: int, uses: Uses, limit: int) -> Sampled: ...


def any_shape(device: torch.device) -> AbstractContextManager[object]:
    """Inside, attention is cuDNN's only where no other kernel computes it (masked, with fewer key heads): cuDNN
    compiles one for each new shape, about half a second in which nobody gets a token. Training has one shape.
    """
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)


class ModelForward:
    """The model's own forward pass."""

    def __init__(self, model: Transformer, rows: Rows, cache: KVCache) -> None:
        self.model, self.rows, self.cache = model, rows, cache

    def __call__(self, which: slice, end: int) -> Tensor:
        cache = self.cache.part(which, end)
        positions = cache.positions(self.rows.position[which][:, None])
        with any_shape(self.rows.device):
            hidden = self.model.hidden(self.rows.token[which][:, None], positions, cache=cache)
        return self.model.lm_head(hidden[:, 0])[:, : self.rows.vocab_size]


class Launched:
    """A forward pass, then sampling."""

    most = 1

    def __init__(self, forward: Forward, rows: Rows) -> None:
        self.forward, self.rows = forward, rows

    def __call__(self, which: slice, end: int, uses: Uses, limit: int) -> Sampled:
        with wide():
            return self.rows.choose(which, self.forward(which, end), uses)


class Recorder:
    """Records CUDA graphs, which share the memory that they compute in; `works` until one cannot be recorded.

    Who drops all graphs takes a new recorder: PyTorch gives the memory up with the last of them.
    """

    def __init__(self) -> None:
        self.works, self._pool = torch.cuda.is_available(), None

    def __call__(self, call: Callable[[], Made]) -> tuple[torch.cuda.CUDAGraph, Made] | None:
        """What `call` launches, not computed now, and what it returns; None where recording fails, for want of memory
        say. It must have been launched before: recording must neither compile nor load a kernel.

        Not `torch.cuda.graph`, which collects garbage and empties the allocator's cache each time.
        """
        if not self.works:
            return None
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph, side, here = torch.cuda.CUDAGraph(), _side(torch.cuda.current_device()), torch.cuda.current_stream()
        side.wait_stream(here)
        try:
            with torch.cuda.stream(side):
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                try:
                    value = call()
                finally:
                    graph.capture_end()
        except RuntimeError:
            self.works = False
            return None
        here.wait_stream(side)
        return graph, value

    def repeated(self, graphs: dict[Any, tuple[torch.cuda.CUDAGraph, Made] | None], key: Any, call: Callable[[], Made]
                 ) -> Made:  # fmt: skip
        """What `call` makes: launched the first time, recorded as the graph `key` at the second, and that replayed.
        Where recording fails it goes on being launched."""
        if key not in graphs:
            graphs[key] = None
            return call()
        found = graphs[key] or self(call)
        if found is None:
            return call()
        graphs[key] = found
        found[0].replay()
        return found[1]


@cache
def _side(device: int) -> torch.cuda.Stream:
    """The stream on which all graphs of a GPU are recorded: each stream has a workspace of cuBLAS's own."""
    return torch.cuda.Stream(device)


class Captured:
    """A step as a CUDA graph for each bucket: numbers of rows and of slots are powers of two, and what is beyond those
    in use is masked.

    A step of the same shapes is launched before it is recorded, since recording must neither compile nor load a
    kernel. Where recording fails, for want of memory say, steps go on being launched.
    """

    def __init__(self, step: Step, rows: Rows, cache: KVCache) -> None:
        self.step, self.rows, self.cache, self.most = step, rows, cache, 1
        self.graphs: dict[tuple[int, int, Uses], tuple[torch.cuda.CUDAGraph, Sampled] | None] = {}
        self.versions, self.taken, self.record = (0, 0, 0), 0, Recorder()

    def __call__(self, which: slice, end: int, uses: Uses, limit: int) -> Sampled:
        self.taken += 1
        if not self.record.works or self.taken <= EAGER_STEPS or which.start != 0:
            return self.step(which, end, uses, limit)
        versions = self.rows.version, self.rows.tables, self.cache.version
        if self.versions != versions:  # the graphs read tensors that are gone
            self.graphs, self.record, self.versions = {}, Recorder(), versions
        count = min(self.rows.count, power(which.stop))
        slots = min(self.cache.max_tokens, max(SLOTS, power(end)))
        key = count, slots, uses
        if key not in self.graphs:
            self.graphs[key] = None
            return self.step(which, end, uses, limit)
        found = self.graphs[key] or self.record(lambda: self.step(slice(0, count), slots, uses, 1))
        if found is None:
            return self.step(which, end, uses, limit)
        self.graphs[key] = found
        found[0].replay()
        return _first(found[1], which.stop)


def power(n: int) -> int:
    """The least power of two that is at least n: of what a graph or a kernel takes at a time."""
    return 1 << (n - 1).bit_length()


def _first(sampled: Sampled, count: int) -> Sampled:
    """Of the first `count` rows."""
    parts = sampled.tokens, sampled.logprobs, sampled.top, sampled.top_logprobs
    return Sampled(*(None if part is None else part[:, :count] for part in parts))  # type: ignore[arg-type]
