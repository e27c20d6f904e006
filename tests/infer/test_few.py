"""What a few rows' kernels read, and which models they suit; the kernels themselves: test_few_kernels.py."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_fused_decoding import config

from babyllama.infer.few import SIZES, in_tiles, pieces, suits
from babyllama.model.config import ModelConfig
from babyllama.model.surgery import Words
from babyllama.model.transformer import Transformer
from conftest import sharp_model


@given(st.integers(1, 400).map(lambda n: 32 * n), st.sampled_from([1, 2, 4, 8]), st.sampled_from(SIZES))
def test_pieces_cover_the_inputs_once_and_end_within_a_tile(inputs, warps, most):
    shares, at = pieces(inputs, warps, most), 0
    for start, size in shares:
        assert start == at and size <= most and size in SIZES
        at += warps * size
    assert inputs <= at < inputs + 32 * warps


def words_of(codes: torch.Tensor, bits: int, group: int) -> Words:
    """Codes (outputs, inputs) as a packed matrix keeps them, its groups numbered."""
    outputs, inputs = codes.shape
    shifts = bits * torch.arange(32 // bits)
    words = (codes.unflatten(1, (-1, 32 // bits)).long() << shifts).sum(-1)
    groups = -(-inputs // group)
    number = torch.arange(groups * outputs).view(groups, outputs)
    wrapped = torch.where(words >= 2**31, words - 2**32, words).int().T.contiguous()
    return Words(wrapped, number.remainder(200).to(torch.uint8), (number + 0.5).half(), None, bits, group)


@pytest.mark.parametrize(("bits", "inputs", "warps", "group"), [(4, 1024, 4, 128), (4, 2752, 8, 128), (8, 1376, 8, 64),
                                                                (4, 352, 2, 32), (8, 96, 1, 32)])  # fmt: skip
def test_tiles_hold_each_code_where_its_thread_looks_for_it(bits, inputs, warps, group):
    """Lane 4·g + t has output g and of each 32 inputs 8·t to 8·t + 7, of 4 bits two side by side in a word's halves."""
    codes = torch.randint(0, 1 << bits, (13, inputs), generator=torch.Generator().manual_seed(1))
    words, shares, at = words_of(codes, bits, group), pieces(inputs, warps, min(128, group)), 0
    laid, groups = in_tiles(words, torch.arange(16).clamp(max=12).view(-1, 8), shares, warps)
    assert laid.dtype == groups.dtype == torch.int32 and groups.shape == (2, len(shares), warps, 8)
    for number, (start, size) in enumerate(shares):
        n, side = size // 32 * bits // 4, min(4, size // 32 * bits // 4)
        lanes = laid[:, at : at + warps * n * 32].view(2, warps, n // side, 8, 4, side)  # block, warp, …, g, t, beside
        at += warps * n * 32
        lanes = lanes.permute(0, 1, 2, 5, 3, 4).reshape(2, warps, size // 32, bits // 4, 8, 4).long() & 0xFFFFFFFF
        if bits == 4:
            found = torch.stack([(lanes[:, :, :, 0] >> (4 * (k // 2) + 16 * (k % 2))) & 15 for k in range(8)], -1)
        else:
            found = torch.stack([(lanes[:, :, :, k // 4] >> (8 * (k % 4))) & 255 for k in range(8)], -1)
        found = found.permute(0, 3, 1, 2, 4, 5).reshape(16, warps * size)  # output, input
        there = min(warps * size, inputs - start)
        assert torch.equal(found[:13, :there], codes[:, start : start + there]) and not found[:, there:].any()
        for warp, output in product(range(warps), range(8)):
            group_of = min(start + warp * size, inputs - 1) // group
            scale, zero = groups[0, number, warp, output].view(1).view(torch.float16).tolist()
            assert (scale, zero) == (words.scales[group_of, output], words.zeros[group_of, output])
    assert at == laid.shape[1]


def test_models_and_numbers_of_rows_that_they_do_not_suit():
    small = {"hidden_size": 128, "intermediate_size": 352}
    assert suits(sharp_model(config(**small)), 1) and suits(sharp_model(config(**small)), 16)
    assert not suits(sharp_model(config(**small)), 17)
    for other in ({"hidden_size": 96}, {"intermediate_size": 360}, {"hidden_size": 64}):  # heads of 24; 8 over; of 16
        assert not suits(sharp_model(config(**small | other)), 1)


@pytest.mark.parametrize(("sizes", "most"), [((1024, 2752), 16), ((2048, 5504), 4), ((4096, 8192), 1), ((8192, 352), 0),
                                             ((128, 8224), 0)])  # fmt: skip
def test_wide_models_leave_room_for_fewer_rows(sizes, most):
    with torch.device("meta"):
        shape = config(hidden_size=sizes[0], intermediate_size=sizes[1], num_attention_heads=sizes[0] // 64 or 1)
        model = Transformer(ModelConfig.model_validate({**shape.model_dump(), "num_key_value_heads": 1}))
    assert max([count for count in (1, 2, 4, 8, 16) if suits(model, count)], default=0) == most
