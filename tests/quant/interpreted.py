"""Run by test_kernels.py in a process of its own: the packed kernels in Triton's interpreter, on a CPU, in float16.

It reads no assembler and has no bfloat16: what `_HALVES` says is said in Triton here; test_gpu.py has the other one.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton.language as tl

from babyllama.quant import kernels
from babyllama.quant.grid import Grid
from babyllama.quant.linear import GroupedLinear

SHAPES = [(4, 128, 512, 64), (4, 512, 512, 32), (4, 256, 1024, 64), (4, 128, 384, 32), (4, 128, 640, 32),  # _four's
          (4, 128, 512, 40), (4, 32, 344, 96), (3, 128, 344, 40), (2, 16, 80, 24), (8, 64, 128, 24)]  # fmt: skip


def halves(_asm, _constraints, args, _dtype, _pure, _pack):
    """(code + 2^m) − (zero + 2^m) of codes i and i + 4."""
    found, zero = args

    def one(shift):
        code = (((found >> shift) & 15) | 0x6400).to(tl.int16).to(tl.float16, bitcast=True)
        return (code + zero.to(tl.int16).to(tl.float16, bitcast=True)).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF

    return one(0) | (one(16) << 16)


kernels.tl.inline_asm_elementwise = halves
generator = torch.Generator().manual_seed(0)
for bits, group, inputs, outputs in SHAPES:
    weight = torch.randn(outputs, inputs, generator=generator)
    packed = GroupedLinear.of(Grid(bits=bits, group_size=group, short_group=True).nearest(weight))
    for rows in (1, 5, 16):
        x, arrived = torch.randn(rows, inputs, generator=generator).half(), torch.zeros(outputs, dtype=torch.int32)
        found = kernels.packed_product(x, *packed._packed, arrived)
        expected = x.float() @ packed.dense_weight().T
        error = float((found.float() - expected).norm() / expected.norm())
        assert error < 1e-3, (bits, group, inputs, outputs, rows, error)
        assert not arrived.any()
print("all as the dense weight")
