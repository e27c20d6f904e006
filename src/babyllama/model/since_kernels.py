"""Triton kernels of attention from a first token on (attention.py's `Since`), forward and backward.

FlashAttention-2's way (arXiv 2307.08691): blocks of queries pass over blocks of keys with a running softmax; going
backward the weights are made again from each query's log-sum. What a block skips, and where it need not compare single
pairs, follows from its first tokens alone, as these never fall. Gradients of queries and of keys are launches of their
own, so that nothing is added up in an order that changes from run to run. The oracle is `Since.dense`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = 1.4426950408889634  # exponents are to base 2


@triton.jit
def _softmax(
    out, total, top, q, first, queries, k, v, k_t, v_t, start, stop, T, scale,
    D: tl.constexpr, N: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    """Keys start … stop − 1 into the running output, sum and maximum of a block of queries."""
    d = tl.arange(0, D)
    for n in range(start, stop, N):
        keys = n + tl.arange(0, N)
        if masked:
            key = tl.load(k + keys[None, :] * k_t + d[:, None], mask=keys[None, :] < T, other=0.0)
            value = tl.load(v + keys[:, None] * v_t + d[None, :], mask=keys[:, None] < T, other=0.0)
        else:
            key = tl.load(k + keys[None, :] * k_t + d[:, None])
            value = tl.load(v + keys[:, None] * v_t + d[None, :])
        score = tl.dot(q, key) * scale
        if masked:  # finite: a block in which a query sees nothing weighs 2^0 each, until its own token comes
            score = tl.where((keys[None, :] <= queries[:, None]) & (keys[None, :] >= first[:, None]), score, -1e30)
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weight, 1)
        out = tl.dot(weight.to(value.dtype), value, out * shrink[:, None])
        top = higher
    return out, total, top


@triton.jit
def _attend(
    out, sums, q, k, v, firsts, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, first_b, S, T, H, scale,
    G: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    block, h, b = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    queries, d = block * M + tl.arange(0, M), tl.arange(0, D)
    inside = queries < T
    query = tl.load(q + b * q_b + h * q_h + queries[:, None] * q_t + d[None, :], mask=inside[:, None], other=0.0)
    first = tl.load(firsts + b * first_b + h * S // H * T + queries, mask=inside, other=T - 1)
    k, v = k + b * k_b + h // G * k_h, v + b * v_b + h // G * v_h
    # Keys that some query must not see, those that all see, the diagonal.
    edge = block * M // N * N
    whole = tl.minimum((tl.max(first, 0) + N - 1) // N * N, edge)
    acc, total, top = tl.zeros((M, D), tl.float32), tl.zeros((M,), tl.float32), tl.full((M,), -1e30, tl.float32)
    acc, total, top = _softmax(acc, total, top, query, first, queries, k, v, k_t, v_t, tl.min(first, 0) // N * N, whole,
                               T, scale, D, N, True)  # fmt: skip
    acc, total, top = _softmax(acc, total, top, query, first, queries, k, v, k_t, v_t, whole, edge, T, scale, D, N,
                               False)  # fmt: skip
    acc, total, top = _softmax(acc, total, top, query, first, queries, k, v, k_t, v_t, edge,
                               tl.minimum(block * M + M, T), T, scale, D, N, True)  # fmt: skip
    at = out + ((b * T + queries[:, None]) * H + h) * D + d[None, :]
    tl.store(at, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(sums + (b * H + h) * T + queries, top + tl.log2(total), mask=inside)


@triton.jit
def _to_queries(
    acc, query, grad, log_sum, dot, first, queries, k, v, k_t, v_t, start, stop, T, scale,
    D: tl.constexpr, N: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, D)
    for n in range(start, stop, N):
        keys = n + tl.arange(0, N)
        if masked:
            key = tl.load(k + keys[None, :] * k_t + d[:, None], mask=keys[None, :] < T, other=0.0)
            value = tl.load(v + keys[None, :] * v_t + d[:, None], mask=keys[None, :] < T, other=0.0)
        else:
            key = tl.load(k + keys[None, :] * k_t + d[:, None])
            value = tl.load(v + keys[None, :] * v_t + d[:, None])
        weight = tl.exp2(tl.dot(query, key) * scale - log_sum[:, None])
        if masked:
            weight = tl.where((keys[None, :] <= queries[:, None]) & (keys[None, :] >= first[:, None]), weight, 0.0)
        slope = weight * (tl.dot(grad, value) - dot[:, None])
        acc = tl.dot(slope.to(key.dtype), tl.trans(key), acc)
    return acc


@triton.jit
def _query_gradients(
    out_q, dots, out, grads, sums, q, k, v, firsts, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t,
    first_b, S, T, H, scale, plain, G: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    block, h, b = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    queries, d = block * M + tl.arange(0, M), tl.arange(0, D)
    inside, at = queries < T, (b * H + h) * T + queries
    query = tl.load(q + b * q_b + h * q_h + queries[:, None] * q_t + d[None, :], mask=inside[:, None], other=0.0)
    grad = tl.load(grads + b * g_b + h * g_h + queries[:, None] * g_t + d[None, :], mask=inside[:, None], other=0.0)
    place = ((b * T + queries[:, None]) * H + h) * D + d[None, :]
    result = tl.load(out + place, mask=inside[:, None], other=0.0)
    dot = tl.sum(result.to(tl.float32) * grad.to(tl.float32), 1)
    tl.store(dots + at, dot, mask=inside)  # the keys' gradients need it, too
    log_sum = tl.load(sums + at, mask=inside, other=1e30)
    first = tl.load(firsts + b * first_b + h * S // H * T + queries, mask=inside, other=T - 1)
    k, v = k + b * k_b + h // G * k_h, v + b * v_b + h // G * v_h
    edge = block * M // N * N
    whole = tl.minimum((tl.max(first, 0) + N - 1) // N * N, edge)
    acc = tl.zeros((M, D), tl.float32)
    acc = _to_queries(acc, query, grad, log_sum, dot, first, queries, k, v, k_t, v_t, tl.min(first, 0) // N * N, whole,
                      T, scale, D, N, True)  # fmt: skip
    acc = _to_queries(acc, query, grad, log_sum, dot, first, queries, k, v, k_t, v_t, whole, edge, T, scale, D, N,
                      False)  # fmt: skip
    acc = _to_queries(acc, query, grad, log_sum, dot, first, queries, k, v, k_t, v_t, edge,
                      tl.minimum(block * M + M, T), T, scale, D, N, True)  # fmt: skip
    tl.store(out_q + place, (acc * plain).to(out_q.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _to_keys(
    key_acc, value_acc, key, value, keys, q, grads, sums, dots, firsts, q_t, g_t, start, stop, T, scale,
    D: tl.constexpr, M: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, D)
    for m in range(start, stop, M):
        queries = m + tl.arange(0, M)
        inside = queries < T
        if masked:
            query = tl.load(q + queries[:, None] * q_t + d[None, :], mask=inside[:, None], other=0.0)
            grad = tl.load(grads + queries[:, None] * g_t + d[None, :], mask=inside[:, None], other=0.0)
            log_sum = tl.load(sums + queries, mask=inside, other=1e30)
            dot = tl.load(dots + queries, mask=inside, other=0.0)
        else:
            query = tl.load(q + queries[:, None] * q_t + d[None, :])
            grad = tl.load(grads + queries[:, None] * g_t + d[None, :])
            log_sum, dot = tl.load(sums + queries), tl.load(dots + queries)
        weight = tl.exp2(tl.dot(key, tl.trans(query)) * scale - log_sum[None, :])
        if masked:
            first = tl.load(firsts + queries, mask=inside, other=T)
            weight = tl.where((keys[:, None] <= queries[None, :]) & (keys[:, None] >= first[None, :]), weight, 0.0)
        value_acc = tl.dot(weight.to(grad.dtype), grad, value_acc)
        slope = weight * (tl.dot(value, tl.trans(grad)) - dot[None, :])
        key_acc = tl.dot(slope.to(query.dtype), query, key_acc)
    return key_acc, value_acc


@triton.jit
def _key_gradients(
    out_k, out_v, dots, grads, sums, q, k, v, firsts, stops, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t,
    first_b, S, T, K, scale, plain, G: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    block, head, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    keys, d = block * N + tl.arange(0, N), tl.arange(0, D)
    inside = keys[:, None] < T
    key = tl.load(k + b * k_b + head * k_h + keys[:, None] * k_t + d[None, :], mask=inside, other=0.0)
    value = tl.load(v + b * v_b + head * v_h + keys[:, None] * v_t + d[None, :], mask=inside, other=0.0)
    key_acc, value_acc = tl.zeros((N, D), tl.float32), tl.zeros((N, D), tl.float32)
    for g in range(G):
        h, begin = head * G + g, block * N // M * M
        row = b * first_b + h * S // (K * G) * T
        stop = tl.load(stops + row + tl.minimum(block * N + N, T) - 1)
        edge = tl.minimum((block * N + N + M - 1) // M * M, stop)
        whole = tl.maximum(edge, tl.load(stops + row + block * N) // M * M)
        q_of, g_of, at = q + b * q_b + h * q_h, grads + b * g_b + h * g_h, (b * K * G + h) * T
        # The diagonal, queries that see all of these keys, those that see some.
        key_acc, value_acc = _to_keys(key_acc, value_acc, key, value, keys, q_of, g_of, sums + at, dots + at,
                                      firsts + row, q_t, g_t, begin, edge, T, scale, D, M, True)  # fmt: skip
        key_acc, value_acc = _to_keys(key_acc, value_acc, key, value, keys, q_of, g_of, sums + at, dots + at,
                                      firsts + row, q_t, g_t, edge, whole, T, scale, D, M, False)  # fmt: skip
        key_acc, value_acc = _to_keys(key_acc, value_acc, key, value, keys, q_of, g_of, sums + at, dots + at,
                                      firsts + row, q_t, g_t, whole, stop, T, scale, D, M, True)  # fmt: skip
    place = ((b * T + keys[:, None]) * K + head) * D + d[None, :]
    tl.store(out_k + place, (key_acc * plain).to(out_k.dtype.element_ty), mask=inside)
    tl.store(out_v + place, value_acc.to(out_v.dtype.element_ty), mask=inside)


class Tile(NamedTuple):
    """Queries and keys of a block, and how a kernel of them runs."""

    M: int
    N: int
    num_warps: int
    num_stages: int


# Small enough for any card, and the fastest of nine on an H200 for documents of some 400 tokens (docs/log.md).
OUTPUT, QUERY_GRADIENTS, KEY_GRADIENTS = Tile(64, 32, 4, 3), Tile(64, 32, 4, 3), Tile(32, 64, 4, 3)


def _about(q: Tensor, k: Tensor, first: Tensor) -> dict[str, Any]:
    """What all three kernels are told."""
    (_, H, T, D), S = q.shape, first.shape[1]
    return {"first_b": S * T if first.shape[0] > 1 else 0, "S": S, "T": T, "scale": D**-0.5 * LOG2E,
            "G": H // k.shape[1], "D": D}  # fmt: skip


def _strides(*parts: Tensor) -> tuple[int, ...]:
    return tuple(stride for part in parts for stride in part.stride()[:3])


def _contiguous(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


def forward(q: Tensor, k: Tensor, v: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """q (B, H, T, D), k and v (B, K, T, D), `Since.first` → outputs (B, T, H, D), log-sums (B, H, T) to base 2."""
    q, k, v = _contiguous(q), _contiguous(k), _contiguous(v)
    B, H, T, D = q.shape
    out, sums = q.new_empty(B, T, H, D), q.new_empty(B, H, T, dtype=torch.float32)
    _attend[(triton.cdiv(T, OUTPUT.M), H, B)](
        out, sums, q, k, v, first, *_strides(q, k, v), H=H, **_about(q, k, first), **OUTPUT._asdict()
    )
    return out, sums


def backward(
    grad: Tensor, out: Tensor, sums: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor, stops: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the outputs' gradient (B, H, T, D): those of q, k and v, each (B, T, its heads, D)."""
    grad, q, k, v = _contiguous(grad), _contiguous(q), _contiguous(k), _contiguous(v)
    (B, H, T, D), K = q.shape, k.shape[1]
    of_q, of_k, of_v = q.new_empty(B, T, H, D), q.new_empty(B, T, K, D), q.new_empty(B, T, K, D)
    dots, strides = torch.empty_like(sums), _strides(q, k, v, grad)
    about = {**_about(q, k, first), "plain": D**-0.5}
    _query_gradients[(triton.cdiv(T, QUERY_GRADIENTS.M), H, B)](
        of_q, dots, out, grad, sums, q, k, v, first, *strides, H=H, **about, **QUERY_GRADIENTS._asdict()
    )
    _key_gradients[(triton.cdiv(T, KEY_GRADIENTS.N), K, B)](
        of_k, of_v, dots, grad, sums, q, k, v, first, stops, *strides, K=K, **about, **KEY_GRADIENTS._asdict()
    )
    return of_q, of_k, of_v
