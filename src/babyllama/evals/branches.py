"""Attention of a tree of texts that lies in one row, depth first: what several texts begin with is there once.

A token sees what its own node holds up to it, and all that the nodes above hold. What goes on from a node lies right
behind it, so the tokens that see a whole node are one run: on a CPU each run is one plain product with that node's
keys, and the parts of a softmax are joined by their sums; elsewhere one mask says the same. Not here: which tokens
(scoring.py).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from babyllama.infer.rows import sent
from babyllama.model.attention import Mask, attend_sdpa
from babyllama.model.transformer import Transformer

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # SDPA's own, which also tells the softmax's sums


_row = threading.local()  # .now: the row that this thread reads


@contextmanager
def attends_in_branches(model: Transformer) -> Iterator[None]:
    """Inside, the model's layers attend as `Branches` say, rows of several threads at a time; afterwards as before."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, _: Mask) -> Tensor:
        return _row.now.attend(layer, q, k, v)

    with ExitStack() as after:
        for number, layer in enumerate(model.layers):
            module: Any = layer.self_attn
            after.callback(setattr, module, "attend", module.attend)
            module.attend = partial(attend, number)
        yield


class Above(NamedTuple):
    """A node that was read in an earlier row: keys and values of each layer, (1, H, S, D), for `reach` tokens of this
    row, its first ones."""

    layers: Sequence[tuple[Tensor, Tensor]]
    reach: int


class Span(NamedTuple):
    """A node of this row: its tokens start … stop − 1, and to where, `reach`, others of the row go on from it."""

    start: int
    stop: int
    reach: int


@dataclass(frozen=True)
class Branches:
    """Rows of N tokens: `spans` of each, what lies behind them is padding. What goes on from nodes `above`, or of which
    spans are to `keep` keys and values, in `kept`, by layer, is one row alone.
    """

    above: Sequence[Above]
    spans: Sequence[Sequence[Span]]
    keep: Sequence[Span]
    device: torch.device

    def hidden(self, model: Transformer, tokens: Tensor, positions: Tensor, lengths: Tensor | None) -> Tensor:
        """As of the model, which `attends_in_branches`: (B, N) → (B, N, C)."""
        _row.now = self
        try:
            return model.hidden(tokens, positions, lengths=lengths)
        finally:
            del _row.now

    @cached_property
    def width(self) -> int:
        """N, the longest row's tokens; but on a CPU a multiple of 16, as kernels like a mask."""
        longest = max(row[-1].stop for row in self.spans)
        return longest if self.device.type == "cpu" else -(-longest // 16) * 16

    @cached_property
    def kept(self) -> list[list[tuple[Tensor, Tensor]]]:
        """Of each span in `keep`, by layer."""
        return [[] for _ in self.keep]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, H, N, D), k and v (B, K, N, D), rotated → (B, H, N, D)."""
        if k.shape[1] != q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        for span, kept in zip(self.keep, self.kept, strict=True):
            kept.append((k[:, :, span.start : span.stop].clone(), v[:, :, span.start : span.stop].clone()))
        return self._by_spans(layer, q, k, v) if q.is_cpu else self._by_mask(layer, q, k, v)

    def _by_spans(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (spans,) = self.spans
        pieces = [(0, one.reach, *one.layers[layer]) for one in self.above]
        pieces += [(stop, reach, k[:, :, start:stop], v[:, :, start:stop])
                   for start, stop, reach in spans if reach > stop]  # fmt: skip
        exact = torch.float64 if q.dtype == torch.float64 else torch.float32
        out, sums = torch.empty_like(q, dtype=exact), torch.empty(q.shape[:3], dtype=exact)
        for start, stop, _ in spans:
            own = (x[:, :, start:stop] for x in (q, k, v))
            out[:, :, start:stop], sums[:, :, start:stop] = flash(*own, 0.0, True)
        for first, last, keys, values in pieces:
            more, their = flash(q[:, :, first:last], keys, values)
            mine = sums[:, :, first:last]
            both = torch.logaddexp(mine, their)
            part = out[:, :, first:last]
            part.mul_((mine - both).exp_()[..., None]).add_(more * (their - both).exp_()[..., None])
            sums[:, :, first:last] = both
        return out.to(q.dtype)

    def _by_mask(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        before = [one.layers[layer] for one in self.above]
        keys, values = (torch.cat([*(pair[side] for pair in before), own], dim=2) for side, own in ((0, k), (1, v)))
        return attend_sdpa(q, keys, values, self.mask)

    @cached_property
    def mask(self) -> Tensor | None:
        """(B, 1, N, S): the keys of the nodes above come first. None: one text alone, which may be long."""
        if not self.above and len(self.spans) == len(self.spans[0]) == 1:
            return None
        known = [(one.layers[0][0].shape[2], one.reach) for one in self.above]
        before, N = sum(size for size, _ in known), self.width
        spans = [span for row in self.spans for span in (*known, *((stop - start, reach) for start, stop, reach in row),
                                                         (N - row[-1].stop, N))]  # fmt: skip
        sizes, reaches = sent(spans, self.device).unbind(1)
        count = len(self.spans) * (before + N)  # said, the device need not be waited for
        reach = reaches.repeat_interleave(sizes, output_size=count).view(len(self.spans), 1, -1)
        row = torch.arange(N, device=self.device)[:, None]
        key = torch.arange(-before, N, device=self.device)
        return ((key <= row) & (row < reach))[:, None]
