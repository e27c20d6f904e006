"""Triton kernels of packed weights for few rows. Their twin is linear.py's dense product, the oracle and a CPU's way.

Imported only where there is a GPU: Triton does not come with every PyTorch. `_four` is for what decoding mostly is, 4
bits in groups of whole segments; `_product` takes all else. `pick` chooses by the measurements of bench/quantise.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from babyllama.quant.packing import unit

RUN = 16  # units of words that a program takes at a time: the least inner dimension of a tensor core's product
ROWS = 16  # as many rows of x; fewer are filled up
MAGIC = {torch.bfloat16: (0x4300, 4), torch.float16: (0x6400, 8)}  # 2^m whose mantissa's low bits count in ones; bits
SEGMENT = 8 * RUN  # inputs, of `_four`
COLUMNS, PROGRAMS = (32, 64), 528  # of `_product`: 4 programs for each of an H100's multiprocessors


class Config(NamedTuple):
    """Of `_four`: columns of a program; splits of the inputs, a program each."""

    columns: int = 64
    splits: int = 8
    stages: int = 3


CONFIGS = tuple(Config(columns, splits, stages) for columns in (32, 64) for splits in (4, 8) for stages in (2, 3, 4))

# Codes i and i + 4 of a word (moved down by 4 · i) as a pair of halves: (code + 2^m) − (zero + 2^m), which is exact.
# In one piece, since a compiler takes the halves apart, which is twice the work.
_HALVES = """{{
    .reg .b32 both, one;
    mov.b32 one, {one};
    lop3.b32 both, $1, 0x000F000F, {magic}, 0xEA;
    fma.rn.{kind}x2 $0, both, one, $2;
}}"""
HALVES = {torch.bfloat16: _HALVES.format(kind="bf16", one="0x3F803F80", magic="0x43004300"),
          torch.float16: _HALVES.format(kind="f16", one="0x3C003C00", magic="0x64006400")}  # fmt: skip


@triton.jit
def _fragment(of, n: tl.constexpr, run: tl.constexpr):
    """(n, run), rows in the order in which a thread that holds rows g and g + 8 of 16 has read neighbours."""
    return tl.reshape(tl.permute(tl.reshape(of, [n // 16, 8, 2, run]), [0, 2, 1, 3]), [n, run])


@triton.jit
def _vector(of, n: tl.constexpr):
    """(n,) in the order of `_fragment`."""
    return tl.reshape(_fragment(of, n, 1), [n])


@triton.jit
def _column(n: tl.constexpr):
    """(n,): which column is a row of `_fragment`."""
    row = tl.arange(0, n)
    return row // 16 * 16 + row % 8 * 2 + row // 8 % 2


@triton.jit
def _left(words, zeros, halves: tl.constexpr, base: tl.constexpr, kind: tl.constexpr, n: tl.constexpr):
    """Words (n, 16) and zeros (n,) → code − zero (n, 128), inputs as `_right` has them."""
    run: tl.constexpr = 16
    found = _fragment(words, n, run)
    less = (-base - _vector(zeros, n).to(tl.float32)).to(kind)
    bits = less.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    less = tl.broadcast_to(((bits << 16) | bits)[:, None], [n, run])  # of 16 bits, twice
    a = tl.inline_asm_elementwise(halves, "=r,r,r", [found, less], tl.int32, True, 1)
    b = tl.inline_asm_elementwise(halves, "=r,r,r", [found >> 4, less], tl.int32, True, 1)
    c = tl.inline_asm_elementwise(halves, "=r,r,r", [found >> 8, less], tl.int32, True, 1)
    d = tl.inline_asm_elementwise(halves, "=r,r,r", [found >> 12, less], tl.int32, True, 1)
    pairs = tl.join(tl.join(a, c), tl.join(b, d))  # (n, run, 2, 2): [i, j] is code 2·i + j and, above it, that + 4
    low = pairs.to(tl.int16).to(kind, bitcast=True)
    high = (pairs >> 16).to(tl.int16).to(kind, bitcast=True)
    return tl.reshape(tl.join(low, high), [n, 8 * run])


@triton.jit
def _right(x, m: tl.constexpr):
    """(128, m): of every eight inputs 0 4 1 5 2 6 3 7. Fewer values to move than the weights are."""
    return tl.reshape(tl.permute(tl.reshape(x, [16, 2, 4, m]), [0, 2, 1, 3]), [128, m])


@triton.jit
def _four(
    out, partial, arrived, x, words, zeros, scales, rows, outputs, inputs, each,
    group: tl.constexpr, halves: tl.constexpr, base: tl.constexpr, n: tl.constexpr, m: tl.constexpr,
    splits: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """Programs: (splits of the inputs, blocks of 2·n columns). `each` segments of 128 inputs a split, `group` a group.

    Weights are the left operand, which comes from registers: they go from memory to shared memory in 16 bytes a thread
    and on to tensor cores by way of nothing but arithmetic. Two products share their rows of x. Scales are for sums and
    are read a segment ahead. The program of a block that arrives last adds up all splits, always in the same order.
    """
    kind: tl.constexpr = out.dtype.element_ty
    split, block = tl.program_id(0), tl.program_id(1)
    column, token = block * (2 * n) + tl.arange(0, n), tl.arange(0, m)
    live = (token < rows)[None, :]
    first = split * each
    word = words + (first * 16 + tl.arange(0, 16)[None, :]) * outputs + column[:, None]
    value = x + token[None, :] * inputs + first * 128 + tl.arange(0, 128)[:, None]
    total = tl.zeros([n, m], tl.float32)
    other = tl.zeros([n, m], tl.float32)  # of the n columns beside
    scale = scales + column
    s = tl.load(scale + first // group * outputs)
    t = tl.load(scale + first // group * outputs + n)
    for segment in tl.range(0, each, num_stages=stages):
        found, beside = tl.load(word + segment * (16 * outputs)), tl.load(word + segment * (16 * outputs) + n)
        zero = zeros + (first + segment) // group * outputs + column
        left = _left(found, tl.load(zero), halves, base, kind, n)
        more = _left(beside, tl.load(zero + n), halves, base, kind, n)
        right = _right(tl.load(value + segment * 128, mask=live, other=0.0), m)
        total += tl.dot(left, right) * _vector(s, n).to(tl.float32)[:, None]
        other += tl.dot(more, right) * _vector(t, n).to(tl.float32)[:, None]
        after = (first + tl.minimum(segment + 1, each - 1)) // group * outputs
        s, t = tl.load(scale + after), tl.load(scale + after + n)
    place = out + token[None, :] * outputs + (block * (2 * n) + _column(n))[:, None]
    if splits > 1:
        size = tl.num_programs(1) * (2 * n * m)
        share = partial + block * (2 * n * m) + tl.arange(0, n)[:, None] * m + token[None, :]
        tl.store(share + split * size, total)
        tl.store(share + split * size + n * m, other)
        tl.debug_barrier()  # every thread's share is written before this program counts
        if tl.atomic_add(arrived + block, 1) < splits - 1:
            return
        total = tl.zeros([n, m], tl.float32)
        other = tl.zeros([n, m], tl.float32)
        for i in tl.static_range(splits):
            total += tl.load(share + i * size, cache_modifier=".cg")
            other += tl.load(share + i * size + n * m, cache_modifier=".cg")
        tl.store(arrived + block, 0)
    tl.store(place, total.to(kind), mask=live)
    tl.store(place + n, other.to(kind), mask=live)


@triton.jit
def _product(
    out, x, words, zeros, scales, rows, outputs, inputs, group, segments, each,
    bits: tl.constexpr, values: tl.constexpr, unit_words: tl.constexpr, n: tl.constexpr, magic: tl.constexpr,
    base: tl.constexpr, whole: tl.constexpr, run: tl.constexpr, m: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """Programs: (blocks of columns, splits of the segments). A segment is `run` units; out is (splits, rows, N)."""
    column = tl.program_id(0) * n + tl.arange(0, n)
    inside = column < outputs
    lane, token = tl.arange(0, run), tl.arange(0, m)
    kind: tl.constexpr = x.dtype.element_ty
    start = tl.program_id(1) * each
    total = tl.zeros([m, n], tl.float32)
    for segment in tl.range(start, tl.minimum(start + each, segments), num_stages=stages):
        number = segment * run + lane  # of the unit
        here = (number * values < inputs)[:, None] & inside[None, :]
        if whole:  # one group for the whole segment
            place = (segment * (run * values) // group) * outputs + column
            s = tl.load(scales + place, mask=inside, other=0.0).to(tl.float32)[None, :]
            z = (tl.load(zeros + place, mask=inside, other=0).to(tl.float32) + base).to(kind)[None, :]
            part = tl.zeros([m, n], tl.float32)
        else:
            place = (number * values // group)[:, None] * outputs + column[None, :]
            s = tl.load(scales + place, mask=here, other=0.0).to(tl.float32)
            z = tl.load(zeros + place, mask=here, other=0).to(tl.float32)
        first = words + (number * unit_words)[:, None] * outputs + column[None, :]
        for i in tl.static_range(values):
            found = tl.load(first + (i * bits // 32) * outputs, mask=here, other=0)
            code = (found >> (i * bits % 32)) & ((1 << bits) - 1)
            if i * bits % 32 + bits > 32:  # the rest is in the next word; the shift has brought copies of the sign
                above = tl.load(first + (i * bits // 32 + 1) * outputs, mask=here, other=0)
                low = (found >> (i * bits % 32)) & ((1 << (32 - i * bits % 32)) - 1)
                code = (low | (above << (32 - i * bits % 32))) & ((1 << bits) - 1)
            if magic and whole:
                weight = (code | magic).to(tl.int16).to(kind, bitcast=True) - z
            elif whole:
                weight = code.to(kind) - z
            else:
                weight = ((code.to(tl.float32) - z) * s).to(kind)
            k = number * values + i
            left = tl.load(x + token[:, None] * inputs + k[None, :],
                           mask=(token < rows)[:, None] & (k < inputs)[None, :], other=0.0)  # fmt: skip
            if whole:
                part = tl.dot(left, weight, part)
            else:
                total = tl.dot(left, weight, total)
        if whole:
            total += part * s
    target = tl.program_id(1) * rows * outputs + token[:, None] * outputs + column[None, :]
    tl.store(out + target, total.to(out.dtype.element_ty), mask=(token < rows)[:, None] & inside[None, :])


def pick(outputs: int, inputs: int) -> Config:
    """The setting of `_four` for a shape."""
    segments = inputs // SEGMENT
    splits = next(splits for splits in (8, 4, 2, 1) if segments % splits == 0)
    return Config(columns=64 if outputs % 64 == 0 else 32, splits=splits)


def suits(outputs: int, inputs: int, bits: int, group_size: int) -> bool:
    """Whether `_four` takes this matrix."""
    whole = group_size % SEGMENT == 0 or group_size >= inputs
    return bits == 4 and whole and inputs % SEGMENT == 0 and outputs % 32 == 0


def packed_product(x: Tensor, words: Tensor, zeros: Tensor, scales: Tensor, inputs: int, bits: int, group_size: int,
                   arrived: Tensor, config: Config | None = None) -> Tensor:  # fmt: skip
    """x (rows ≤ 16, K) · packed (N, K)ᵀ → (rows, N): weights are read once and never written dense. Deterministic.

    Args:
        arrived: (N / 32 or more,) int32 zeros on x's device, which stay zeros: one for each matrix, so that products
            of different matrices may run at once.
    """
    x = x.contiguous()
    outputs = words.shape[1]
    if not suits(outputs, inputs, bits, group_size) or x.data_ptr() % 16:
        return _general_product(x, words, zeros, scales, inputs, bits, group_size)
    rows, segments = len(x), inputs // SEGMENT
    columns, splits, stages = config or pick(outputs, inputs)
    m, blocks, base = 8 if rows <= 8 else ROWS, outputs // columns, 128.0 if x.dtype == torch.bfloat16 else 1024.0
    out, partial = torch.empty(rows, outputs, dtype=x.dtype, device=x.device), None
    if splits > 1:
        partial = torch.empty(splits * m * outputs, device=x.device)
    _four[(splits, blocks)](
        out, partial, arrived, x, words, zeros, scales, rows, outputs, inputs, segments // splits,
        group=segments if group_size >= inputs else group_size // SEGMENT, halves=HALVES[x.dtype], base=base,
        n=columns // 2, m=m, splits=splits, stages=stages, num_warps=columns // 32,
    )  # fmt: skip
    return out


def _general_product(x: Tensor, words: Tensor, zeros: Tensor, scales: Tensor, inputs: int, bits: int, group_size: int
                     ) -> Tensor:  # fmt: skip
    """As `packed_product`, for any bits and groups that linear.py sends."""
    rows, outputs = len(x), words.shape[1]
    values, unit_words = unit(bits)
    n = COLUMNS[outputs >= 2048]
    segments, blocks = triton.cdiv(inputs, RUN * values), triton.cdiv(outputs, n)
    each = triton.cdiv(segments, max(1, min(segments, PROGRAMS // blocks)))
    splits = triton.cdiv(segments, each)
    whole = group_size % (RUN * values) == 0 or group_size >= inputs
    magic, fits = MAGIC[x.dtype]
    magic = magic if bits <= fits else 0
    base = {0x4300: 128.0, 0x6400: 1024.0, 0: 0.0}[magic]
    out = torch.empty(splits, rows, outputs, dtype=torch.float32 if splits > 1 else x.dtype, device=x.device)
    _product[(blocks, splits)](
        out, x, words, zeros, scales, rows, outputs, inputs, group_size, segments, each, bits=bits, values=values,
        unit_words=unit_words, n=n, magic=magic, base=base, whole=whole, run=RUN, m=ROWS, stages=4, num_warps=4,
    )  # fmt: skip
    return out.sum(0, dtype=torch.float32).to(x.dtype) if splits > 1 else out[0]
