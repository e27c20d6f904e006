"""What a row is told of its request, however far that is."""

import pytest
import torch

from babyllama.infer.choosing import numbers, uniforms
from babyllama.infer.request import Request
from babyllama.infer.rows import Rows
from babyllama.infer.sampling import Sampling


@pytest.mark.parametrize("given", [(0, 0, 0), (0, 300, 300), (300, 300, 300), (700, 700, 700)])
@pytest.mark.parametrize("places", [(1, 2, 3), (0, 2, 5)])
def test_a_row_knows_its_token_its_place_and_its_next_random_numbers(places, given):
    rows = Rows(60, 6, torch.device("cpu"))
    rows.token += 7
    jobs = [(Request([5, 6], Sampling(temperature=0.5 + n), seed=n), list(range(count)))
            for n, count in enumerate(given)]  # fmt: skip
    rows.place(places, jobs)
    rows.go(4)
    assert rows.live.tolist() == [4] and rows.token[4] == 7
    for n, (row, count) in enumerate(zip(places, given, strict=True)):
        assert rows.token[row] == max(0, count - 1) and rows.counter[row] == count and rows.position[row] == 1 + count
        assert rows.rules[row, 0] == 0.5 + n
        after = torch.arange(count, count + 9)
        assert torch.equal(numbers(rows.begin[row], after), uniforms(n, 2000)[after])
