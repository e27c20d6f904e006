"""Engines as recipes, and with one process. What many do is in tests/laws/test_law6_world.py and test_law7_world.py."""

import copy

import pytest
import torch
from pydantic import TypeAdapter
from small_training import small_trainer
from spread import Alone
from spread_training import losses, settings

from babyllama.data.streams.batches import Batch
from babyllama.errors import InputError
from babyllama.train.engines.deepspeed import _config, _package
from babyllama.train.engines.engines import Ddp, DeepSpeed, Engine, Fsdp, Single
from babyllama.train.engines.setting import Setting
from babyllama.train.engines.skeleton import Skeleton
from babyllama.train.engines.worker import Worker
from babyllama.train.engines.world import World
from babyllama.train.optimizers.optim import AdamW, Muon


@pytest.mark.parametrize("kind,engine", [("single", Single()), ("ddp", Ddp()), ("fsdp", Fsdp()),
                                         ("deepspeed", DeepSpeed())])  # fmt: skip
def test_a_recipe_names_its_engine(kind, engine):
    assert TypeAdapter(Engine).validate_python({"kind": kind}) == engine


def test_warming_up_runs_every_size_once_and_teaches_nothing(tmp_path):
    trainer = small_trainer(tmp_path / "run", **settings("adamw", 4))
    trainer.train()
    before, sizes = copy.deepcopy(trainer.model.state_dict()), []
    trainer.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    whole = trainer.stream.batch(0, 5)
    parts = [Batch(whole.tokens[rows], whole.targets[rows]) for rows in (slice(0, 2), slice(2, 4), slice(4, 5))]
    trainer.worker.warm_up(parts)
    assert sorted(sizes) == [1, 2]
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())
    assert all(torch.equal(before[name], weight) for name, weight in trainer.model.state_dict().items())


@pytest.mark.parametrize("engine", [Ddp(), Fsdp()])
def test_without_a_launcher_they_are_one_plain_process(tmp_path, engine):
    trainer = small_trainer(tmp_path / "run", engine=engine, **settings("adamw", 4))
    trainer.train()
    assert type(trainer.worker) is Worker
    assert losses(trainer) == Alone(tmp_path / "alone", **settings("adamw", 4)).losses


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_process_may_offload_with_deepspeed(tmp_path, stage):
    trainer = small_trainer(tmp_path / "run", engine=DeepSpeed(stage=stage, offload="cpu"), **settings("adamw", 4))
    trainer.train()
    weights = trainer.worker.snapshot().state_dict()
    alone = Alone(tmp_path / "alone", **settings("adamw", 4))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, alone.weights[name], atol=2e-6, rtol=0)


def test_single_under_a_launcher_is_one_clear_line():
    with pytest.raises(InputError, match=r"a launcher started 2 processes; use engine\.kind=ddp"):
        Single().check(2, AdamW())


def test_deepspeed_with_muon_is_one_clear_line():
    with pytest.raises(InputError, match=r"cannot spread muon.*use optimizer.kind=adamw, or engine.kind=fsdp"):
        DeepSpeed().check(1, Muon())


def test_deepspeed_that_is_not_installed_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("babyllama.train.engines.engines.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[deepspeed\]'"):
        DeepSpeed().check(1, AdamW())


@pytest.mark.parametrize("able", [True, False])
def test_deepspeed_on_a_cpu_without_fp16_is_one_clear_line(monkeypatch, tmp_path, able):
    """DeepSpeed itself ends with a traceback there; everything else trains."""
    accelerator = _package(torch.device("cpu")).accelerator.get_accelerator()
    monkeypatch.setattr(type(accelerator), "is_fp16_supported", lambda _: able)
    for dtype in (torch.float32, torch.bfloat16, *([torch.float16] if able else [])):
        DeepSpeed().check_precision(torch.device("cpu"), dtype)
    if not able:
        trainer = small_trainer(tmp_path / "run", engine=DeepSpeed(), dtype=torch.float16)
        with pytest.raises(
            InputError, match=r"precision: fp16 .* this cpu; use precision=bf16 or fp32, or engine"
        ) as e:
            trainer.train()
        assert "\n" not in str(e.value)


def test_deepspeed_gets_no_schedule_of_its_own():
    """Fault 2: a scheduler whose highest rate stayed at 1.0, `betas` given twice, accumulation under another name."""
    setting = Setting(model=torch.nn.ReLU(), objective=None, optimizer=AdamW(), world=World(), clip=0.7,  # type: ignore[arg-type]
                      device=torch.device("cpu"), dtype=torch.bfloat16, micro_batches=16, compiled=False)  # fmt: skip
    config = _config(setting, 2, True)
    assert not {"scheduler", "optimizer"} & set(config)
    assert config["gradient_accumulation_steps"] == 16 and config["gradient_clipping"] == 0.7
    assert config["bf16"]["enabled"] and not config["fp16"]["enabled"]
    assert config["zero_optimization"] == {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": False}}


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
