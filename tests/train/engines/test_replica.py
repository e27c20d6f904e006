"""When gradients come up for DDP to send. What two processes learn is in tests/laws/test_law6_world.py."""

from __future__ import annotations

import pytest
import torch
from small_training import Formula, small_trainer

from babyllama.train.engines.precision import InHalf, LossModule
from babyllama.train.losses.objectives import NextToken


@pytest.mark.parametrize("by_block", [True, False])
def test_gradients_of_a_block_come_up_before_the_backward_pass_is_over(tmp_path, by_block):
    """In half precision by block, else all at the end; the same to the bit."""
    model = small_trainer(tmp_path / "run", tie=False).model
    loss, batch = LossModule(model, NextToken()), Formula().batch(0, 4)
    seen: list[str] = []
    named = list(model.named_parameters())
    for name, parameter in named:
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: seen.append(name))
    model.layers[0].register_full_backward_pre_hook(lambda *_: seen.append("the first block"))
    found = []
    for way in (by_block, False):
        seen.clear()
        InHalf(loss, torch.bfloat16, way)(batch)[0].backward()
        early = set(seen[: seen.index("the first block")])
        assert early == ({name for name, _ in named if name.startswith("layers.1.")} if way else set())
        found.append([parameter.grad for _, parameter in named])
        loss.zero_grad()
    assert all(one is not None and other is not None and torch.equal(one, other)
               for one, other in zip(*found, strict=True))  # fmt: skip
