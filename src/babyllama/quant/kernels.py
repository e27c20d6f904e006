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

    columns: int = 32
    splits: int = 4
    warps: int = 2
    stages: int = 3


CONFIGS = tuple(Config(columns, splits, columns // 16, stages)
                for columns in (16, 32, 64) for splits in (2, 4, 8) for stages in (3, 4))  # fmt: skip

# Codes i and i + 4 of a word (moved down by 4 · i) as a pair of halves: (code + 2^m) − (zero + 2^m), times the scale.
# In one piece, since a compiler takes the halves apart, which is twice the work.
_HALVES = """{{
    .reg .b32 both, one, none;
    mov.b32 one, {one};
    mov.b32 none, 0x80008000;
    lop3.b32 both, $1, 0x000F000F, {magic}, 0xEA;
    fma.rn.{kind}x2 both, both, one, $2;
    fma.rn.{kind}x2 $0, both, $3, none;
}}"""
HALVES = {torch.bfloat16: _HALVES.format(kind="bf16", one="0x3F803F80", magic="0x43004300"),
          torch.float16: _HALVES.format(kind="f16", one="0x3C003C00", magic="0x64006400")}  # fmt: skip


@triton.jit
def _pairs(halves, run: tl.constexpr):
    """(n,) of 16 bits each → (n, run) int32 that hold each twice."""
    bits = halves.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return tl.broadcast_to(((bits << 16) | bits)[:, None], [halves.shape[0], run])


@triton.jit
def _four(
    out, partial, arrived, x, words, zeros, scales, rows, outputs, inputs, each,
    group: tl.constexpr, halves: tl.constexpr, base: tl.constexpr, n: tl.constexpr, m: tl.constexpr,
    splits: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """Programs: (splits of the inputs, blocks of n columns), `each` segments of 128 inputs; a group is `group` of them.

    Weights are the left operand, which comes from registers, so that they go from shared memory to tensor cores by way
    of nothing but arithmetic. The program of a block that arrives last adds up all splits, always in the same order.
    """
    run: tl.constexpr = 16
    kind: tl.constexpr = out.dtype.element_ty
    split, block = tl.program_id(0), tl.program_id(1)
    column, token = block * n + tl.arange(0, n), tl.arange(0, m)
    live = (token < rows)[None, :]
    place = token[None, :] * outputs + column[:, None]
    first = split * each
    word = words + (first * run + tl.arange(0, run)[None, :]) * outputs + column[:, None]
    value = x + token[None, :] * inputs + first * (8 * run) + tl.arange(0, 8 * run)[:, None]
    total = tl.zeros([n, m], tl.float32)
    for segment in tl.range(0, each, num_stages=stages):
        found = tl.load(word + segment * (run * outputs))
        right = tl.load(value + segment * (8 * run), mask=live, other=0.0)
        row = (first + segment) // group * outputs + column
        z = _pairs((-base - tl.load(zeros + row).to(tl.float32)).to(kind), run)
        s = _pairs(tl.load(scales + row).to(kind), run)
        a = tl.inline_asm_elementwise(halves, "=r,r,r,r", [found, z, s], tl.int32, True, 1)
        b = tl.inline_asm_elementwise(halves, "=r,r,r,r", [found >> 4, z, s], tl.int32, True, 1)
        c = tl.inline_asm_elementwise(halves, "=r,r,r,r", [found >> 8, z, s], tl.int32, True, 1)
        d = tl.inline_asm_elementwise(halves, "=r,r,r,r", [found >> 12, z, s], tl.int32, True, 1)
        both = tl.join(tl.join(a, c), tl.join(b, d))  # (n, run, 2, 2): code 4·h + 2·i + j of a word is half h of [i, j]
        low = both.to(tl.int16).to(kind, bitcast=True)
        high = (both >> 16).to(tl.int16).to(kind, bitcast=True)
        left = tl.reshape(tl.permute(tl.join(low, high), [0, 1, 4, 2, 3]), [n, 8 * run])
        total = tl.dot(left, right, total)
    if splits == 1:
        tl.store(out + place, total.to(kind), mask=live)
    else:
        tl.store(partial + split * rows * outputs + place, total, mask=live)
        tl.debug_barrier()  # every thread's share is written before this program counts
        if tl.atomic_add(arrived + block, 1) == splits - 1:
            total = tl.zeros([n, m], tl.float32)
            for i in tl.static_range(splits):
                total += tl.load(partial + i * rows * outputs + place, mask=live, other=0.0, cache_modifier=".cg")
            tl.store(out + place, total.to(kind), mask=live)
            tl.store(arrived + block, 0)


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


def pick(outputs: int, inputs: int, rows: int) -> Config:
    """The setting of `_four` for a shape."""
    segments = inputs // SEGMENT
    splits = next(splits for splits in (4, 2, 1) if segments % splits == 0)
    return Config(splits=splits, stages=4 if rows <= 8 and outputs <= 4096 else 3)


def suits(outputs: int, inputs: int, bits: int, group_size: int) -> bool:
    """Whether `_four` takes this matrix."""
    whole = group_size % SEGMENT == 0 or group_size >= inputs
    return bits == 4 and whole and inputs % SEGMENT == 0 and outputs % Config().columns == 0


def packed_product(x: Tensor, words: Tensor, zeros: Tensor, scales: Tensor, inputs: int, bits: int, group_size: int,
                   arrived: Tensor, config: Config | None = None) -> Tensor:  # fmt: skip
    """x (rows ≤ 16, K) · packed (N, K)ᵀ → (rows, N): weights are read once and never written dense. Deterministic.

    `_four` rounds scales to x's dtype.

    Args:
        arrived: (N / 16 or more,) int32 zeros on x's device, which stay zeros: one for each matrix, so that products
            of different matrices may run at once.
    """
    x = x.contiguous()
    outputs = words.shape[1]
    if not suits(outputs, inputs, bits, group_size) or x.data_ptr() % 16:
        return _general_product(x, words, zeros, scales, inputs, bits, group_size)
    rows = len(x)
    n, splits, warps, stages = config or pick(outputs, inputs, rows)
    segments, base = inputs // SEGMENT, 128.0 if x.dtype == torch.bfloat16 else 1024.0
    out, partial = torch.empty(rows, outputs, dtype=x.dtype, device=x.device), None
    if splits > 1:
        partial = torch.empty(splits, rows, outputs, device=x.device)
    _four[(splits, outputs // n)](
        out, partial, arrived, x, words, zeros, scales, rows, outputs, inputs, segments // splits,
        group=segments if group_size >= inputs else group_size // SEGMENT, halves=HALVES[x.dtype], base=base, n=n,
        m=8 if rows <= 8 else ROWS, splits=splits, stages=stages, num_warps=warps,
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
