"""Run by test_kernels.py in a process of its own: the packed kernels in Triton's interpreter, on a CPU, in float16.

It reads no assembler and has no bfloat16: what `_HALVES` says is said in Triton here; test_gpu.py has the other one.
Nor has it Gluon: its kernel runs as Triton's, the same arithmetic without layouts, which are a compiler's to check.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl
from triton.experimental.gluon import language

from babyllama.quant import kernels
from babyllama.quant.grid import Grid
from babyllama.quant.int8 import mixed_product, quantised_rows
from babyllama.quant.linear import GroupedLinear
from babyllama.quant.onebit import pack_signs

SHAPES = [(4, 128, 512, 64), (4, 512, 512, 32), (4, 256, 1024, 64), (4, 128, 384, 32), (4, 128, 640, 40),
          (4, 128, 2688, 32), (4, 384, 9984, 32), (4, 64, 192, 30), (4, 32, 1376, 32), (4, 96, 96, 24),  # _four's
          (4, 16, 80, 24), (4, 32, 344, 96), (3, 128, 344, 40), (2, 16, 80, 24), (8, 64, 128, 24)]  # fmt: skip


def halves(_asm, _constraints, args, _dtype, _pure, _pack):
    """(code + 2^m) − (zero + 2^m) of codes i and i + 4."""
    found, zero = args

    def one(shift):
        code = (((found >> shift) & 15) | 0x6400).to(tl.int16).to(tl.float16, bitcast=True)
        return (code + zero.to(tl.int16).to(tl.float16, bitcast=True)).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF

    return one(0) | (one(16) << 16)


class Flat:
    """Gluon's names, said in Triton: what it has of a layout is left out."""

    def __getattr__(self, name):
        return getattr(tl if hasattr(tl, name) else language, name)

    def arange(self, start, end, _layout):
        return tl.arange(start, end)

    def zeros(self, shape, dtype, _layout):
        return tl.zeros(shape, dtype)

    def convert_layout(self, value, _layout, assert_trivial=False):
        return value

    def static_range(self, end):
        return range(end)

    inline_asm_elementwise = staticmethod(halves)


kernels.gl = Flat()
kernels.mma_v2 = lambda left, right, total: tl.dot(left, right, total)  # tl has its functions while a kernel runs
for name in ("_left", "_right", "_scale", "_four"):
    setattr(kernels, name, triton.jit(getattr(kernels, name).fn))
plain = triton.runtime.jit._normalize_ty
triton.runtime.jit._normalize_ty = lambda kind: "constexpr" if kind == "gl.constexpr" else plain(kind)

generator = torch.Generator().manual_seed(0)
for bits, group, inputs, outputs in SHAPES:
    weight = torch.randn(outputs, inputs, generator=generator)
    packed = GroupedLinear.of(Grid(bits=bits, group_size=group, short_group=True).nearest(weight))
    for rows in (1, 5, 16):
        x = torch.randn(rows, inputs, generator=generator).half()
        found = kernels.packed_product(x, *packed._packed)
        expected = x.float() @ packed.dense_weight().T
        error = float((found.float() - expected).norm() / expected.norm())
        assert error < 1e-3, (bits, group, inputs, outputs, rows, error)

for bits, group, inputs, outputs in ((4, 32, 344, 40), (4, None, 80, 33), (8, 32, 136, 24), (2, 16, 176, 24)):
    packed = GroupedLinear.of(Grid(bits=bits, group_size=group, short_group=True).nearest(torch.randn(outputs, inputs)))
    found, dense = kernels.unpacked(*packed._packed, torch.float16), packed.dense_weight()
    assert torch.equal(found, dense.half()), (bits, group, inputs, outputs)
    assert torch.equal(kernels.unpacked(*packed._packed, torch.float32), dense)

for inputs, outputs in ((128, 32), (344, 40), (1100, 24)):
    for rows in (1, 5, 16):
        x = torch.randn(rows, inputs, generator=generator)
        x[0, 3 : 3 * (rows + 1) : 3] = x[-1, 77] = 40.0  # outlier columns, up to one more than a turn takes
        x, weight = x.half(), torch.randn(outputs, inputs, generator=generator)
        codes, scales = quantised_rows(weight)
        for threshold in (6.0, None):
            found = kernels.eight_bit_product(x, codes, scales[:, 0], threshold)
            expected = mixed_product(x.double(), codes, scales[:, 0], threshold)
            error = float((found.double() - expected).norm() / expected.norm())
            assert error < 1e-3, (inputs, outputs, rows, threshold, error)
        x[-1, 5] = torch.nan
        found = kernels.eight_bit_product(x, codes, scales[:, 0], 6.0)
        assert found[-1].isnan().all() and not found[:-1].isnan().any()
        x[-1, 5] = 0.0
        g, h = torch.rand(inputs, generator=generator).half(), torch.rand(outputs, generator=generator).half()
        found = kernels.one_bit_product(x, g, pack_signs(weight < 0), h)
        expected = (x * g).float() @ torch.where(weight < 0, -1.0, 1.0).T * h
        error = float((found.float() - expected).norm() / expected.norm())
        assert error < 1e-3, (inputs, outputs, rows, error)
print("all as the dense weight")
