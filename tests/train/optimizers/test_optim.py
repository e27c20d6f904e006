"""Schedules at their corners, parameter groups, float32 masters."""

import pytest
import torch

from babyllama.model.config import ModelConfig
from babyllama.model.lora import Dora, attach
from babyllama.model.transformer import Transformer, initialise
from babyllama.train.optimizers.optim import AdamW, Cosine, GaLore, Muon, Wsd


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


def test_only_a_stable_rate_can_be_lengthened():
    assert not any(Cosine().branches(step, 100) for step in range(101))
    assert [step for step in range(101) if Wsd(decay=0.5).branches(step, 100)]


def test_adamw_decays_matrices_only():
    (optimizer,) = AdamW(weight_decay=0.1).build(model().named_parameters())
    for group in optimizer.param_groups:
        assert {p.ndim for p in group["params"]} == ({2} if group["weight_decay"] else {1})


def test_what_an_adapter_trains_whole_may_have_a_rate_of_its_own():
    made = model()
    attach(made, Dora(rank=2, train=("embed_tokens", "norms")), seed=1)
    trained = {name: p for name, p in made.named_parameters() if p.requires_grad}
    for recipe in (AdamW(lr=1e-2, weight_decay=0.1), AdamW(lr=1e-2, weight_decay=0.1, whole_lr=1e-4)):
        (optimizer,) = recipe.build(trained.items())
        found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        assert found.keys() == {id(p) for p in trained.values()} and optimizer.param_groups[0]["lr"] == 1e-2
        for name, parameter in trained.items():
            rate = recipe.whole_lr or 1e-2
            own = name == "embed_tokens.own.weight" or "norm" in name
            assert found[id(parameter)]["lr"] == (rate if own else 1e-2), name
            assert found[id(parameter)]["weight_decay"] == (0.1 if parameter.ndim == 2 else 0.0), name


@pytest.mark.parametrize("tie", [True, False])
def test_every_parameter_has_exactly_one_optimizer(tie):
    made = model(tie)
    for recipe in (AdamW(), Muon()):
        owned = [id(p) for o in recipe.build(made.named_parameters()) for g in o.param_groups for p in g["params"]]
        assert sorted(owned) == sorted(id(p) for p in made.parameters())
    muon, _ = Muon().build(made.named_parameters())
    assert len(muon.param_groups[0]["params"]) == 2 * 7  # seven matrices a block; never the embedding or the head


@pytest.mark.parametrize("recipe", [AdamW(lr=0.1, eps=0.2), Muon(adam_lr=0.1, adam_eps=0.2), GaLore(lr=0.1, eps=0.2)])
def test_what_is_called_adam_is_what_torchs_adamw_trains(recipe):
    made = model()
    adams = [o for o in recipe.build(made.named_parameters()) if isinstance(o, torch.optim.AdamW)]
    owned = {id(p): g for o in adams for g in o.param_groups for p in g["params"]}
    for name, parameter in made.named_parameters():
        assert recipe.adam.owns(name, parameter) == (id(parameter) in owned), name
    assert {(g["lr"], g["eps"]) for g in owned.values()} == {(recipe.adam.lr, recipe.adam.eps)} == {(0.1, 0.2)}


def test_what_a_machine_chooses_is_chosen_once(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr("babyllama.train.optimizers.optim.bf16_is_faster", lambda _: True)
    assert Muon().settled(cpu).chosen == {"rounding": "bf16"}
    assert Muon().settled(cpu, {"rounding": "fp32", "other": "x"}).chosen == {"rounding": "fp32"}
    assert Muon(rounding="bf16").settled(cpu, {"rounding": "fp32"}).chosen == {"rounding": "bf16"}
    assert AdamW().settled(cpu, {"rounding": "fp32"}) == AdamW() and AdamW().chosen == {}


def test_the_usual_rates_are_the_defaults_without_decay():
    assert Muon(lr=1, adam_lr=2, momentum=0.5, weight_decay=3).usual() == Muon(momentum=0.5, weight_decay=0)
    assert AdamW(lr=1, whole_lr=2, eps=1e-4).usual() == AdamW(eps=1e-4, weight_decay=0)
