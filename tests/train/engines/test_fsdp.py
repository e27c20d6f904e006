"""What FSDP is asked for. What comes of it is in tests/laws/test_law6_world.py and test_law7_world.py."""

import pytest
import torch
from small_training import setting_of, small_trainer

from babyllama.train.engines.engines import Fsdp
from babyllama.train.engines.world import World


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fsdp_reshards_and_reduces_as_asked(tmp_path, monkeypatch, keep, dtype):
    """The blocks as the recipe says, the root never; gradients are summed in float32."""
    from babyllama.train.engines import fsdp

    seen = []
    monkeypatch.setattr(fsdp, "fully_shard", lambda module, **given: seen.append((module, given)))
    monkeypatch.setattr(World, "mesh", lambda *_: {"dp": "mesh"})
    model = small_trainer(tmp_path / "run").model
    worker = fsdp.Sharded(setting_of(model, dtype=dtype), Fsdp(reshard_after_forward=keep).reshard_after_forward)
    *blocks, (root, policy) = seen
    assert [module for module, _ in blocks] == list(model.layers) and root is worker.module
    assert [given["reshard_after_forward"] for _, given in blocks] == [keep, keep]
    assert policy["reshard_after_forward"] is False
    half = None if dtype == torch.float32 else dtype
    for _, given in seen:
        assert given["mp_policy"].param_dtype == half and given["mp_policy"].reduce_dtype == (half and torch.float32)
