"""Triton kernels of attention from a first token on (attention.py's `Since`), forward and backward.

FlashAttention-2's way (arXiv 2307.08691): blocks of queries pass over blocks of keys with a running softmax; going
backward the weights are made again from each query's log-sum. What a block skips, and where it need not compare single
pairs, follows from its first tokens alone, as these never fall. Gradients of queries and of keys are launches of their
own, so that nothing is added up in an order that changes from run to run. The oracle is `Since.dense`.

Each kernel is one loop with a branch for the blocks whose pairs are compared. With a loop for either kind ptxas lets no
Tensor Core instruction begin before the last one has ended (its C7515): compile, and count WARPGROUP.ARRIVE by HGMMA.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

LOG2E = 1.4426950408889634  # exponents are to base 2
# Finite: a block in which a query sees nothing weighs 2^0 each, until its own token comes. A power of two: times the
# scale it is exact, rounded or not, so that the difference to itself is 0.
UNSEEN = tl.constexpr(-(2.0**100))


@triton.jit
def _rows(x, b, h, start, T, count: tl.constexpr, D: tl.constexpr, hopper: tl.constexpr):
    """Tokens start … start + count − 1 of a head, (count, D); past the end zeros."""
    if hopper:
        rows = x.load([b, h, start, 0]).reshape(count, D)
    else:
        tokens, d = start + tl.arange(0, count), tl.arange(0, D)
        place = b.to(tl.int64) * x[1] + h * x[2] + tokens[:, None] * x[3] + d[None, :]
        rows = tl.load(x[0] + place, mask=tokens[:, None] < T, other=0.0)
    return rows


@triton.jit
def _numbers(x, row, start, T, count: tl.constexpr, hopper: tl.constexpr):
    """Numbers start … start + count − 1 of a row, (1, count); past the end whatever."""
    if hopper:
        numbers = x.load([row, start])
    else:
        places = start + tl.arange(0, count)[None, :]
        numbers = tl.load(x[0] + row.to(tl.int64) * x[1] + places, mask=places < T, other=0.0)
    return numbers


@triton.jit
def _attend(
    out, sums, q, k, v, firsts, first_b, S, T, width, H, scale,
    G: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, hopper: tl.constexpr,
):  # fmt: skip
    block, h, b = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1), tl.program_id(2)
    queries, d = block * M + tl.arange(0, M), tl.arange(0, D)
    inside, row = queries < T, b.to(tl.int64)
    query = _rows(q, b, h, block * M, T, M, D, hopper)
    first = tl.load(firsts + row * first_b + h * S // H * T + queries, mask=inside, other=T - 1)
    # All of these queries see all keys from `whole` up to the diagonal's: only outside of them are pairs compared.
    whole, edge = tl.max(first, 0), block * M // N * N
    acc, total, top = tl.zeros((M, D), tl.float32), tl.zeros((M,), tl.float32), tl.full((M,), UNSEEN, tl.float32)
    for n in range(tl.min(first, 0) // N * N, tl.minimum(block * M + M, T), N):
        key = _rows(k, b, h // G, n, T, N, D, hopper)
        value = _rows(v, b, h // G, n, T, N, D, hopper)
        score = tl.dot(query, key.T)
        if (n < whole) | (n >= edge):
            keys = n + tl.arange(0, N)
            score = tl.where((keys[None, :] <= queries[:, None]) & (keys[None, :] >= first[:, None]), score, UNSEEN)
        higher = tl.maximum(top, tl.max(score, 1) * scale)
        weight = tl.exp2(score * scale - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weight, 1)
        acc = tl.dot(weight.to(value.dtype), value, acc * shrink[:, None])
        top = higher
    at = out + ((row * T + queries[:, None]) * H + h) * D + d[None, :]
    tl.store(at, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(sums + (row * H + h) * width + queries, top + tl.log2(total), mask=inside)


@triton.jit
def _query_gradients(
    out_q, dots, out, grads, sums, q, k, v, firsts, first_b, S, T, width, H, scale, plain,
    G: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, hopper: tl.constexpr,
):  # fmt: skip
    block, h, b = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1), tl.program_id(2)
    queries, d = block * M + tl.arange(0, M), tl.arange(0, D)
    inside, row = queries < T, b.to(tl.int64)
    query, grad = _rows(q, b, h, block * M, T, M, D, hopper), _rows(grads, b, h, block * M, T, M, D, hopper)
    place, at = ((row * T + queries[:, None]) * H + h) * D + d[None, :], (row * H + h) * width + queries
    result = tl.load(out + place, mask=inside[:, None], other=0.0)
    dot = tl.sum(result.to(tl.float32) * grad.to(tl.float32), 1)
    tl.store(dots + at, dot, mask=inside)  # the keys' gradients need it, too
    log_sum = tl.load(sums + at, mask=inside, other=-UNSEEN)
    first = tl.load(firsts + row * first_b + h * S // H * T + queries, mask=inside, other=T - 1)
    whole, edge = tl.max(first, 0), block * M // N * N
    acc = tl.zeros((M, D), tl.float32)
    for n in range(tl.min(first, 0) // N * N, tl.minimum(block * M + M, T), N):
        key = _rows(k, b, h // G, n, T, N, D, hopper)
        value = _rows(v, b, h // G, n, T, N, D, hopper)
        score, change = tl.dot(query, key.T), tl.dot(grad, value.T)
        weight = tl.exp2(score * scale - log_sum[:, None])
        if (n < whole) | (n >= edge):
            keys = n + tl.arange(0, N)
            weight = tl.where((keys[None, :] <= queries[:, None]) & (keys[None, :] >= first[:, None]), weight, 0.0)
        slope = weight * (change - dot[:, None])
        acc = tl.dot(slope.to(key.dtype), key, acc)
    tl.store(out_q + place, (acc * plain).to(out_q.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _key_gradients(
    out_k, out_v, dots, grads, sums, q, k, v, firsts, stops, first_b, S, T, K, scale, plain,
    G: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, hopper: tl.constexpr,
):  # fmt: skip
    block, head, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    keys, d, row = block * N + tl.arange(0, N), tl.arange(0, D), b.to(tl.int64)
    key, value = _rows(k, b, head, block * N, T, N, D, hopper), _rows(v, b, head, block * N, T, N, D, hopper)
    key_acc, value_acc = tl.zeros((N, D), tl.float32), tl.zeros((N, D), tl.float32)
    for g in range(G):
        h = head * G + g
        table = row * first_b + h * S // (K * G) * T
        # From the diagonal's end on, all queries before `whole` see all of these keys.
        edge, whole = block * N + N, tl.load(stops + table + block * N)
        for m in range(block * N // M * M, tl.load(stops + table + tl.minimum(block * N + N, T) - 1), M):
            query, grad = _rows(q, b, h, m, T, M, D, hopper), _rows(grads, b, h, m, T, M, D, hopper)
            log_sum = _numbers(sums, b * K * G + h, m, T, M, hopper)
            dot = _numbers(dots, b * K * G + h, m, T, M, hopper)
            score, change = tl.dot(key, query.T), tl.dot(value, grad.T)
            weight = tl.exp2(score * scale - log_sum)
            if (m < edge) | (m + M > whole):
                queries = m + tl.arange(0, M)
                first = tl.load(firsts + table + queries, mask=queries < T, other=T)
                weight = tl.where((keys[:, None] <= queries[None, :]) & (keys[:, None] >= first[None, :]), weight, 0.0)
            slope = weight * (change - dot)
            value_acc = tl.dot(weight.to(grad.dtype), grad, value_acc)
            key_acc = tl.dot(slope.to(query.dtype), query, key_acc)
    place, inside = ((row * T + keys[:, None]) * K + head) * D + d[None, :], keys[:, None] < T
    tl.store(out_k + place, (key_acc * plain).to(out_k.dtype.element_ty), mask=inside)
    tl.store(out_v + place, value_acc.to(out_v.dtype.element_ty), mask=inside)


class Tile(NamedTuple):
    """Queries and keys of a block, and how a kernel of them runs."""

    M: int
    N: int
    num_warps: int
    num_stages: int


class Tiles(NamedTuple):
    output: Tile
    query_gradients: Tile
    key_gradients: Tile


# SHORT: small enough for any card, and the fastest on an H200 for documents of some 400 tokens. LONG: for groups of
# 2,048 on a Hopper (docs/log.md).
SHORT = Tiles(Tile(64, 32, 4, 3), Tile(64, 32, 4, 3), Tile(32, 64, 4, 3))
LONG = Tiles(Tile(64, 64, 4, 3), Tile(64, 64, 4, 3), Tile(64, 64, 4, 3))


def _hopper(x: Tensor) -> bool:
    nvidia = x.is_cuda and torch.version.hip is None  # AMD's cards have capabilities of their own, also 9
    return nvidia and torch.cuda.get_device_capability(x.device)[0] == 9


def _tiles(q: Tensor, long: bool) -> Tiles:
    return LONG if long and _hopper(q) and q.shape[3] <= 64 else SHORT


def _about(q: Tensor, k: Tensor, first: Tensor) -> dict[str, Any]:
    """What all three kernels are told."""
    (_, H, T, D), S = q.shape, first.shape[1]
    return {"first_b": S * T if first.shape[0] > 1 else 0, "S": S, "T": T, "scale": D**-0.5 * LOG2E,
            "G": H // k.shape[1], "D": D, "hopper": _hopper(q)}  # fmt: skip


def _in_blocks(x: Tensor, *block: int) -> TensorDescriptor | tuple[Any, ...]:
    """A tensor as the kernels read it, in blocks of its last dimension or two: told to Hopper's copying engine, which
    needs no registers for that, or with its strides."""
    if x.stride(-1) != 1 or 0 in x.stride():
        x = x.contiguous()
    if _hopper(x):
        return TensorDescriptor.from_tensor(x, [1] * (x.ndim - len(block)) + list(block))
    return x, *x.stride()[:-1]


def forward(q: Tensor, k: Tensor, v: Tensor, first: Tensor, width: int, long: bool = False) -> tuple[Tensor, Tensor]:
    """q (B, H, T, D), k and v (B, K, T, D), `Since` → outputs (B, T, H, D), log-sums (B, H, width) to base 2."""
    (B, H, T, D), tile = q.shape, _tiles(q, long).output
    out, sums = q.new_empty(B, T, H, D), q.new_empty(B, H, width, dtype=torch.float32)
    _attend[(triton.cdiv(T, tile.M), H, B)](
        out, sums, _in_blocks(q, tile.M, D), _in_blocks(k, tile.N, D), _in_blocks(v, tile.N, D), first,
        width=width, H=H, **_about(q, k, first), **tile._asdict()
    )  # fmt: skip
    return out, sums


def backward(
    grad: Tensor, out: Tensor, sums: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor, stops: Tensor,
    long: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Of the outputs' gradient (B, H, T, D): those of q, k and v, each (B, T, its heads, D)."""
    (B, H, T, D), K = q.shape, k.shape[1]
    of_q, of_k, of_v = q.new_empty(B, T, H, D), q.new_empty(B, T, K, D), q.new_empty(B, T, K, D)
    dots = torch.zeros_like(sums)  # also past the end, where a weight of 0 multiplies it
    about = {**_about(q, k, first), "plain": D**-0.5}
    _, mine, its = _tiles(q, long)
    _query_gradients[(triton.cdiv(T, mine.M), H, B)](
        of_q, dots, out, _in_blocks(grad, mine.M, D), sums, _in_blocks(q, mine.M, D), _in_blocks(k, mine.N, D),
        _in_blocks(v, mine.N, D), first, width=sums.shape[2], H=H, **about, **mine._asdict()
    )  # fmt: skip
    _key_gradients[(triton.cdiv(T, its.N), K, B)](
        of_k, of_v, _in_blocks(dots.flatten(0, 1), its.M), _in_blocks(grad, its.M, D),
        _in_blocks(sums.flatten(0, 1), its.M), _in_blocks(q, its.M, D), _in_blocks(k, its.N, D),
        _in_blocks(v, its.N, D), first, stops, K=K, **about, **its._asdict()
    )  # fmt: skip
    return of_q, of_k, of_v
