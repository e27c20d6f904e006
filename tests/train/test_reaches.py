"""Every field of a recipe reaches what it names: an optimiser's group, a shard's policy, a chunk's size."""

import pytest
import torch
from pydantic import TypeAdapter
from small_training import small_trainer
from torch import nn

from babyllama.train.engines.engines import Engine, Fsdp
from babyllama.train.engines.setting import Setting
from babyllama.train.engines.world import World
from babyllama.train.losses import cross_entropy, head
from babyllama.train.losses.objectives import NextToken
from babyllama.train.optimizers.optim import AdamW, Cosine, GaLore, Muon, Wsd

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


@pytest.mark.parametrize("schedule,shares", [
    # Two steps up, then half a cosine from 1 to 0.2 over the six that are left; typed out.
    (Cosine(warmup=0.25, final=0.2), [0.5, 1.0, 1.0, 0.946410, 0.8, 0.6, 0.4, 0.253590]),
    # Two steps up; from step 5 of 8 on a line from 1 to 0.2.
    (Wsd(warmup=0.25, decay=0.5, final=0.2), [0.5, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4]),
])  # fmt: skip
def test_a_schedule_reaches_every_group_of_every_optimizer(tmp_path, schedule, shares):
    trainer = small_trainer(tmp_path / "run", schedule=schedule, optimizer=Muon(lr=0.02, adam_lr=0.003), steps=8)
    rates = []
    real = trainer.engine

    class Watched(type(real)):
        def __call__(self, setting):
            worker = super().__call__(setting)
            for optimizer in worker.optimizers:
                optimizer.register_step_pre_hook(lambda o, *_: rates.append([g["lr"] for g in o.param_groups]))
            return worker

    trainer.engine = Watched()
    trainer.train()
    muon, adam = rates[::2], rates[1::2]
    assert [r for (r,) in muon] == pytest.approx([0.02 * share for share in shares], rel=1e-5)
    assert [r for (r,) in adam] == pytest.approx([0.003 * share for share in shares], rel=1e-5)
    logged = [m["lr"] for m in trainer.run.metrics() if m["kind"] == "train"]
    assert logged == pytest.approx([0.02 * share for share in shares], rel=1e-5)


def setting_of(model, **more):
    given = {"objective": NextToken(), "optimizer": AdamW(), "world": World(), "dtype": torch.float32, "clip": 1.0,
             "device": torch.device("cpu"), "micro_batches": 1, "compiled": False, **more}  # fmt: skip
    return Setting(model=model, **given)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("offload", ["none", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_deepspeeds_stage_offload_and_precision_reach_its_own_recipe(monkeypatch, stage, offload, dtype):
    from babyllama.train.engines import deepspeed

    seen = []
    monkeypatch.setattr(deepspeed, "Zero", lambda *given: seen.append(given))
    monkeypatch.setattr(deepspeed, "computes_fp16", lambda _: True)
    engine = TypeAdapter(Engine).validate_python({"kind": "deepspeed", "stage": stage, "offload": offload})
    engine(setting_of(nn.ReLU(), dtype=dtype, clip=0.7, micro_batches=5))  # no weight is looked at before
    config = deepspeed._config(*seen[0])
    assert config["zero_optimization"]["stage"] == stage
    away = {key for key in config["zero_optimization"] if key.startswith("offload")}
    assert away == (
        set() if offload == "none" else {"offload_optimizer"} | ({"offload_param"} if stage == 3 else set())
    )
    assert config["fp16"]["enabled"] == (dtype == torch.float16)
    assert config["bf16"]["enabled"] == (dtype == torch.bfloat16)
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}  # gradients add up in float32, whatever computes
    assert (config["gradient_clipping"], config["gradient_accumulation_steps"]) == (0.7, 5)


def test_every_kind_of_engine_is_the_one_that_works(tmp_path, monkeypatch):
    """Of several processes; what they do is in tests/laws."""
    from babyllama.train.engines import deepspeed, engines, fsdp

    many = setting_of(small_trainer(tmp_path / "run").model, world=World(0, 2, 0))
    seen = []
    for module, name in ((engines, "Replica"), (fsdp, "Sharded"), (deepspeed, "Zero")):
        monkeypatch.setattr(
            module, name, lambda setting, *given, name=name: seen.append((name, setting is many, *given))
        )
    for said in ({"kind": "ddp"}, {"kind": "fsdp"}, {"kind": "fsdp", "reshard_after_forward": False},
                 {"kind": "deepspeed"}, {"kind": "deepspeed", "stage": 3, "offload": "cpu"}):  # fmt: skip
        TypeAdapter(Engine).validate_python(said)(many)
    assert seen == [("Replica", True), ("Sharded", True, True), ("Sharded", True, False), ("Zero", True, 2, False),
                    ("Zero", True, 3, True)]  # fmt: skip


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
