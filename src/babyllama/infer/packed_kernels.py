"""Triton kernels of one decoding step with packed weights, of 4 or 8 bits in groups, for one row or a few.

They are the `FEW` ways of kernels.py and are launched in their places; a weight here is (code − zero) · scale.
A word of a matrix (n, k) holds EACH = 32 / BITS codes of one output; words (k / EACH, n) int32, zeros (k / GROUP, n)
uint8, scales (k / GROUP, n) float16, order (k,) int32: code j is of input order[j] (see quant/linear.py). The oracle is
the model's own forward path. Imported only where there is a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

from babyllama.infer.kernels import _cold, _joined, _keep, _summary, _turned, _wait


@triton.jit
def _held(words, zeros, scales, outputs, there, n, k: tl.constexpr, UNITS: tl.constexpr, BITS: tl.constexpr,
          GROUP: tl.constexpr):  # fmt: skip
    """Words, zeros and scales (R, UNITS) of some outputs (R,), where `there`; scales are zero beyond the matrix."""
    each: tl.constexpr = 32 // BITS
    units = tl.arange(0, UNITS)
    inside = there[:, None] & (units[None, :] * each < k)
    group = (units * each // GROUP)[None, :] * n + outputs[:, None]
    return (tl.load(words + units[None, :] * n + outputs[:, None], mask=inside, other=0),
            tl.load(zeros + group, mask=inside, other=0).to(tl.float32),
            tl.load(scales + group, mask=inside, other=0.0).to(tl.float32))  # fmt: skip


@triton.jit
def _inputs(order, code, k: tl.constexpr, UNITS: tl.constexpr, BITS: tl.constexpr, ORDERED: tl.constexpr):
    """The inputs that code number `code` of each word is of, (UNITS,); k or more where there are none."""
    at = tl.arange(0, UNITS) * (32 // BITS) + code
    if ORDERED:
        return tl.load(order + at, mask=at < k, other=k)
    return at


@triton.jit
def _codes(words, code, BITS: tl.constexpr):
    return ((words >> (code * BITS)) & ((1 << BITS) - 1)).to(tl.float32)


@triton.jit
def _normed(words, zeros, scales, x, norm, order, row, eps, C: tl.constexpr, UNITS: tl.constexpr, BITS: tl.constexpr,
            ORDERED: tl.constexpr):  # fmt: skip
    """Row `row` of x (B, C) → norm → times what `_held` gave: (R,) float32.

    Code by code of all words at once, so that each thread keeps its words and nothing is laid out anew.
    """
    found, total, squares = tl.zeros_like(scales), tl.zeros((UNITS,), tl.float32), tl.zeros((UNITS,), tl.float32)
    for code in tl.static_range(32 // BITS):
        at = _inputs(order, code, C, UNITS, BITS, ORDERED)
        value = tl.load(x + row * C + at, mask=at < C, other=0.0)
        squares += value * value
        value *= tl.load(norm + at, mask=at < C, other=0.0).to(tl.float32)
        total += value
        found += _codes(words, code, BITS) * value[None, :]
    factor = tl.rsqrt(tl.sum(squares, 0) / C + eps)
    return tl.sum((found - zeros * total[None, :]) * scales, 1) * factor


@triton.jit(do_not_specialize=["B"])
def project(x, norm, wq, zq, sq, oq, wk, zk, sk, ok, wv, zv, sv, ov, cos, sin, positions, q, keys, values, B, slots,
            eps, C: tl.constexpr, D: tl.constexpr, H: tl.constexpr, K: tl.constexpr, P: tl.constexpr,
            ROWS: tl.constexpr, UNITS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ORDERED: tl.constexpr,
            EARLY: tl.constexpr):  # fmt: skip
    """As kernels.project."""
    half: tl.constexpr = D // 2
    parts: tl.constexpr = (half + P - 1) // P
    which, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    kind = tl.where(which < H, 0, tl.where(which < H + K, 1, 2))
    head = tl.where(which < H, which, tl.where(which < H + K, which - H, which - H - K))
    w, z, s, o, n = wq, zq, sq, oq, H * D
    if kind == 1:
        w, z, s, o, n = wk, zk, sk, ok, K * D
    if kind == 2:
        w, z, s, o, n = wv, zv, sv, ov, K * D
    pairs = part * P + tl.arange(0, P)
    there, lower = pairs < half, head * D + pairs
    w0, z0, s0 = _held(w, z, s, lower, there, n, C, UNITS, BITS, GROUP)
    w1, z1, s1 = _held(w, z, s, lower + half, there, n, C, UNITS, BITS, GROUP)
    _wait(EARLY)
    for row in tl.static_range(ROWS):
        a = _normed(w0, z0, s0, x, norm, o, row, eps, C, UNITS, BITS, ORDERED)[None, :]
        b = _normed(w1, z1, s1, x, norm, o, row, eps, C, UNITS, BITS, ORDERED)[None, :]
        rows = row + tl.arange(0, 1)
        if kind < 2:
            a, b = _turned(a, b, cos, sin, rows, pairs, B, half)
        _keep(a, b, rows, pairs, kind, head, positions, q, keys, values, B, D, slots, H, K)


@triton.jit
def add(a, peaks, sums, w, zeros, scales, order, x, k: tl.constexpr, C: tl.constexpr, D: tl.constexpr, H: tl.constexpr,
        R: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, BITS: tl.constexpr,
        GROUP: tl.constexpr, ORDERED: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    """As kernels.add."""
    outputs = tl.program_id(0) * R + tl.arange(0, R)
    words, z, s = _held(w, zeros, scales, outputs, outputs < C, C, k, UNITS, BITS, GROUP)
    _wait(EARLY)
    for row in tl.static_range(ROWS):
        found, total = tl.zeros_like(s), tl.zeros((UNITS,), tl.float32)
        for code in tl.static_range(32 // BITS):
            at = _inputs(order, code, k, UNITS, BITS, ORDERED)
            value = _joined(a, peaks, sums, row, at, k, D, H, SPLITS)
            total += value
            found += _codes(words, code, BITS) * value[None, :]
        found = tl.sum((found - z * total[None, :]) * s, 1)
        here = x + row * C + outputs
        tl.store(here, tl.load(here, mask=outputs < C, other=0.0) + found, mask=outputs < C)


@triton.jit
def widen(x, norm, gate, zg, sg, og, up, zu, su, ou, h, eps, C: tl.constexpr, F: tl.constexpr, R: tl.constexpr,
          ROWS: tl.constexpr, UNITS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ORDERED: tl.constexpr,
          EARLY: tl.constexpr):  # fmt: skip
    """As kernels.widen."""
    outputs = tl.program_id(0) * R + tl.arange(0, R)
    w0, z0, s0 = _held(gate, zg, sg, outputs, outputs < F, F, C, UNITS, BITS, GROUP)
    w1, z1, s1 = _held(up, zu, su, outputs, outputs < F, F, C, UNITS, BITS, GROUP)
    _wait(EARLY)
    for row in tl.static_range(ROWS):
        a = _normed(w0, z0, s0, x, norm, og, row, eps, C, UNITS, BITS, ORDERED)
        b = _normed(w1, z1, s1, x, norm, ou, row, eps, C, UNITS, BITS, ORDERED)
        tl.store(h + row * F + outputs, (a * tl.sigmoid(a) * b).to(h.dtype.element_ty), mask=outputs < F)


@triton.jit(do_not_specialize=["B"])
def predict(x, norm, w, zeros, scales, order, rules, logits, best, places, masses, B, V, n, eps, blocks,
            C: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, BITS: tl.constexpr,
            GROUP: tl.constexpr, ORDERED: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    """As kernels.predict; of the matrix's n outputs the first V are tokens."""
    block = tl.program_id(0)
    outputs = block * R + tl.arange(0, R)
    words, z, s = _held(w, zeros, scales, outputs, outputs < V, n, C, UNITS, BITS, GROUP)
    _wait(EARLY)
    for row in tl.static_range(ROWS):
        found = _normed(words, z, s, x, norm, order, row, eps, C, UNITS, BITS, ORDERED)
        tl.store(logits + row * V + outputs, found, mask=outputs < V)
        _summary(found, outputs, V, row, block, _cold(rules, row, B), best, places, masses, blocks)
