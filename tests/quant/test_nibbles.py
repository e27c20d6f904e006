"""Few rows times packed weights on a CPU, against the dense product in float64."""

from __future__ import annotations

import pytest
import torch

from babyllama.quant.cpu import SIZES, Nibbles, nibble_group


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("inputs", "outputs", "group"), [(128, 16, 32), (256, 19, 128), (192, 33, 192)])
def test_the_product_is_the_dense_one(bits, inputs, outputs, group):
    draw = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 1 << bits, (outputs, inputs), generator=draw, dtype=torch.uint8)
    scales = (0.5 + torch.rand(inputs // group, outputs, generator=draw)) / (1 << bits)
    zeros = torch.randint(0, 1 << bits, (inputs // group, outputs), generator=draw).float()
    x = torch.randn(2, 3, inputs, generator=draw).bfloat16()
    size = nibble_group(inputs, group)
    assert size in SIZES
    found = Nibbles(codes, scales, zeros, bits, group, size)(x)
    weight = scales.double().repeat_interleave(group, 0).T * (
        codes.double() - zeros.double().repeat_interleave(group, 0).T
    )
    expected = x.double() @ weight.T
    assert found.shape == (2, 3, outputs) and found.dtype == torch.bfloat16
    error = (found.double() - expected).pow(2).mean() / expected.pow(2).mean()
    assert error.sqrt() < 0.01  # 2⁻⁸ of rounding in scales, zeros and sums


def test_a_group_must_divide():
    assert [nibble_group(*sizes) for sizes in ((1376, 32), (1376, 128), (512, 512), (100, 20))] == [32, 32, 128, None]
