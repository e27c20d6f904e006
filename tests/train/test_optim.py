"""Schedules at their corners, parameter groups, float32 masters."""

import pytest
import torch
from torch import nn

from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.train.optim import AdamW, Cosine, Masters, Muon, Wsd


def model(tie=True):
    config = ModelConfig(
        vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=tie)  # fmt: skip
    made = Transformer(config)
    initialise(made, 0)
    return made


def test_cosine_rises_peaks_and_ends_at_its_floor():
    schedule = Cosine(warmup=0.1, final=0.1)
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55) and rates[99] == pytest.approx(0.1, abs=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_wsd_is_flat_then_falls_in_a_line():
    schedule = Wsd(warmup=0.1, decay=0.5, final=0.0)
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[10:51] == [1.0] * 41
    assert rates[75] == pytest.approx(0.5) and rates[99] == pytest.approx(0.02)


def test_no_warmup_starts_at_full_rate():
    assert Cosine(warmup=0.0)(0, 10) == 1.0 and Wsd(warmup=0.0)(0, 10) == 1.0


def test_adamw_decays_matrices_only():
    (optimizer,) = AdamW(weight_decay=0.1).build(model().named_parameters())
    for group in optimizer.param_groups:
        assert {p.ndim for p in group["params"]} == ({2} if group["weight_decay"] else {1})


@pytest.mark.parametrize("tie", [True, False])
def test_every_parameter_has_exactly_one_optimizer(tie):
    made = model(tie)
    for recipe in (AdamW(), Muon()):
        owned = [id(p) for o in recipe.build(made.named_parameters()) for g in o.param_groups for p in g["params"]]
        assert sorted(owned) == sorted(id(p) for p in made.parameters())
    muon, _ = Muon().build(made.named_parameters())
    assert len(muon.param_groups[0]["params"]) == 2 * 7  # seven matrices a block; never the embedding or the head


def test_small_updates_survive_in_the_masters():
    """A bf16 weight of 1.0 cannot take a step of 1e-4; its float32 master can."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    masters = Masters(layer, torch.bfloat16)
    for _ in range(100):
        with torch.no_grad():
            masters.owned[0] += 1e-4
        masters.publish()
    assert layer.weight.dtype == torch.bfloat16
    assert layer.weight.item() == pytest.approx(1.01, abs=4e-3)


def test_half_precision_gradients_accumulate_in_float32():
    layer = nn.Linear(1, 1, bias=False)
    masters = Masters(layer, torch.bfloat16)
    for value in [256.0, *[0.25] * 64]:
        layer.weight.grad = torch.full((1, 1), value, dtype=torch.bfloat16)
        masters.collect()
    assert masters.owned[0].grad.item() == 256.0 + 16.0


def test_fp16_overflow_halves_the_scale_and_skips():
    masters = Masters(nn.Linear(2, 2), torch.float16)
    before = masters.scale
    assert masters.overflowed(torch.tensor(float("inf"))) and masters.scale == before / 2
    assert not masters.overflowed(torch.tensor(1.0))
    for _ in range(999):
        masters.overflowed(torch.tensor(1.0))
    assert masters.scale == before


def test_bf16_never_scales():
    masters = Masters(nn.Linear(2, 2), torch.bfloat16)
    assert masters.scale == 1.0 and not masters.overflowed(torch.tensor(float("inf")))


def test_tied_weights_stay_tied_in_half_precision():
    made = model(tie=True)
    masters = Masters(made, torch.bfloat16)
    assert made.lm_head.weight is made.embed_tokens.weight
    assert len(masters.owned) == len(list(made.parameters()))
