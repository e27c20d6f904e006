"""Attend functions and the key-value cache.

An attend function maps queries (B, H, T, D), keys and values (B, K, S, D) and a mask to (B, H, T, D). `mask` is a
boolean (B, 1, T, S), True where a query may look, or None for "causal over a square" (T = S, nothing cached).
Not here: projections, RoPE's formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from babyllama.model.config import ModelConfig

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's fused attention, whichever backend it finds best."""
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)


def attend_eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The definition, written out: softmax(q·kᵀ/√D)·v. The reference that `attend_sdpa` is tested against."""
    B, H, T, D = q.shape
    K, S = k.shape[1], k.shape[2]
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()[None, None]
    q = q.view(B, K, H // K, T, D)  # query heads h·G … h·G+G−1 share key head h
    scores = torch.einsum("bkgtd,bksd->bkgts", q, k) / math.sqrt(D)
    weights = scores.float().masked_fill(~mask[:, :, None], -math.inf).softmax(-1).to(v.dtype)
    return torch.einsum("bkgts,bksd->bkgtd", weights, v).reshape(B, H, T, D)


def segment_mask(segments: Tensor) -> Tensor:
    """(B, T) document numbers → (B, 1, T, T): causal, and only inside one's own document."""
    T = segments.shape[1]
    same = segments[:, None, :, None] == segments[:, None, None, :]
    return same & torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()


class KVCache:
    """Keys and values of every layer, at slot = position: rows of different length share one batch.

    A slot that a row has not reached yet holds garbage which the mask hides (key position > query position), so
    right-padded prompts need no other bookkeeping: decoding overwrites the padding.

    Args:
        rotated: True keeps keys after RoPE (static laws: nothing to redo). False keeps them before it, and every
            read rotates them anew, which laws whose frequencies change with the length need.
    """

    def __init__(self, config: ModelConfig, batch: int, max_tokens: int, device: torch.device | str,
                 dtype: torch.dtype, rotated: bool = True) -> None:  # fmt: skip
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, max_tokens, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.max_tokens, self.rotated = max_tokens, rotated
        self.used = 0  # slots that any row has written: what attention has to read

    def reserve(self, end: int) -> None:
        """Announce that slots below `end` are about to be written. Raises ValueError beyond max_tokens."""
        if end > self.max_tokens:
            raise ValueError(f"the cache holds {self.max_tokens} tokens, {end} are asked for")
        self.used = max(self.used, end)

    def mask(self, positions: Tensor) -> Tensor:
        """positions (B, T) → (B, 1, T, used): a query sees the slots at or before its own position."""
        slots = torch.arange(self.used, device=positions.device)
        return slots[None, None, None, :] <= positions[:, None, :, None]

    def key_positions(self, device: torch.device) -> Tensor:
        """(1, used): the position that each slot stands for."""
        return torch.arange(self.used, device=device)[None]

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, K, T, D) at positions (B, T); return all used slots, (B, K, used, D) each."""
        rows = torch.arange(k.shape[0], device=k.device)[:, None]
        self.keys[layer][rows, :, positions] = k.transpose(1, 2)
        self.values[layer][rows, :, positions] = v.transpose(1, 2)
        return self.keys[layer, :, :, : self.used], self.values[layer, :, :, : self.used]
