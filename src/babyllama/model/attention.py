"""Attend functions.

An attend function maps queries (B, H, T, D), keys and values (B, K, S, D) and a mask to (B, H, T, D). `mask` is a
boolean (B, 1, T, S), True where a query may look, or None for "causal over a square" (T = S, nothing cached).
Not here: projections, RoPE's formulas, what is cached (cache.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from babyllama.errors import InputError
from babyllama.recipe import Recipe

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's fused attention, whichever backend it finds best."""
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)


def attend_eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The definition, written out: softmax(q·kᵀ/√D)·v. The reference that `attend_sdpa` is tested against.

    Values may have another width than keys: those of unit vectors give the weights themselves (inside.py).
    """
    B, H, T, D = q.shape
    K, S = k.shape[1], k.shape[2]
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()[None, None]
    q = q.view(B, K, H // K, T, D)  # query heads h·G … h·G+G−1 share key head h
    scores = torch.einsum("bkgtd,bksd->bkgts", q, k) / math.sqrt(D)
    weights = scores.float().masked_fill(~mask[:, :, None], -math.inf).softmax(-1).to(v.dtype)
    return torch.einsum("bkgts,bksd->bkgtd", weights, v).flatten(1, 2)


class ShiftedSparse(Recipe):
    """S²-Attn (LongLoRA, arXiv 2309.12307): attention inside groups; half of the heads see groups shifted by G/2.

    For training only. The paper rolls the tokens, so that its last and first half groups meet in one; here each stands
    alone, since the roll lets the first tokens see the last. Needs no mask, whatever the number of tokens.
    """

    kind: Literal["shifted_sparse"] = "shifted_sparse"
    group_size: int = Field(ge=2, multiple_of=2, description="tokens; the paper takes a quarter of the context")

    def check(self, context: int) -> None:
        """Raise InputError where rows of `context` tokens have nothing to leave out."""
        if self.group_size >= context:
            raise InputError(f"attend.group_size: {self.group_size} leaves nothing out of rows of {context} tokens; "
                             f"give a quarter of that, {max(2, context // 8 * 2)}, or attend.kind=full")  # fmt: skip

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        H, K = q.shape[1], k.shape[1]
        if K % 2:  # no half of its own for either half of the heads
            k, v = (x.repeat_interleave(H // K, dim=1) for x in (k, v))
        halves = zip(q.tensor_split(2, 1), k.tensor_split(2, 1), v.tensor_split(2, 1), strict=True)
        straight, shifted = halves
        return torch.cat((self._in_groups(*straight, mask, 0),
                          self._in_groups(*shifted, mask, self.group_size // 2)), dim=1)  # fmt: skip

    def _in_groups(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, first: int) -> Tensor:
        """A group of `first` tokens, then whole ones, then what is left."""
        T, G = q.shape[2], self.group_size
        first = min(first, T)
        last = first + (T - first) // G * G
        spans = ((0, first, first), (first, last, G), (last, T, T - last))
        parts = [_apart(q, k, v, mask, start, stop, size) for start, stop, size in spans if stop > start]
        return torch.cat(parts, dim=2)


def _apart(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, start: int, stop: int, size: int) -> Tensor:
    """Tokens start … stop − 1 in groups of `size`, each for itself: groups become rows, (B·N, H, size, D)."""
    B, count = q.shape[0], (stop - start) // size

    def rows(x: Tensor) -> Tensor:
        return x[:, :, start:stop].unflatten(2, (count, size)).transpose(1, 2).flatten(0, 1)

    if mask is not None:
        blocks = mask[:, :, start:stop, start:stop].unflatten(3, (count, size)).unflatten(2, (count, size))
        mask = blocks.diagonal(dim1=2, dim2=4).movedim(-1, 1).expand(B, -1, -1, -1, -1).flatten(0, 1)
    out = attend_sdpa(rows(q), rows(k), rows(v), mask)  # (B·N, H, size, D)
    return out.unflatten(0, (B, count)).transpose(1, 2).flatten(2, 3)


class FullAttention(Recipe):
    """Every token sees all before it."""

    kind: Literal["full"] = "full"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return attend_sdpa(q, k, v, mask)


def segment_mask(segments: Tensor) -> Tensor:
    """(B, T) document numbers → (B, 1, T, T): causal, and only inside one's own document."""
    T = segments.shape[1]
    same = segments[:, None, :, None] == segments[:, None, None, :]
    return same & torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
