"""DeepSpeed in one process, and what it is asked for. Many processes are in tests/laws/test_law6_world.py."""

import pytest
import torch
from pydantic import TypeAdapter
from small_training import setting_of, small_trainer
from spread import Alone
from spread_training import settings
from torch import nn

from babyllama.errors import InputError
from babyllama.train.engines.deepspeed import _config, _package
from babyllama.train.engines.engines import DeepSpeed, Engine
from babyllama.train.engines.setting import Setting
from babyllama.train.engines.world import World
from babyllama.train.optimizers.optim import AdamW


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


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_process_may_offload_with_deepspeed(tmp_path, stage):
    trainer = small_trainer(tmp_path / "run", engine=DeepSpeed(stage=stage, offload="cpu"), **settings("adamw", 4))
    trainer.train()
    weights = trainer.worker.snapshot().state_dict()
    alone = Alone(tmp_path / "alone", **settings("adamw", 4))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, alone.weights[name], atol=2e-6, rtol=0)


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
