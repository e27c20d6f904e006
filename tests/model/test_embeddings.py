"""Rows of another vocabulary: kept, means, and a model that computes the same under other names."""

import pytest
import torch

from babyllama.model.embeddings import change_rows, means
from babyllama.model.transformer import Transformer, initialise
from conftest import tiny_config


def test_means_are_of_the_rows_that_are_named() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 5.0], [8.0, -1.0]], dtype=torch.bfloat16)
    found = means(rows, [(2,), (0, 1), (), (1, 1, 0)])
    assert found.dtype == torch.bfloat16
    expected = torch.tensor([[8.0, -1.0], [2.0, 3.5], [4.0, 2.0], [7 / 3, 4.0]])
    assert torch.equal(found, expected.bfloat16())


@pytest.mark.parametrize("tied", [True, False])
def test_the_same_tokens_by_other_ids_are_the_same_to_the_model(tied: bool) -> None:
    model = Transformer(tiny_config(tied=tied))
    initialise(model, 3)
    size = model.config.vocab_size
    order = torch.randperm(size, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(size, (2, 9), generator=torch.Generator().manual_seed(2))
    before = model(order[tokens])
    change_rows(model, [(int(i),) for i in order])
    torch.testing.assert_close(model(tokens), before[..., order])
    change_rows(model, [(0,), (0, 1), (5,)])
    assert model.config.vocab_size == 3 and model(torch.tensor([[0, 2, 1]])).shape == (1, 3, 3)
    assert (model.lm_head.weight is model.embed_tokens.weight) == tied
