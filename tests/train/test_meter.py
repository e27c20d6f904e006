"""The clock, the speed and the work of a token, each against figures worked out by hand."""

import pytest
import torch
from small_training import CONTEXT, small_trainer

from babyllama.model.lora import Lora
from babyllama.train import meter
from babyllama.train.lisa import Lisa
from babyllama.train.meter import Meter, work_per_token
from babyllama.train.progress import Progress

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when they are told to."""
    now = [100.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    return now


def test_the_clock_runs_only_while_it_trains_and_speed_is_since_the_last_time(clock, monkeypatch):
    monkeypatch.setattr(meter, "peak_flops", lambda *_: 1000.0)
    measured, progress = Meter(10.0, CPU, torch.float32, processes=2), Progress(tokens=500, seconds=7.0)
    measured.begin(progress)
    clock[0] += 4.0
    progress.tokens += 200
    measured.stop(progress)
    clock[0] += 1000.0  # validation
    measured.go()
    clock[0] += 1.0
    progress.tokens += 50
    measured.stop(progress)
    assert progress.seconds == 12.0
    assert measured.speed(progress) == (50.0, 50.0 * 10 / 2000)  # 250 tokens in 5 s, of two processes' peak
    measured.go()
    clock[0] += 2.0
    progress.tokens += 300
    measured.stop(progress)
    assert measured.speed(progress) == (150.0, 0.75)


def test_without_a_known_peak_there_is_no_share_of_it(clock, monkeypatch):
    monkeypatch.setattr(meter, "peak_flops", lambda *_: None)
    measured, progress = Meter(10.0, CPU, torch.float32, 1), Progress()
    measured.begin(progress)
    clock[0] += 1.0
    progress.tokens += 3
    measured.stop(progress)
    assert measured.speed(progress) == (3.0, None)


@pytest.mark.parametrize("adapter,share", [
    (None, 1.0),
    (Lora(rank=4), None),  # its factors' numbers beside the model's
    (Lisa(layers=1), None),  # all but one of two blocks
])  # fmt: skip
def test_frozen_weights_cost_two_thirds(tmp_path, adapter, share):
    """Forward and the gradient of what goes in for all, the gradient of weights for those that learn."""
    trainer = small_trainer(tmp_path / "run", **({"adapter": adapter} if adapter else {}))
    model, whole = trainer.model, trainer.model.config.parameters
    if isinstance(adapter, Lora):
        share = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n) / whole
    if isinstance(adapter, Lisa):
        share = 1 - sum(p.numel() for p in model.layers[0].parameters()) / whole
    assert 0 < share <= 1
    expected = model.config.flops_per_token(CONTEXT) * (2 / 3 + share / 3)
    assert work_per_token(model, CONTEXT, trainer.lisa) == pytest.approx(expected, rel=1e-9)
