"""Both attend functions against softmax attention typed here with loops, in float64. Known fault 12: GQA's layout."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from babyllama.model import attention
from babyllama.model.attention import ShiftedSparse, attend_eager, attend_sdpa, documents, documents_for

B, H, D = 2, 4, 6
ATTEND = pytest.mark.parametrize("attend", [attend_sdpa, attend_eager])
HEADS = pytest.mark.parametrize("kv_heads", [4, 2, 1], ids=["mha", "gqa", "mqa"])


def reference(q, k, v, visible):
    """One query at a time; query head h reads key head h // (H / K): consecutive query heads share one."""
    q, k, v = (x.double().numpy() for x in (q, k, v))
    out = np.zeros_like(q)
    for b, h, t in np.ndindex(*q.shape[:3]):
        head = h // (q.shape[1] // k.shape[1])
        seen = [s for s in range(k.shape[2]) if visible(b, t, s)]
        scores = np.array([q[b, h, t] @ k[b, head, s] / math.sqrt(D) for s in seen])
        weights = np.exp(scores - scores.max())
        out[b, h, t] = (weights / weights.sum()) @ v[b, head, seen]
    return torch.from_numpy(out).float()


def random_qkv(kv_heads, T, S):
    generator = torch.Generator().manual_seed(kv_heads)
    shapes = ((B, H, T, D), (B, kv_heads, S, D), (B, kv_heads, S, D))
    return [2 * torch.randn(shape, generator=generator) for shape in shapes]


@ATTEND
@HEADS
def test_causal_square(attend, kv_heads):
    q, k, v = random_qkv(kv_heads, 9, 9)
    expected = reference(q, k, v, lambda _b, t, s: s <= t)
    torch.testing.assert_close(attend(q, k, v, None), expected, rtol=0, atol=1e-5)


@ATTEND
@HEADS
@pytest.mark.parametrize("T", [1, 3])
def test_masked_rectangle(attend, kv_heads, T):
    """Cached decoding's shape: few queries, many keys, a different number visible in each row."""
    q, k, v = random_qkv(kv_heads, T, 8)
    first = torch.tensor([2, 5])
    mask = torch.arange(8)[None, None, None, :] <= (first[:, None] + torch.arange(T))[:, None, :, None]
    expected = reference(q, k, v, lambda b, t, s: s <= first[b] + t)
    torch.testing.assert_close(attend(q, k, v, mask), expected, rtol=0, atol=1e-5)


@ATTEND
@HEADS
def test_segments(attend, kv_heads):
    q, k, v = random_qkv(kv_heads, 7, 7)
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [4, 5, 5, 5, 5, 5, 5]])
    expected = reference(q, k, v, lambda b, t, s: s <= t and segments[b, s] == segments[b, t])
    torch.testing.assert_close(attend(q, k, v, documents(segments)), expected, rtol=0, atol=1e-5)


def test_documents_by_hand():
    rows = ["10000", "11000", "00100", "00110", "00001"]
    expected = torch.tensor([[mark == "1" for mark in row] for row in rows])[None, None]
    assert torch.equal(documents(torch.tensor([[0, 0, 1, 1, 2]])).dense(1), expected)


def test_the_compiler_is_told_what_the_kernels_return():
    with FakeTensorMode():
        q, first = torch.empty(2, 4, 33, 16), torch.empty(1, 1, 33, dtype=torch.int32)
        out, sums = attention._forward(q, q[:, :2], q[:, :2], first, False)
    assert out.shape == (2, 33, 4, 16) and sums.shape == (2, 4, attention.sums_width(33)) == (2, 4, 36)


def test_where_a_mask_ends_for_each_token():
    """Counted pair by pair, of documents alone and inside of S²-Attn's groups: the query after a token's last one."""
    segments = (torch.rand(3, 40, generator=torch.Generator().manual_seed(0)) < 0.1).long().cumsum(1)
    for mask in (documents(segments), documents_for(ShiftedSparse(group_size=12), segments)):
        seen = mask.dense(4)
        last = (seen * torch.arange(1, 41)[:, None]).amax(2)  # (B, 1 or heads, T)
        assert torch.equal(last if last.shape[1] == 1 else last[:, ::2], mask.stops)


@ATTEND
def test_low_precision_stays_close(attend):
    q, k, v = random_qkv(2, 9, 9)
    low = attend(*(x.bfloat16() for x in (q, k, v)), None)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), reference(q, k, v, lambda _b, t, s: s <= t), rtol=0, atol=0.1)
