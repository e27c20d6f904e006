"""Triton kernel of packed weights for few rows. Its twin is linear.py's dense product, the oracle and the way on a CPU.

Imported only where there is a GPU: Triton does not come with every PyTorch. `pick` chooses among `CONFIGS` by the
measurements of bench/quantise.py.
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


class Config(NamedTuple):
    """columns: of a program.  programs: wanted in all, over which the inputs are split."""

    columns: int = 64
    programs: int = 528  # 4 for each of an H100's multiprocessors
    warps: int = 4
    stages: int = 4


CONFIGS = tuple(Config(columns, programs, warps, stages)
                for columns in (32, 64, 128) for programs in (128, 264, 528, 1056)
                for warps, stages in ((1, 4), (2, 4), (4, 4), (4, 6)))  # fmt: skip


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
    """The setting for a shape."""
    return Config(columns=64 if outputs >= 2048 else 32)


def packed_product(x: Tensor, words: Tensor, zeros: Tensor, scales: Tensor, inputs: int, bits: int, group_size: int,
                   config: Config | None = None) -> Tensor:  # fmt: skip
    """x (rows ≤ 16, K) · packed (N, K)ᵀ → (rows, N): weights are read once and never written dense. Deterministic."""
    x = x.contiguous()
    rows, outputs = len(x), words.shape[1]
    config = config or pick(outputs, inputs)
    values, unit_words = unit(bits)
    segments, blocks = triton.cdiv(inputs, RUN * values), triton.cdiv(outputs, config.columns)
    each = triton.cdiv(segments, max(1, min(segments, config.programs // blocks)))
    splits = triton.cdiv(segments, each)
    whole = group_size % (RUN * values) == 0 or group_size >= inputs
    magic, fits = MAGIC[x.dtype]
    magic = magic if bits <= fits else 0
    base = {0x4300: 128.0, 0x6400: 1024.0, 0: 0.0}[magic]
    out = torch.empty(splits, rows, outputs, dtype=torch.float32 if splits > 1 else x.dtype, device=x.device)
    _product[(blocks, splits)](
        out, x, words, zeros, scales, rows, outputs, inputs, group_size, segments, each, bits=bits, values=values,
        unit_words=unit_words, n=config.columns, magic=magic, base=base, whole=whole, run=RUN, m=ROWS,
        stages=config.stages, num_warps=config.warps,
    )  # fmt: skip
    return out.sum(0, dtype=torch.float32).to(x.dtype) if splits > 1 else out[0]
