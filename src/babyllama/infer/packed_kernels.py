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
def _product(words, zeros, scales, value, UNITS: tl.constexpr, BITS: tl.constexpr):
    """What `_held` gave times `value` (UNITS · EACH,), in the order of the codes: (R,) float32."""
    each: tl.constexpr = 32 // BITS
    value = tl.reshape(value, (UNITS, each))
    codes = (words[:, :, None] >> (tl.arange(0, each) * BITS)[None, None, :]) & ((1 << BITS) - 1)
    found = tl.sum(codes.to(tl.float32) * value[None, :, :], 2) - zeros * tl.sum(value, 1)[None, :]
    return tl.sum(found * scales, 1)


@triton.jit
def _inputs(order, k: tl.constexpr, UNITS: tl.constexpr, BITS: tl.constexpr, ORDERED: tl.constexpr):
    """The inputs that the codes are of; k beyond them."""
    at = tl.arange(0, UNITS * (32 // BITS))
    if ORDERED:
        return tl.load(order + at, mask=at < k, other=k)
    return at


@triton.jit
def _normed(x, norm, at, row, eps, C: tl.constexpr):
    """Row `row` of x (B, C) → norm, at some inputs."""
    value = tl.load(x + row * C + at, mask=at < C, other=0.0)
    gain = tl.load(norm + at, mask=at < C, other=0.0).to(tl.float32)
    return value * tl.rsqrt(tl.sum(value * value) / C + eps) * gain


@triton.jit(do_not_specialize=["B"])
def project(x, norm, wq, zq, sq, oq, wk, zk, sk, ok, wv, zv, sv, ov, cos, sin, positions, q, keys, values, B, slots,
            eps, C: tl.constexpr, D: tl.constexpr, H: tl.constexpr, K: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr,
            UNITS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ORDERED: tl.constexpr,
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
    at = _inputs(o, C, UNITS, BITS, ORDERED)
    _wait(EARLY)
    for row in tl.static_range(ROWS):
        value = _normed(x, norm, at, row, eps, C)
        a = _product(w0, z0, s0, value, UNITS, BITS)[None, :]
        b = _product(w1, z1, s1, value, UNITS, BITS)[None, :]
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
    at = _inputs(order, k, UNITS, BITS, ORDERED)
    _wait(EARLY)
    for row in tl.static_range(ROWS):
        found = _product(words, z, s, _joined(a, peaks, sums, row, at, k, D, H, SPLITS), UNITS, BITS)
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
    first, second = _inputs(og, C, UNITS, BITS, ORDERED), _inputs(ou, C, UNITS, BITS, ORDERED)
    _wait(EARLY)
    for row in tl.static_range(ROWS):
        a = _product(w0, z0, s0, _normed(x, norm, first, row, eps, C), UNITS, BITS)
        b = _product(w1, z1, s1, _normed(x, norm, second, row, eps, C), UNITS, BITS)
        tl.store(h + row * F + outputs, (a * tl.sigmoid(a) * b).to(h.dtype.element_ty), mask=outputs < F)


@triton.jit(do_not_specialize=["B"])
def predict(x, norm, w, zeros, scales, order, rules, logits, best, places, masses, B, V, n, eps, blocks,
            C: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, BITS: tl.constexpr,
            GROUP: tl.constexpr, ORDERED: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    """As kernels.predict; of the matrix's n outputs the first V are tokens."""
    block = tl.program_id(0)
    outputs = block * R + tl.arange(0, R)
    words, z, s = _held(w, zeros, scales, outputs, outputs < V, n, C, UNITS, BITS, GROUP)
    at = _inputs(order, C, UNITS, BITS, ORDERED)
    _wait(EARLY)
    for row in tl.static_range(ROWS):
        found = _product(words, z, s, _normed(x, norm, at, row, eps, C), UNITS, BITS)
        tl.store(logits + row * V + outputs, found, mask=outputs < V)
        _summary(found, outputs, V, row, block, _cold(rules, row, B), best, places, masses, blocks)
