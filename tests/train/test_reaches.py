"""Every field of a recipe reaches what it names: an optimiser's group, a shard's policy, a chunk's size."""

import pytest
import torch
from small_training import small_trainer
from torch import nn

from babyllama.train.engines.engines import Fsdp
from babyllama.train.engines.setting import Setting
from babyllama.train.engines.world import World
from babyllama.train.losses import cross_entropy, head
from babyllama.train.losses.objectives import NextToken
from babyllama.train.optimizers.optim import AdamW, GaLore, Muon

MATRIX, EMBEDDING, NORM = "layers.0.mlp.up_proj.weight", "embed_tokens.weight", "norm.weight"
NAMED = [(MATRIX, nn.Parameter(torch.ones(4, 3))), (EMBEDDING, nn.Parameter(torch.ones(5, 3))),
         (NORM, nn.Parameter(torch.ones(3)))]  # fmt: skip


def group_of(optimizers, name):
    """(optimiser, group) that holds a parameter."""
    mine = dict(NAMED)[name]
    ((optimizer, group),) = [(o, g) for o in optimizers for g in o.param_groups if any(p is mine for p in g["params"])]
    return optimizer, group


def said(group, *keys):
    return [group[key] for key in keys]


@pytest.mark.parametrize("rounding,dtype", [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_muon(rounding, dtype):
    recipe = Muon(lr=0.1, momentum=0.2, beta2=0.3, weight_decay=0.4, adam_lr=0.5, adam_betas=(0.6, 0.7), adam_eps=0.8,
                  rounding=rounding)  # fmt: skip
    built = recipe.build(NAMED)
    muon, group = group_of(built, MATRIX)
    assert said(group, "lr", "momentum", "beta2", "weight_decay") == [0.1, 0.2, 0.3, 0.4] and muon._dtype == dtype
    for name in (EMBEDDING, NORM):
        assert said(group_of(built, name)[1], "lr", "betas", "eps", "weight_decay") == [0.5, (0.6, 0.7), 0.8, 0.0]
    assert group_of(Muon(beta2=None).build(NAMED), MATRIX)[1]["beta2"] is None


def test_adamw():
    built = AdamW(lr=0.1, betas=(0.2, 0.3), eps=0.4, weight_decay=0.5).build(NAMED)
    for name, decay in ((MATRIX, 0.5), (EMBEDDING, 0.5), (NORM, 0.0)):
        assert said(group_of(built, name)[1], "lr", "betas", "eps", "weight_decay") == [0.1, (0.2, 0.3), 0.4, decay]


def test_galore():
    recipe = GaLore(lr=0.1, rank=2, refresh=3, scale=0.4, betas=(0.5, 0.6), eps=0.7, weight_decay=0.8)
    built = recipe.build(NAMED)
    keys = ("lr", "rank", "refresh", "scale", "betas", "eps", "weight_decay")
    assert said(group_of(built, MATRIX)[1], *keys) == [0.1, 2, 3, 0.4, (0.5, 0.6), 0.7, 0.8]
    assert said(group_of(built, NORM)[1], "lr", "betas", "eps", "weight_decay") == [0.1, (0.5, 0.6), 0.7, 0.0]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fsdp_reshards_and_reduces_as_asked(tmp_path, monkeypatch, keep, dtype):
    """The blocks as the recipe says, the root never; gradients are summed in float32."""
    from babyllama.train.engines import fsdp

    seen = []
    monkeypatch.setattr(fsdp, "fully_shard", lambda module, **given: seen.append((module, given)))
    monkeypatch.setattr(World, "mesh", lambda *_: {"dp": "mesh"})
    model = small_trainer(tmp_path / "run").model
    setting = Setting(model=model, objective=NextToken(), optimizer=AdamW(), world=World(), dtype=dtype, clip=1.0,
                      device=torch.device("cpu"), micro_batches=1, compiled=False)  # fmt: skip
    worker = fsdp.Sharded(setting, Fsdp(reshard_after_forward=keep).reshard_after_forward)
    *blocks, (root, policy) = seen
    assert [module for module, _ in blocks] == list(model.layers) and root is worker.module
    assert [given["reshard_after_forward"] for _, given in blocks] == [keep, keep]
    assert policy["reshard_after_forward"] is False
    half = None if dtype == torch.float32 else dtype
    for _, given in seen:
        assert given["mp_policy"].param_dtype == half and given["mp_policy"].reduce_dtype == (half and torch.float32)


@pytest.mark.parametrize("asked", [16, None])
def test_never_more_logits_than_a_chunk(monkeypatch, asked):
    """Also where the device chooses the chunk."""
    rows, real = [], cross_entropy.loss_and_gradient_
    monkeypatch.setattr(head.hardware, "chunk_rows", lambda _: 24)

    def watched(logits, targets, vocab):
        rows.append(len(logits))
        return real(logits, targets, vocab)

    monkeypatch.setattr(cross_entropy, "loss_and_gradient_", watched)
    hidden, weight = torch.randn(100, 8), torch.randn(31, 8)
    cross_entropy.linear_cross_entropy(hidden, weight, torch.zeros(100, dtype=torch.int64), asked)
    assert max(rows) == (asked or 24) and sum(rows) == 100
