"""Attend functions.

An attend function maps queries (B, H, T, D), keys and values (B, K, S, D) and a mask to (B, H, T, D). `mask` is a
boolean (B, 1, T, S), True where a query may look, `Documents` of packed rows, or None for "causal over a square"
(T = S, nothing cached).
Not here: projections, RoPE's formulas, what is cached (cache.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from babyllama.errors import InputError
from babyllama.recipe import Recipe

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

SPARSE_FROM = 512  # tokens of a row from which skipping the blocks of other documents beats a mask for all pairs
BLOCK = 128  # tokens: FlexAttention's own


Span = tuple[int, int, int]  # tokens start … stop − 1 of each row, in groups of so many


class Documents(NamedTuple):
    """Causal, and only inside one's own document.

    segments: (B, T) document numbers.  blocks: which blocks of pairs hold any, for FlexAttention; None where `dense` is
    the faster form.  groups: of spans that attend by themselves, what their groups see, each as a row.
    """

    segments: Tensor
    blocks: BlockMask | None
    groups: dict[Span, Documents] | None = None

    @property
    def dense(self) -> Tensor:
        """(B, 1, T, T) bool. Made where it is asked for: the compiler makes it once, or not at all."""
        T, segments = self.segments.shape[1], self.segments
        same = segments[:, None, :, None] == segments[:, None, None, :]
        return same & torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()


def documents(segments: Tensor, x: Tensor) -> Documents:
    """The mask of packed rows.

    Args:
        segments: (B, T) document numbers.  x: what will attend, of any shape.
    """
    # In float32 some backends of FlexAttention are less exact.
    sparse = x.is_cuda and segments.shape[1] >= SPARSE_FROM and x.dtype != torch.float32
    return Documents(segments, _blocks(segments) if sparse else None)


def documents_for(attend: Attend, segments: Tensor, x: Tensor) -> Documents:
    """The mask of packed rows as `attend` uses it, for all layers. Arguments as of `documents`."""
    if isinstance(attend, ShiftedSparse):
        return Documents(segments, None, attend.groups(segments, x))
    return documents(segments, x)


def branches(segments: Tensor) -> Tensor:
    """The mask of rows whose documents all go on from document 0, (B, T) → (B, 1, T, T): causal, inside of one's own
    document and of that one."""
    own = Documents(segments, None).dense
    return own | (segments == 0)[:, None, None, :] & torch.ones_like(own[:1]).tril()


def _blocks(segments: Tensor) -> BlockMask:
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask

    def sees(b: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (segments[b, query] == segments[b, key])

    (B, T), device = segments.shape, segments.device
    if torch.compiler.is_compiling():  # it never builds all pairs; compiled on a GPU, the lists below came out wrong
        return create_block_mask(sees, B, None, T, T, device=device)  # type: ignore[arg-type]
    return BlockMask.from_kv_blocks(*block_lists(segments), BLOCK, sees, seq_lengths=(T, T))


def block_lists(segments: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which blocks hold some pairs that are seen, and which none else, as BlockMask lists them: int32 counts (B, 1, N)
    and numbers (B, 1, N, N). From each block's lowest and highest number, so that nobody looks at pairs: blocks whose
    documents overlap count."""
    T, device = segments.shape[1], segments.device
    places = torch.arange(-(-T // BLOCK) * BLOCK, device=device).clamp(max=T - 1)
    low, high = segments[:, places].unflatten(1, (-1, BLOCK)).aminmax(dim=2)  # (B, N)
    number = torch.arange(low.shape[1], device=device)
    overlap = (low[:, :, None] <= high[:, None]) & (low[:, None] <= high[:, :, None])  # (B, N, N)
    one = (low == high)[:, :, None] & (low == high)[:, None]
    full = (number[:, None] > number) & ((number + 1) * BLOCK <= T)[:, None]
    whole = overlap & one & full  # every pair is seen, so that none is looked at
    some = overlap & ~whole & (number[:, None] >= number)
    return *_listed(some), *_listed(whole)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, N) bool → how many there are in each row, (B, 1, N), and their numbers first, (B, 1, N, N), int32."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None]


Mask = Tensor | Documents | None
Attend = Callable[[Tensor, Tensor, Tensor, Mask], Tensor]


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """PyTorch's fused attention, whichever backend it finds best."""
    grouped = q.shape[1] != k.shape[1]
    if isinstance(mask, Documents):
        # Uncompiled, FlexAttention would compute all pairs.
        if mask.blocks is not None and torch.compiler.is_compiling():
            from torch.nn.attention.flex_attention import flex_attention

            return flex_attention(q, k, v, block_mask=mask.blocks, enable_gqa=grouped)  # type: ignore[return-value]
        mask = mask.dense
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)


def attend_eager(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """The definition, written out: softmax(q·kᵀ/√D)·v. The reference that `attend_sdpa` is tested against.

    Values may have another width than keys: those of unit vectors give the weights themselves (inside.py).
    """
    B, H, T, D = q.shape
    K, S = k.shape[1], k.shape[2]
    if isinstance(mask, Documents):
        mask = mask.dense
    elif mask is None:
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

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        assert not isinstance(mask, Tensor), "nothing is cached in training"
        groups = None if mask is None else mask.groups or self.groups(mask.segments, q)
        H, K = q.shape[1], k.shape[1]
        if K % 2:  # no half of its own for either half of the heads
            k, v = (x.repeat_interleave(H // K, dim=1) for x in (k, v))
        straight, shifted = zip(q.tensor_split(2, 1), k.tensor_split(2, 1), v.tensor_split(2, 1), strict=True)
        return torch.cat((self._in_groups(*straight, groups, 0),
                          self._in_groups(*shifted, groups, self.group_size // 2)), dim=1)  # fmt: skip

    def groups(self, segments: Tensor, x: Tensor) -> dict[Span, Documents]:
        """What the groups of packed rows see. Arguments as of `documents`."""
        spans = [span for first in (0, self.group_size // 2) for span in self._spans(segments.shape[1], first)]
        return {(start, stop, size): documents(segments[:, start:stop].reshape(-1, size), x)
                for start, stop, size in spans}  # fmt: skip

    def _spans(self, T: int, first: int) -> list[Span]:
        """A group of `first` tokens, then whole ones, then what is left."""
        G, first = self.group_size, min(first, T)
        last = first + (T - first) // G * G
        return [span for span in ((0, first, first), (first, last, G), (last, T, T - last)) if span[1] > span[0]]

    def _in_groups(self, q: Tensor, k: Tensor, v: Tensor, groups: dict[Span, Documents] | None, first: int) -> Tensor:
        spans = self._spans(q.shape[2], first)
        parts = [_apart(q, k, v, None if groups is None else groups[span], span) for span in spans]
        return torch.cat(parts, dim=2)


def _apart(q: Tensor, k: Tensor, v: Tensor, mask: Documents | None, span: Span) -> Tensor:
    """The tokens of a span in groups, each for itself: groups become rows, (B·N, H, size, D)."""
    start, stop, size = span
    B, count = q.shape[0], (stop - start) // size

    def rows(x: Tensor) -> Tensor:
        return x[:, :, start:stop].unflatten(2, (count, size)).transpose(1, 2).flatten(0, 1)

    out = attend_sdpa(rows(q), rows(k), rows(v), mask)  # (B·N, H, size, D)
    return out.unflatten(0, (B, count)).transpose(1, 2).flatten(2, 3)


class FullAttention(Recipe):
    """Every token sees all before it."""

    kind: Literal["full"] = "full"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        return attend_sdpa(q, k, v, mask)
