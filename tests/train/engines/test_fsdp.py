"""What FSDP is asked for. What comes of it is in tests/laws/test_law6_world.py and test_law7_world.py."""

from itertools import pairwise

import pytest
import torch
from small_training import setting_of, small_trainer

from babyllama.model.transformer import Block
from babyllama.train.engines.engines import Fsdp
from babyllama.train.engines.world import World


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fsdp_reshards_and_reduces_as_asked(tmp_path, monkeypatch, keep, dtype):
    """The blocks as the recipe says, the root never; gradients are summed in float32."""
    from babyllama.train.engines import fsdp

    seen = []
    monkeypatch.setattr(fsdp, "fully_shard", lambda module, **given: seen.append((module, given)))
    monkeypatch.setattr(World, "states", lambda *_: "mesh")
    monkeypatch.setattr(Block, "set_modules_to_forward_prefetch", lambda *_: None, raising=False)
    model = small_trainer(tmp_path / "run").model
    worker = fsdp.Sharded(setting_of(model, dtype=dtype), Fsdp(reshard_after_forward=keep).reshard_after_forward)
    *blocks, (root, policy) = seen
    assert [module for module, _ in blocks] == [[layer] for layer in model.layers] and root is worker.module
    assert [given["reshard_after_forward"] for _, given in blocks] == [keep, keep]
    assert policy["reshard_after_forward"] is False
    half = None if dtype == torch.float32 else dtype
    for _, given in seen:
        assert given["mp_policy"].param_dtype == half and given["mp_policy"].reduce_dtype == (half and torch.float32)


@pytest.mark.parametrize("blocks,group,sizes", [(None, 0, [1] * 5), (None, 10**9, [3, 2]), (2, 0, [2, 2, 1])])
def test_small_blocks_travel_together(tmp_path, monkeypatch, blocks, group, sizes):
    """As many as hold `GROUP` parameters, but not all at once; each asks for the next before its own work."""
    from babyllama.train.engines import fsdp

    groups, asked = [], []
    monkeypatch.setattr(fsdp, "GROUP", group)
    monkeypatch.setattr(fsdp, "fully_shard", lambda module, **_: groups.append(module))
    monkeypatch.setattr(World, "states", lambda *_: "mesh")
    monkeypatch.setattr(Block, "set_modules_to_forward_prefetch", lambda *given: asked.append(given), raising=False)
    model = small_trainer(tmp_path / "run").model
    model.layers.extend(Block(model.config, number) for number in range(2, 5))
    fsdp.Sharded(setting_of(model), True, blocks)
    *groups, _ = groups
    assert [len(group) for group in groups] == sizes and [block for group in groups for block in group] == list(
        model.layers
    )
    assert asked == [(now[0], [then[0]]) for now, then in pairwise(groups)]
