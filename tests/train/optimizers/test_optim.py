"""Schedules at their corners, parameter groups, float32 masters."""

import pytest
import torch
from small_training import small_trainer
from torch import nn

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


def test_muon_takes_the_heads_of_queries_keys_and_values_apart():
    made = model()
    for recipe, apart in ((Muon(), 2 * 3), (Muon(by_head=False), 0)):
        muon, _ = recipe.build(made.named_parameters(), head_dim=made.config.head_dim)
        found = {group["rows"]: len(group["params"]) for group in muon.param_groups}
        assert found == {None: 2 * 7 - apart} | ({made.config.head_dim: apart} if apart else {})


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
    for group in zip(*muon, strict=True):  # of whole matrices, and of heads
        assert list(group) == pytest.approx([0.02 * share for share in shares], rel=1e-5)
    assert [r for (r,) in adam] == pytest.approx([0.003 * share for share in shares], rel=1e-5)
    logged = [m["lr"] for m in trainer.run.metrics() if m["kind"] == "train"]
    assert logged == pytest.approx([0.02 * share for share in shares], rel=1e-5)
