"""What of a row a rank computes. That trainings come out alike is in
tests/laws/test_law6_world.py."""

import pytest
import torch

from babyllama.data.streams.batches import Batch
from babyllama.model.config import extended
from babyllama.model.laws import ClexRope, DynamicNtkRope, LinearRope, YarnRope
from babyllama.model.transformer import Angles, make_rope
from babyllama.train.engines.context import Part
from conftest import tiny_config

LAWS = [LinearRope(factor=4.0), YarnRope(factor=4.0), DynamicNtkRope(factor=4.0, original=8), ClexRope(max_t=4)]


def part_of(number, size):
    part = Part.__new__(Part)  # without the ranks that it would meet
    part.size, part.number = size, number
    return part


def test_parts_together_are_the_whole():
    rows = torch.arange(24).view(2, 12)
    batch = Batch(rows, rows + 1, count=24, extras={"places": rows + 2, "candidates": torch.arange(5)})
    parts = [part_of(number, 3).batch(batch) for number in range(3)]
    assert torch.equal(torch.cat([p.targets for p in parts], 1), batch.targets)
    assert torch.equal(torch.cat([p.extras["places"] for p in parts], 1), batch.extras["places"])
    assert all(p.tokens is batch.tokens and p.extras["candidates"] is batch.extras["candidates"] for p in parts)
    assert [p.weight for p in parts] == [8, 8, 8]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.kind)
@pytest.mark.parametrize("packed", [False, True])
def test_a_part_turns_as_in_its_row(law, packed):
    """Every RoPE law: also those that go by the length go by that of the whole row, or of each document in it."""
    rope = make_rope(extended(tiny_config(), law))
    positions = torch.arange(48)[None]
    segments = (torch.arange(48) >= torch.tensor([[13], [40]])).long() if packed else None
    whole = Angles(rope, positions, segments).query
    parts = [Angles(rope, positions, segments, part=part_of(number, 4)).query for number in range(4)]
    for turned, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces, dim=2), turned)
