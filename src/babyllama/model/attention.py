"""Attend functions.

An attend function maps queries (B, H, T, D), keys and values (B, K, S, D) and a mask to (B, H, T, D). `mask` is a
boolean (B, 1, T, S), True where a query may look, `Since` a first token on, or None for "causal over a square"
(T = S, nothing cached).
Not here: projections, RoPE's formulas, what is cached (cache.py), the kernels of `Since` (since_kernels.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from babyllama.errors import InputError
from babyllama.recipe import Recipe


class Since(NamedTuple):
    """Causal, and from a first token on: where packed documents begin, or the groups of S²-Attn.

    first: (B or 1, S, T) int32, the first token that each query sees; it never falls along T. Of S sets, each is an
    equal share of the heads'.  stops: the same shape, the query after the last one that sees each token.
    long: most see a thousand tokens and more, for which the kernels have larger tiles.
    """

    first: Tensor
    stops: Tensor
    long: bool = False

    @classmethod
    def of(cls, first: Tensor, long: bool = False) -> Since:
        first = first.int().contiguous()
        tokens = torch.arange(first.shape[-1], device=first.device, dtype=torch.int32)
        seen = torch.searchsorted(first, tokens.expand_as(first).contiguous(), right=True, out_int32=True)
        return cls(first, seen, long)

    def dense(self, heads: int) -> Tensor:
        """(B or 1, 1 or heads, T, T) bool. Made where it is asked for: the compiler makes it once, or not at all."""
        S, T = self.first.shape[1:]
        tokens = torch.arange(T, device=self.first.device)
        seen = (tokens <= tokens[:, None]) & (tokens >= self.first[..., None])
        return seen if S == 1 else seen[:, torch.arange(heads, device=seen.device) * S // heads]


def documents(segments: Tensor) -> Since:
    """The mask of packed rows: (B, T) document numbers, equal ones side by side."""
    tokens = torch.arange(segments.shape[1], device=segments.device)
    begins = segments != segments.roll(1, dims=1)
    return Since.of((begins * tokens).cummax(1).values[:, None])


def documents_for(attend: Attend, segments: Tensor) -> Since:
    """The mask of packed rows as `attend` uses it, for all layers. Arguments as of `documents`."""
    mask = documents(segments)
    return attend.within(mask) if isinstance(attend, ShiftedSparse) else mask


def branches(segments: Tensor) -> Tensor:
    """The mask of rows whose documents all go on from document 0, (B, T) → (B, 1, T, T): causal, inside of one's own
    document and of that one."""
    own = documents(segments).dense(1)
    return own | (segments == 0)[:, None, None, :] & torch.ones_like(own[:1]).tril()


Mask = Tensor | Since | None
Attend = Callable[[Tensor, Tensor, Tensor, Mask], Tensor]


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """PyTorch's fused attention, whichever backend it finds best; `Since` by kernels of our own, on a GPU in halves."""
    if isinstance(mask, Since):
        if _has_kernels(q):
            return _AttendSince.apply(q, k, v, *mask)  # type: ignore[return-value]
        mask = mask.dense(q.shape[1])
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)


WIDTHS = (16, 32, 64, 128)  # of heads, as the kernels take them


def _has_kernels(q: Tensor) -> bool:
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and q.shape[3] in WIDTHS


class _AttendSince(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, first: Tensor, stops: Tensor, long: bool) -> Tensor:
        out, sums = _forward(q, k, v, first, long)
        ctx.save_for_backward(out, sums, q, k, v, first, stops)
        ctx.long = long
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        of = _backward(grads[0], *ctx.saved_tensors, ctx.long)
        return *(grad.transpose(1, 2) for grad in of), None, None, None


def sums_width(T: int) -> int:
    """Numbers in a row of the queries' log-sums: each row begins at a multiple of 16 bytes, as Hopper's copying engine
    asks."""
    return T + -T % 4


@torch.library.custom_op("babyllama::attend_since", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, first: Tensor, long: bool) -> tuple[Tensor, Tensor]:
    from babyllama.model.since_kernels import forward

    return forward(q, k, v, first, sums_width(q.shape[2]), long)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, first: Tensor, long: bool) -> tuple[Tensor, Tensor]:
    B, H, T, D = q.shape
    return q.new_empty(B, T, H, D), q.new_empty(B, H, sums_width(T), dtype=torch.float32)


@torch.library.custom_op("babyllama::attend_since_gradients", mutates_args=())
def _backward(
    grad: Tensor, out: Tensor, sums: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor, stops: Tensor, long: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from babyllama.model.since_kernels import backward

    return backward(grad, out, sums, q, k, v, first, stops, long)


@_backward.register_fake
def _(grad: Tensor, out: Tensor, sums: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor, stops: Tensor,
      long: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    B, H, T, D = q.shape
    return q.new_empty(B, T, H, D), k.new_empty(B, T, k.shape[1], D), v.new_empty(B, T, k.shape[1], D)


def attend_eager(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """The definition, written out: softmax(q·kᵀ/√D)·v. The reference that `attend_sdpa` is tested against.

    Values may have another width than keys: those of unit vectors give the weights themselves (inside.py).
    """
    B, H, T, D = q.shape
    K, S = k.shape[1], k.shape[2]
    if isinstance(mask, Since):
        mask = mask.dense(H)
    elif mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()[None, None]
    mask = mask[:, :, None] if mask.shape[1] == 1 else mask.unflatten(1, (K, H // K))
    q = q.view(B, K, H // K, T, D)  # query heads h·G … h·G+G−1 share key head h
    scores = torch.einsum("bkgtd,bksd->bkgts", q, k) / math.sqrt(D)
    weights = scores.float().masked_fill(~mask, -math.inf).softmax(-1).to(v.dtype)
    return torch.einsum("bkgts,bksd->bkgtd", weights, v).flatten(1, 2)


class ShiftedSparse(Recipe):
    """S²-Attn (LongLoRA, arXiv 2309.12307): attention inside groups; half of the heads see groups shifted by G/2.

    For training only. The paper rolls the tokens, so that its last and first half groups meet in one; here each stands
    alone, since the roll lets the first tokens see the last. Where `Since` has no kernels, and no documents are apart,
    groups become rows, which needs no mask, whatever the number of tokens.
    """

    kind: Literal["shifted_sparse"] = "shifted_sparse"
    group_size: int = Field(ge=2, multiple_of=2, description="tokens; the paper takes a quarter of the context")

    def check(self, context: int) -> None:
        """Raise InputError where rows of `context` tokens have nothing to leave out."""
        if self.group_size >= context:
            raise InputError(f"attend.group_size: {self.group_size} leaves nothing out of rows of {context} tokens; "
                             f"give a quarter of that, {max(2, context // 8 * 2)}, or attend.kind=full")  # fmt: skip

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        assert not isinstance(mask, Tensor), "nothing is cached in training"
        if mask is None and _has_kernels(q):
            mask = Since.of(self._groups(q.shape[2], q.device).clamp(min=0)[None], long=self.group_size >= 1024)
        if mask is not None:
            return attend_sdpa(q, k, v, self.within(mask) if mask.first.shape[1] == 1 else mask)
        H, K = q.shape[1], k.shape[1]
        if K % 2:  # no half of its own for either half of the heads
            k, v = (x.repeat_interleave(H // K, dim=1) for x in (k, v))
        straight, shifted = zip(q.tensor_split(2, 1), k.tensor_split(2, 1), v.tensor_split(2, 1), strict=True)
        return torch.cat((self._in_groups(*straight, 0), self._in_groups(*shifted, self.group_size // 2)), dim=1)

    def within(self, mask: Since) -> Since:
        """What the two halves of the heads see of what `mask` lets all see."""
        return Since.of(torch.maximum(mask.first, self._groups(mask.first.shape[2], mask.first.device)))

    def _groups(self, T: int, device: torch.device) -> Tensor:
        """Where each token's group begins for either half of the heads, (2, T); below 0 in the first half group."""
        tokens, G = torch.arange(T, device=device), self.group_size
        return torch.stack((tokens // G * G, (tokens + G // 2) // G * G - G // 2))

    def _in_groups(self, q: Tensor, k: Tensor, v: Tensor, first: int) -> Tensor:
        """A group of `first` tokens, then whole ones, then what is left."""
        T, G, first = q.shape[2], self.group_size, min(first, q.shape[2])
        last = first + (T - first) // G * G
        spans = [(0, first, first), (first, last, G), (last, T, T - last)]
        return torch.cat([_apart(q, k, v, *span) for span in spans if span[1] > span[0]], dim=2)


def _apart(q: Tensor, k: Tensor, v: Tensor, start: int, stop: int, size: int) -> Tensor:
    """Tokens start … stop − 1 in groups of `size`, each for itself: groups become rows, (B·N, H, size, D)."""
    B, count = q.shape[0], (stop - start) // size

    def rows(x: Tensor) -> Tensor:
        return x[:, :, start:stop].unflatten(2, (count, size)).transpose(1, 2).flatten(0, 1)

    out = attend_sdpa(rows(q), rows(k), rows(v), None)  # (B·N, H, size, D)
    return out.unflatten(0, (B, count)).transpose(1, 2).flatten(2, 3)


class FullAttention(Recipe):
    """Every token sees all before it."""

    kind: Literal["full"] = "full"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        return attend_sdpa(q, k, v, mask)
