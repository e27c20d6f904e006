"""The mean of the last weights against one typed out in float64; stopped, cut and continued it is the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_training import StopAt, fingerprint, finished, small_trainer

from babyllama.commands.train_recipe import TrainRecipe
from babyllama.errors import InputError, Interrupted
from babyllama.recipe import load_recipe
from babyllama.train.averaging import TailAverage
from babyllama.train.optimizers.optim import AdamW, Wsd

AVERAGES = {"ema": TailAverage(share=0.5, tau=2), "plain": TailAverage(share=0.5, tau=None)}
STEPS = 12


def settings(name: str, **more):
    return {"optimizer": AdamW(lr=1e-2, eps=1e-3), "schedule": Wsd(final=0.3), "steps": STEPS,
            "average": AVERAGES[name], **more}  # fmt: skip


def shown(trainer):
    return trainer.worker.snapshot().state_dict()


def test_weights_of_the_mean():
    """The last six of twelve: alike, or with τ = 2 each new one half."""
    ema, plain = ([average.weight(step, 12) for step in range(1, 13)] for average in AVERAGES.values())
    assert ema == [None] * 6 + [1, *[1 / 2] * 5] and plain == [None] * 6 + [1 / n for n in range(1, 7)]
    assert TailAverage(share=0.01).weight(12, 12) == 1 and TailAverage(share=0.01).weight(11, 12) is None


@pytest.mark.parametrize("name", AVERAGES)
def test_what_is_shown_is_the_mean_of_the_last_weights(tmp_path, monkeypatch, name):
    trainer = small_trainer(tmp_path / "run", **settings(name))
    seen: list[dict[str, torch.Tensor]] = []

    def note(*_: Any) -> None:
        seen.append({name: p.detach().double() for name, p in trainer.model.named_parameters()})

    monkeypatch.setattr(trainer.show, "step", note)
    trainer.train()
    last = seen[STEPS // 2 :]
    shares = [1 / 6] * 6 if name == "plain" else [2**-5, *(2 ** -(6 - n) for n in range(1, 6))]
    assert sum(shares) == pytest.approx(1) and len(last) == len(shares)
    for key, weight in trainer.worker.snapshot().named_parameters():
        expected = sum(share * weights[key] for share, weights in zip(shares, last, strict=True))
        torch.testing.assert_close(weight.double(), expected, atol=1e-7, rtol=1e-6)
        assert not torch.equal(weight, trainer.model.get_parameter(key))  # which goes on as it was


def test_it_changes_nothing_that_is_learned(tmp_path):
    with_it, without = (finished(tmp_path / str(average), **{**settings("ema"), "average": average})
                        for average in (AVERAGES["ema"], None))  # fmt: skip
    assert fingerprint(with_it) == fingerprint(without)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stopped_in_the_middle_of_it_and_continued_to_the_bit(tmp_path, dtype):
    """Law 7; and a mean that has begun is forgotten by a longer training."""
    whole = finished(tmp_path / "whole", **settings("ema", dtype=dtype))
    stopped = small_trainer(tmp_path / "run", show=StopAt(9), **settings("ema", dtype=dtype))
    with pytest.raises(Interrupted):
        stopped.train()
    stopped.run.unlock()
    again = finished(tmp_path / "run", **settings("ema", dtype=dtype))
    assert all(map(torch.equal, shown(again).values(), shown(whole).values()))
    assert next(iter(shown(again).values())).dtype == dtype


def test_accumulation_changes_nothing(tmp_path):
    """Law 6."""
    cut = [finished(tmp_path / str(n), **settings("ema", micro_batch_size=8 // n, accumulate=n)) for n in (1, 4)]
    for one, other in zip(*(shown(trainer).values() for trainer in cut), strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=0)


def test_deepspeed_is_refused_in_one_clear_line():
    words = ["out=x", "data.path=y", "plan.steps=3", "average={}", "engine.kind=deepspeed", "optimizer.kind=adamw"]
    with pytest.raises(
        InputError, match=r"average: engine\.kind=deepspeed holds weights where no mean is kept"
    ) as error:
        load_recipe(TrainRecipe, None, words)
    assert "\n" not in str(error.value)
