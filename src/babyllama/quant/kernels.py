"""Triton kernels of packed weights. Their twins, oracles and a CPU's way, are in linear.py and its like.

Imported only where there is a GPU: Triton does not come with every PyTorch. `_four` is for what decoding mostly is, 4
bits in groups of 32, 64 or 128s; it is written in Gluon, Triton's own language in which a program says what each thread
holds. `_product` takes all other codes in groups, `_unpack` writes a dense matrix, for more rows, `_eight` is for
int8.py, `_one` for onebit.py. `pick` chooses by the measurements of bench/quantise.py. In one file although it is
long: the kernels share the constants above them and the tricks that turn codes into halves, and are measured and
chosen side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from babyllama.quant.packing import unit

RUN = 16  # units of words that a program takes at a time: the least inner dimension of a tensor core's product
ROWS = 16  # as many rows of x; fewer are filled up
MAGIC = {torch.bfloat16: (0x4300, 4), torch.float16: (0x6400, 8)}  # 2^m whose mantissa's low bits count in ones; bits
SEGMENTS = (128, 64, 32)  # inputs that `_four` takes at a time
REGISTERS = 128  # of a thread of `_four`: 16 warps fit; without a limit the compiler saves them, and loads late
COLUMNS, PROGRAMS = (32, 64), 528  # of `_product`: 4 programs for each of an H100's multiprocessors


class Config(NamedTuple):
    """Of `_four`: warps of a program, which share out the inputs; how many 128s each takes in a turn of its loop."""

    warps: int = 16
    unroll: int = 2


CONFIGS = tuple(Config(warps, unroll) for warps in (4, 8, 16) for unroll in (1, 2, 4))


class Block(NamedTuple):
    """Of `_eight` and `_one`: columns of a program, what it takes of a column in one turn of its loop, turns ahead."""

    columns: int
    run: int
    stages: int


EIGHT, ONE = Block(16, 512, 3), Block(16, 8, 3)
ROUND = tl.constexpr(1.5 * 2**23)  # plus and minus it a float32 is a whole number, the even one of two as near

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


@gluon.constexpr_function
def _bases(axis, *powers):
    """Of a layout over three axes: how each bit of a register's, lane's or warp's number moves along one of them."""
    return [[power if axis == other else 0 for other in range(3)] for power in powers]


@gluon.constexpr_function
def _powers(n):
    return [1 << bit for bit in range(n.bit_length() - 1)]


@gluon.constexpr_function
def _words(warps, units):
    """(warps, units, 32 columns), a unit being a word's 8 inputs. Lane 4·g + t has columns 4·g + (0 1 2 3), which are
    16 bytes, of units t, t + 4 and so on."""
    return gl.DistributedLinearLayout(_bases(2, 1, 2) + _bases(1, *_powers(units)[2:]),
                                      _bases(1, 1, 2) + _bases(2, 4, 8, 16), _bases(0, *_powers(warps)), [],
                                      [warps, units, 32])  # fmt: skip


@gluon.constexpr_function
def _inputs(warps, units, m):
    """(warps, inputs of the units, m tokens). Lane 4·g + t has the inputs of the units it has words of, 16 bytes each,
    of tokens g and g + 8."""
    return gl.DistributedLinearLayout(_bases(1, *_powers(8), *_powers(8 * units)[5:]) + _bases(2, *_powers(m)[3:]),
                                      _bases(1, 8, 16) + _bases(2, 1, 2, 4), _bases(0, *_powers(warps)), [],
                                      [warps, 8 * units, m])  # fmt: skip


@gluon.constexpr_function
def _shares(warps, m):
    """(warps, m tokens, 32 columns): a thread has what all warps found of a column, a warp has tokens."""
    tokens, number = _bases(1, *_powers(m)), len(_powers(warps))
    return gl.DistributedLinearLayout(_bases(0, *_powers(warps)) + tokens[number:], _bases(2, 1, 2, 4, 8, 16),
                                      (tokens + _bases(1, *[0] * number))[:number], [], [warps, m, 32])  # fmt: skip


@gluon.jit
def _left(words, zeros, halves: gl.constexpr, base: gl.constexpr, kind: gl.constexpr, layout: gl.constexpr):
    """Words (warps, units, 32) and zeros (warps, 32) → code − zero (warps, 32 columns, inputs).

    Input 32·i + 8·t + (l, s, h as bits) of a segment is the product's 32·i + 16·s + 8·h + 2·t + l, and column
    4·g + (c, r) is its row 16·c + 8·r + g: so each thread holds what its tensor core wants of it.
    """
    warps: gl.constexpr = words.shape[0]
    units: gl.constexpr = words.shape[1]
    less = (-base - zeros.to(gl.float32)).to(kind)
    bits = less.to(gl.int16, bitcast=True).to(gl.int32) & 0xFFFF
    words, less = gl.broadcast(words, ((bits << 16) | bits)[:, None, :])  # of 16 bits, twice
    a = gl.inline_asm_elementwise(halves, "=r,r,r", [words, less], gl.int32, True, 1)
    b = gl.inline_asm_elementwise(halves, "=r,r,r", [words >> 4, less], gl.int32, True, 1)
    c = gl.inline_asm_elementwise(halves, "=r,r,r", [words >> 8, less], gl.int32, True, 1)
    d = gl.inline_asm_elementwise(halves, "=r,r,r", [words >> 12, less], gl.int32, True, 1)
    pairs = gl.join(gl.join(a, b), gl.join(c, d))  # (…, h, s): a pair is l = 0 and, above it, l = 1
    low = pairs.to(gl.int16).to(kind, bitcast=True)
    high = (pairs >> 16).to(gl.int16).to(kind, bitcast=True)
    codes = gl.reshape(gl.join(low, high), [warps, units // 4, 4, 8, 2, 2, 2, 2, 2])  # warps, i, t, g, c, r, h, s, l
    codes = gl.reshape(gl.permute(codes, [0, 4, 5, 3, 1, 7, 6, 2, 8]), [warps, 32, 8 * units])
    return gl.convert_layout(codes, gl.DotOperandLayout(0, layout, 2), assert_trivial=True)


@gluon.jit
def _right(x, layout: gl.constexpr):
    """x (warps, inputs, m) in the order of `_left`."""
    warps: gl.constexpr = x.shape[0]
    inputs: gl.constexpr = x.shape[1]
    m: gl.constexpr = x.shape[2]
    x = gl.reshape(x, [warps, inputs // 32, 4, 2, 2, 2, m])  # warps, i, t, l, s, h
    x = gl.reshape(gl.permute(x, [0, 1, 4, 5, 2, 3, 6]), [warps, inputs, m])
    return gl.convert_layout(x, gl.DotOperandLayout(1, layout, 2), assert_trivial=True)


@gluon.jit
def _scale(scales, layout: gl.constexpr):
    """Scales (warps, 32) → (warps, 32, 1), columns in the order of `_left`."""
    warps: gl.constexpr = scales.shape[0]
    scales = gl.reshape(gl.permute(gl.reshape(scales, [warps, 8, 2, 2]), [0, 2, 3, 1]), [warps, 32])
    return gl.convert_layout(scales, gl.SliceLayout(2, layout), assert_trivial=True).to(gl.float32)[:, :, None]


@gluon.jit
def _four(
    out, x, words, zeros, scales, rows, outputs, inputs, units: gl.constexpr, segments: gl.constexpr,
    group: gl.constexpr, halves: gl.constexpr, base: gl.constexpr, ragged: gl.constexpr, m: gl.constexpr,
    warps: gl.constexpr, unroll: gl.constexpr,
):  # fmt: skip
    """A program has 32 columns, its warps share out the segments of `units` words, `group` of which are a group.

    Words and x go from memory into the registers of the threads whose tensor cores want them: 16 bytes at a time, by
    no shared memory, many asked for before the first is there. Scales are for sums. Only the warps' sums meet, in
    shared memory, and are added up in always the same order.
    """
    kind: gl.constexpr = out.dtype.element_ty
    product: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [warps, 1, 1], [1, 16, 8])
    of_words: gl.constexpr = _words(warps, units)
    of_groups: gl.constexpr = gl.SliceLayout(1, of_words)
    of_inputs: gl.constexpr = _inputs(warps, units, m)
    of_shares: gl.constexpr = _shares(warps, m)
    of_out: gl.constexpr = gl.SliceLayout(0, of_shares)
    block = gl.program_id(0) * 32
    segment = gl.arange(0, warps, gl.SliceLayout(1, gl.SliceLayout(2, of_words)))[:, None, None]
    unit = segment * units + gl.arange(0, units, gl.SliceLayout(0, gl.SliceLayout(2, of_words)))[None, :, None]
    column = block + gl.arange(0, 32, gl.SliceLayout(0, gl.SliceLayout(1, of_words)))[None, None, :]
    word, inside = unit * outputs + column, column < outputs
    beside = gl.arange(0, warps, gl.SliceLayout(1, of_groups))[:, None]  # the same segments for zeros and scales
    column = block + gl.arange(0, 32, gl.SliceLayout(0, of_groups))[None, :]
    within = column < outputs
    across = gl.arange(0, warps, gl.SliceLayout(1, gl.SliceLayout(2, of_inputs)))[:, None, None]  # and for x
    number = gl.arange(0, 8 * units, gl.SliceLayout(0, gl.SliceLayout(2, of_inputs)))[None, :, None]
    token = gl.arange(0, m, gl.SliceLayout(0, gl.SliceLayout(1, of_inputs)))[None, None, :]
    value = token * inputs + across * (8 * units) + number
    total = gl.zeros([warps, 32, m], gl.float32, product)
    for start in range(0, segments, unroll * warps):
        for step in gl.static_range(unroll):
            first = start + step * warps
            there, whole = first + segment < segments, first + beside < segments
            if ragged:
                there, whole = there & inside, whole & within
            found = gl.load(words + first * units * outputs + word, mask=there, other=0)
            place = (first + beside) // group * outputs + column
            zero, scale = gl.load(zeros + place, mask=whole, other=0), gl.load(scales + place, mask=whole, other=0.0)
            right = gl.load(x + first * 8 * units + value, mask=(first + across < segments) & (token < rows), other=0.0)
            sums = mma_v2(_left(found, zero, halves, base, kind, product), _right(right, product),
                          gl.zeros([warps, 32, m], gl.float32, product))  # fmt: skip
            total += sums * _scale(scale, product)
    shares = gl.permute(gl.reshape(total, [warps, 2, 2, 8, m]), [0, 4, 3, 1, 2])  # warps, m, g, c, r
    sums = gl.sum(gl.convert_layout(gl.reshape(shares, [warps, m, 32]), of_shares), 0)
    token = gl.arange(0, m, gl.SliceLayout(1, of_out))[:, None]
    column = block + gl.arange(0, 32, gl.SliceLayout(0, of_out))[None, :]
    gl.store(out + token * outputs + column, sums.to(kind), mask=(token < rows) & (column < outputs))


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


@triton.jit
def _unpack(
    out, words, zeros, scales, outputs, inputs, group,
    bits: tl.constexpr, values: tl.constexpr, n: tl.constexpr, run: tl.constexpr,
):  # fmt: skip
    """Programs: (blocks of n rows of the dense matrix, of `run` words). A word holds `values` codes of one group."""
    row = (tl.program_id(0) * n + tl.arange(0, n))[:, None]
    word = (tl.program_id(1) * run + tl.arange(0, run))[None, :]
    inside = (row < outputs) & (word * values < inputs)
    found = tl.load(words + word * outputs + row, mask=inside, other=0)
    place = (word * values // group) * outputs + row
    zero = tl.load(zeros + place, mask=inside, other=0).to(tl.float32)
    scale = tl.load(scales + place, mask=inside, other=0.0).to(tl.float32)
    codes = (found[:, :, None] >> (tl.arange(0, values) * bits)[None, None, :]) & ((1 << bits) - 1)
    dense = tl.reshape((codes.to(tl.float32) - zero[:, :, None]) * scale[:, :, None], (n, run * values))
    k = tl.program_id(1) * run * values + tl.arange(0, run * values)[None, :]
    target = out + row.to(tl.int64) * inputs + k
    tl.store(target, dense.to(out.dtype.element_ty), mask=(row < outputs) & (k < inputs))


@triton.jit
def _inputs_of(row, x, k, token, rows, inputs, threshold):
    """Inputs k of a row in float32, and whether any row's reaches the threshold."""
    column = tl.load(x + token[:, None] * inputs + k[None, :],
                     mask=(token < rows)[:, None] & (k < inputs)[None, :], other=0.0)  # fmt: skip
    out = tl.max(tl.abs(column.to(tl.float32)), 0) >= threshold
    return tl.load(x + row * inputs + k, mask=k < inputs, other=0.0).to(tl.float32), out


@triton.jit
def _codes(codes, steps, spoiled, count, x, rows, inputs, threshold, m: tl.constexpr, run: tl.constexpr):
    """Programs: rows of x, which become 8-bit integers and a step each, but for the columns that reach the threshold.

    Those are 0 in the codes, and the first program lists them in `spoiled`, `count` of them. A row with NaN has NaN for
    its step.
    """
    row, token, lane = tl.program_id(0), tl.arange(0, m), tl.arange(0, run)
    largest, broken = tl.zeros([run], tl.float32), tl.zeros([run], tl.int32)
    for start in range(0, inputs, run):
        k = start + lane
        value, out = _inputs_of(row, x, k, token, rows, inputs, threshold)
        largest = tl.maximum(largest, tl.where(out, 0.0, tl.abs(value)))
        broken += (value != value).to(tl.int32)
    step = tl.where(tl.sum(broken, 0) > 0, float("nan"), tl.div_rn(tl.max(largest, 0), 127.0))
    tl.store(steps + row, step)
    step = tl.where(step == 0, 1.0, step)
    seen = 0
    for start in range(0, inputs, run):
        k = start + lane
        value, out = _inputs_of(row, x, k, token, rows, inputs, threshold)
        whole = tl.div_rn(value, tl.zeros([run], tl.float32) + step) + ROUND - ROUND
        tl.store(codes + row * inputs + k, tl.where(out, 0.0, whole).to(tl.int8), mask=k < inputs)
        if row == 0:
            tl.store(spoiled + seen + tl.cumsum(out.to(tl.int32), 0) - 1, k, mask=out)
            seen += tl.sum(out.to(tl.int32), 0)
    if row == 0:
        tl.store(count, seen)


@triton.jit
def _eight(
    out, codes, steps, spoiled, count, x, weight, scales, rows, outputs, inputs,
    n: tl.constexpr, m: tl.constexpr, run: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """Programs: blocks of columns. Integers' products, then x itself by the integers of the columns it spoiled."""
    column, token, lane = tl.program_id(0) * n + tl.arange(0, n), tl.arange(0, m), tl.arange(0, run)
    kind: tl.constexpr = x.dtype.element_ty
    inside, live = (column < outputs)[:, None], (token < rows)[None, :]
    exact = tl.zeros([n, m], tl.int32)
    for start in tl.range(0, inputs, run, num_stages=stages):
        k = start + lane
        left = tl.load(weight + column[:, None] * inputs + k[None, :], mask=inside & (k < inputs)[None, :], other=0)
        right = tl.load(codes + token[None, :] * inputs + k[:, None], mask=live & (k < inputs)[:, None], other=0)
        exact = tl.dot(left, right, exact, out_dtype=tl.int32)
    total = exact.to(tl.float32) * tl.load(steps + token, mask=token < rows, other=0.0)[None, :]
    end, few = tl.load(count), tl.arange(0, 16)
    for start in range(0, end, 16):
        k = tl.load(spoiled + start + few, mask=start + few < end, other=0)
        there = start + few < end
        left = tl.load(weight + column[:, None] * inputs + k[None, :], mask=inside & there[None, :], other=0).to(kind)
        right = tl.load(x + token[None, :] * inputs + k[:, None], mask=live & there[:, None], other=0.0)
        total += tl.dot(left, right)
    total *= tl.load(scales + column, mask=column < outputs, other=0.0)[:, None]
    tl.store(out + token[None, :] * outputs + column[:, None], total.to(kind), mask=inside & live)


@triton.jit
def _one(
    out, x, g, signs, h, rows, outputs, inputs, words, one: tl.constexpr,
    n: tl.constexpr, m: tl.constexpr, run: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """Programs: blocks of columns. Signs become ±1, x · g their partner; the sums are multiplied by h."""
    column, token, lane = tl.program_id(0) * n + tl.arange(0, n), tl.arange(0, m), tl.arange(0, run)
    kind: tl.constexpr = x.dtype.element_ty
    inside, live = (column < outputs)[:, None], (token < rows)[None, :]
    total = tl.zeros([n, m], tl.float32)
    for start in tl.range(0, words, run, num_stages=stages):
        word, k = start + lane, start * 32 + tl.arange(0, 32 * run)
        found = tl.load(signs + column[:, None] * words + word[None, :], mask=inside & (word < words)[None, :], other=0)
        bits = (found[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
        left = tl.reshape(((bits << 15) | one).to(tl.int16).to(kind, bitcast=True), [n, 32 * run])
        right = tl.load(x + token[:, None] * inputs + k[None, :],
                        mask=(token < rows)[:, None] & (k < inputs)[None, :], other=0.0)  # fmt: skip
        right *= tl.load(g + k, mask=k < inputs, other=0.0).to(kind)[None, :]
        total = tl.dot(left, tl.trans(right), total)
    total *= tl.load(h + column, mask=column < outputs, other=0.0).to(tl.float32)[:, None]
    tl.store(out + token[None, :] * outputs + column[:, None], total.to(kind), mask=inside & live)


def pick(outputs: int, inputs: int) -> Config:
    """The setting of `_four` for a shape: small programs where there are many, for several share a multiprocessor."""
    most = triton.cdiv(inputs, 128)
    warps = max(4, min(8 if outputs >= 8192 else 16, triton.next_power_of_2(most)))
    each = triton.cdiv(most, warps)
    return Config(warps, each if each <= 4 else 2)


def segment(inputs: int, bits: int, group_size: int) -> int:
    """Inputs that `_four` takes at a time from this matrix, all of one group; 0 if it does not take it."""
    fits = (size for size in SEGMENTS if inputs % size == 0 and (group_size % size == 0 or group_size >= inputs))
    return next(fits, 0) if bits == 4 else 0


def packed_product(x: Tensor, words: Tensor, zeros: Tensor, scales: Tensor, inputs: int, bits: int, group_size: int,
                   config: Config | None = None) -> Tensor:  # fmt: skip
    """x (rows ≤ 16, K) · packed (N, K)ᵀ → (rows, N): weights are read once and never written dense. Deterministic."""
    x = x.contiguous()
    rows, outputs, size = len(x), words.shape[1], segment(inputs, bits, group_size)
    if not size:
        return _general_product(x, words, zeros, scales, inputs, bits, group_size)
    warps, unroll = config or pick(outputs, inputs)
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    _four[(triton.cdiv(outputs, 32),)](
        out, x, words, zeros, scales, rows, outputs, inputs, units=size // 8, segments=inputs // size,
        group=min(group_size, inputs) // size, halves=HALVES[x.dtype],
        base=128.0 if x.dtype == torch.bfloat16 else 1024.0, ragged=outputs % 32 > 0, m=8 if rows <= 8 else ROWS,
        warps=warps, unroll=unroll * 128 // size, num_warps=warps, maxnreg=REGISTERS,
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


def unpacked(words: Tensor, zeros: Tensor, scales: Tensor, inputs: int, bits: int, group_size: int, dtype: torch.dtype
             ) -> Tensor:  # fmt: skip
    """The dense matrix (N, K), rounded to `dtype`; of 2, 4 or 8 bits, a word of which lies in one group."""
    outputs, values = words.shape[1], 32 // bits
    out = torch.empty(outputs, inputs, dtype=dtype, device=words.device)
    grid = triton.cdiv(outputs, 32), triton.cdiv(inputs, RUN * values)
    _unpack[grid](out, words, zeros, scales, outputs, inputs, group_size, bits=bits, values=values, n=32, run=RUN)
    return out


def eight_bit_product(x: Tensor, weight: Tensor, scales: Tensor, threshold: float | None, block: Block = EIGHT
                      ) -> Tensor:  # fmt: skip
    """x (rows ≤ 16, K) · (int8 weight (N, K) · scales (N,))ᵀ → (rows, N) by LLM.int8(): as int8.py's `mixed_product`,
    without a limit on the outlier columns of x, and with their weights unrounded."""
    x = x.contiguous()
    (rows, inputs), outputs, m = x.shape, len(weight), 8 if len(x) <= 8 else ROWS
    codes, steps = torch.empty_like(x, dtype=torch.int8), torch.empty(rows, device=x.device)
    spoiled, count = (torch.empty(size, dtype=torch.int32, device=x.device) for size in (inputs, 1))
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    _codes[(rows,)](codes, steps, spoiled, count, x, rows, inputs, threshold or float("inf"), m=m, run=512, num_warps=4)
    _eight[(triton.cdiv(outputs, block.columns),)](
        out, codes, steps, spoiled, count, x, weight, scales, rows, outputs, inputs, n=block.columns, m=m,
        run=block.run, stages=block.stages, num_warps=block.columns // 16,
    )  # fmt: skip
    return out


def one_bit_product(x: Tensor, g: Tensor, signs: Tensor, h: Tensor, block: Block = ONE) -> Tensor:
    """(x ⊙ g) · signsᵀ ⊙ h: x (rows ≤ 16, K), g (K,), signs (N, ⌈K / 32⌉) int32 as `pack_signs` has them, h (N,) →
    (rows, N)."""
    x = x.contiguous()
    (rows, inputs), (outputs, words) = x.shape, signs.shape
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    _one[(triton.cdiv(outputs, block.columns),)](
        out, x, g, signs, h, rows, outputs, inputs, words, one=0x3F80 if x.dtype == torch.bfloat16 else 0x3C00,
        n=block.columns, m=8 if rows <= 8 else ROWS, run=block.run, stages=block.stages, num_warps=block.columns // 16,
    )  # fmt: skip
    return out
