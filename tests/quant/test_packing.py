"""Words of small integers: each order against a loop that says it plainly, and there and back."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from babyllama.quant.packing import pack, pack_awq, unit, unpack, unpack_awq, word_count

BITS = st.sampled_from([1, 2, 3, 4, 8])


def draw(rows: int, columns: int, bits: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, columns), generator=generator).to(torch.uint8)


@settings(max_examples=60, deadline=None)
@given(bits=BITS, rows=st.integers(1, 3), columns=st.integers(1, 100), seed=st.integers(0, 9))
def test_gptq_order_is_one_long_number_little_end_first(bits, rows, columns, seed):
    codes = draw(rows, columns, bits, seed)
    words = pack(codes, bits)
    assert words.dtype == torch.int32 and words.shape == (rows, word_count(columns, bits))
    for row in range(rows):
        number = sum(int(value) << (bits * i) for i, value in enumerate(codes[row]))
        assert [(number >> (32 * i)) & 0xFFFFFFFF for i in range(words.shape[1])] == [
            int(word) & 0xFFFFFFFF for word in words[row]
        ]
    assert torch.equal(unpack(words, bits, columns), codes)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 3), eights=st.integers(1, 5), seed=st.integers(0, 9))
def test_awq_order_interleaves_eight_values(rows, eights, seed):
    codes = draw(rows, 8 * eights, 4, seed)
    words = pack_awq(codes)
    for row in range(rows):
        for e in range(eights):
            word = int(words[row, e]) & 0xFFFFFFFF
            nibbles = [(word >> (4 * i)) & 15 for i in range(8)]
            assert nibbles == [int(codes[row, 8 * e + output]) for output in (0, 2, 4, 6, 1, 3, 5, 7)]
    assert torch.equal(unpack_awq(words), codes)
    assert torch.equal(unpack_awq(words[None].expand(2, -1, -1)), codes.expand(2, -1, -1))


def test_units_fill_whole_words():
    assert {bits: unit(bits) for bits in (1, 2, 3, 4, 8)} == {
        1: (32, 1), 2: (16, 1), 3: (32, 3), 4: (8, 1), 8: (4, 1)}  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(bits=BITS, seed=st.integers(0, 9))
def test_any_words_come_back(bits, seed):
    words = torch.randint(-(2**31), 2**31, (2, unit(bits)[1] * 3), generator=torch.Generator().manual_seed(seed))
    words = words.to(torch.int32)
    assert torch.equal(pack(unpack(words, bits, unit(bits)[0] * 3), bits), words)
