"""Both attend functions against softmax attention typed here with loops, in float64. Known fault 12: GQA's layout."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from babyllama.model.attention import Documents, _blocks, attend_eager, attend_sdpa, documents

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
    torch.testing.assert_close(attend(q, k, v, documents(segments, q)), expected, rtol=0, atol=1e-5)


def test_documents_by_hand():
    rows = ["10000", "11000", "00100", "00110", "00001"]
    expected = torch.tensor([[mark == "1" for mark in row] for row in rows])[None, None]
    assert torch.equal(documents(torch.tensor([[0, 0, 1, 1, 2]]), torch.zeros(1)).dense, expected)


def documents_of(T, rows, seed=0, often=0.01):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, T, generator=generator) < often).long().cumsum(1)


@pytest.mark.parametrize("T", [1, 128, 300, 1024])
def test_blocks_hold_every_pair_that_is_seen(T):
    """Blocks in neither list hold none, those of the second list nothing else; as many as torch finds by looking."""
    from torch.nn.attention.flex_attention import create_block_mask

    segments = documents_of(T, 3)
    segments[2] = 7  # one document
    blocks, dense = _blocks(segments), documents(segments, segments).dense[:, 0]
    N = -(-T // 128)
    seen = torch.nn.functional.pad(dense, (0, N * 128 - T) * 2).unflatten(2, (N, 128)).unflatten(1, (N, 128))
    any_, all_ = seen.any(4).any(2), seen.all(4).all(2)
    some = listed(blocks.kv_num_blocks, blocks.kv_indices)
    whole = listed(blocks.full_kv_num_blocks, blocks.full_kv_indices)
    assert torch.equal(some | whole, any_)
    assert not (some & whole).any()
    assert torch.equal(whole, all_)
    looked = create_block_mask(lambda b, _, q, k: dense[b, q, k], 3, None, T, T, device="cpu")
    assert torch.equal(blocks.to_dense(), looked.to_dense())


def test_blocks_of_documents_in_any_order_are_all_there():
    """Numbers that come back after others: a block too many is allowed, one too few is not."""
    segments = torch.tensor([[3] * 100 + [1] * 200 + [3] * 84, [1] * 200 + [0] * 184])
    blocks, dense = _blocks(segments), documents(segments, segments).dense[:, 0]
    seen = dense.unflatten(2, (3, 128)).unflatten(1, (3, 128))
    some = listed(blocks.kv_num_blocks, blocks.kv_indices)
    whole = listed(blocks.full_kv_num_blocks, blocks.full_kv_indices)
    assert not (seen.any(4).any(2) & ~(some | whole)).any()
    assert not (whole & ~seen.all(4).all(2)).any()


def listed(counts, indices):
    """(B, 1, N), (B, 1, N, N) → (B, N, N) bool."""
    N = indices.shape[-1]
    found = torch.zeros(len(counts), N, N, dtype=torch.bool)
    for b, i in np.ndindex(len(counts), N):
        found[b, i, indices[b, 0, i, : counts[b, 0, i]]] = True
    return found


def test_what_is_compiled_alone_attends_by_blocks_and_is_compiled_once():
    """As in several processes, where the mask is made outside of what is compiled: new documents are no new code."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    attend = torch.compile(lambda q, k, v, mask: attend_sdpa(q, k, v, mask), backend=counter, dynamic=False)
    q, k, v = random_qkv(2, 200, 200)
    for seed in range(2):
        segments = documents_of(200, B, seed, often=0.05)
        found = attend(q, k, v, Documents(segments, _blocks(segments)))
        expected = attend_eager(q, k, v, documents(segments, q))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert counter.frame_count == 1
    assert any("flex_attention" in str(node.target) for graph in counter.graphs for node in graph.graph.nodes)


@ATTEND
def test_low_precision_stays_close(attend):
    q, k, v = random_qkv(2, 9, 9)
    low = attend(*(x.bfloat16() for x in (q, k, v)), None)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), reference(q, k, v, lambda _b, t, s: s <= t), rtol=0, atol=0.1)
