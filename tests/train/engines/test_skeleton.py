"""A module tree without weights, and the model that it becomes again."""

import pytest
import torch
from small_training import small_trainer

from babyllama.train.engines.skeleton import Skeleton


@pytest.mark.parametrize("tied", [True, False])
def test_a_skeleton_takes_no_memory_and_becomes_the_model_again(tmp_path, tied):
    model = small_trainer(tmp_path / "run", tie=tied).model
    skeleton = Skeleton(model)
    assert all(p.is_meta for p in skeleton.bare.parameters())
    again = skeleton.filled(lambda name: model.get_parameter(name).detach().clone(), torch.device("cpu"))
    assert (again.lm_head.weight is again.embed_tokens.weight) == tied
    tokens = torch.arange(12)[None]
    assert torch.equal(again(tokens), model(tokens))
    assert all(p.is_meta for p in skeleton.filled(lambda _: None, torch.device("cpu")).parameters())
