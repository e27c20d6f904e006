"""Laws 6 and 7 for what trains a part: adapters, LISA, GaLore, noise; in one process and in two."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from small_training import StopAt, fingerprint, finished, small_trainer
from spread import Alone, Result, spread_results
from spread_tuning import CASES, DRAWN, RESUMED, TUNED, what

from babyllama.errors import Interrupted
from babyllama.model.lora import Lora
from babyllama.train.losses.objectives import NextToken

ALONE: dict[str, Alone] = {}
ONE = {
    **TUNED,
    **DRAWN,
    "int8": {"adapter": Lora(rank=4, base="int8", train=("norms",))},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ONE)
def test_interrupted_and_continued_to_the_bit(tmp_path, name, dtype):
    kwargs = {"dtype": dtype, "steps": 9, **ONE[name]}  # stopped between two draws of LISA's and of GaLore's
    whole = finished(tmp_path / "whole", **kwargs)
    stopped = small_trainer(tmp_path / "stopped", show=StopAt(7), **kwargs)
    with pytest.raises(Interrupted, match="step 7"):
        stopped.train()
    stopped.run.unlock()
    assert fingerprint(finished(tmp_path / "stopped", **kwargs)) == fingerprint(whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [n for n in ONE if isinstance(ONE[n].get("adapter"), Lora)])
def test_what_is_trained_moves_and_the_base_stays(tmp_path, name, dtype):
    before = {n: p.detach().clone() for n, p in small_trainer(tmp_path / "x", **ONE[name]).model.named_parameters()}
    trainer = finished(tmp_path / "run", dtype=dtype, **ONE[name])
    for path, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32 and not torch.equal(parameter, before[path]), path
        else:
            assert parameter.dtype == dtype and torch.equal(parameter, before[path].to(dtype)), path


@pytest.mark.parametrize("name", [n for n in ONE if isinstance(ONE[n].get("adapter"), Lora)])
def test_checkpoints_hold_only_what_is_trained(tmp_path, name):
    trainer = finished(tmp_path / "run", **ONE[name])
    saved = load_file(trainer.run.states()[-1][1] / "state.safetensors")
    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert {n.removeprefix("master.") for n in saved if n.startswith("master.")} == trained
    assert {n.removeprefix("optimizer.").rpartition(".")[0] for n in saved if n.startswith("optimizer.")} == trained
    assert all(n.startswith(("master.", "optimizer.", "guard.")) for n in saved)


def test_a_copy_keeps_the_adapter_in_float32(tmp_path):
    trainer = finished(tmp_path / "run", dtype=torch.bfloat16, **ONE["dora-plus"])
    kinds = {n.rpartition(".")[2]: p.dtype for n, p in trainer.worker.snapshot().named_parameters() if p.requires_grad}
    assert kinds == dict.fromkeys(("lora_A", "lora_B", "magnitude", "weight"), torch.float32)


def test_half_precision_makes_no_copies_of_frozen_weights(tmp_path):
    trainer = small_trainer(tmp_path / "run", dtype=torch.bfloat16, steps=1, **ONE["lora"])
    seen = []

    class Spy(NextToken):
        def __call__(self, model, batch):
            seen.extend((n, p.data_ptr(), p.dtype) for n, p in model.named_parameters())
            return super().__call__(model, batch)

    trainer.objective = Spy()
    trainer.train()
    own = {n: p.data_ptr() for n, p in trainer.model.named_parameters()}
    assert {dtype for *_, dtype in seen} == {torch.bfloat16}
    assert all((pointer == own[n]) == ("lora_" not in n) for n, pointer, _ in seen)


# ── in two processes ────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return spread_results(tmp_path_factory)


@pytest.mark.parametrize("engine,name", CASES)
def test_two_processes_learn_what_one_does(folder, tmp_path, engine, name):
    if name not in ALONE:
        kwargs = {key: value for key, value in what(name).items() if key != "recompute"}
        ALONE[name] = Alone(tmp_path / "alone", **kwargs)
    Result(folder, f"tuning/{engine}-{name}").close_to(ALONE[name], 2e-5 if name == "galore" else 3e-6)


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero2"])
def test_in_half_precision_too(folder, tmp_path, engine):
    result = Result(folder, f"tuning/{engine}-bf16")
    result.close_to(Alone(tmp_path / "alone", dtype=torch.bfloat16, **what("dora-plus")), 3e-3)
    kinds = {name: weight.dtype for name, weight in result.weights.items()}
    assert {d for n, d in kinds.items() if n.endswith((".lora_A", ".magnitude", ".own.weight"))} == {torch.float32}
    assert {d for n, d in kinds.items() if n.endswith("_proj.base.weight")} == {torch.bfloat16}


@pytest.mark.parametrize("engine,name", RESUMED)
def test_stopped_and_continued_by_as_many(folder, engine, name):
    whole, stopped = (Result(folder, f"tuning/{how}{engine}-{name}") for how in ("", "stopped-"))
    assert stopped.losses == whole.losses
    assert all(torch.equal(weight, whole.weights[key]) for key, weight in stopped.weights.items())


def test_lisa_wakes_the_same_blocks_on_every_rank(folder):
    ranks = [(folder / "tuning" / f"drawn-{rank}.txt").read_text().split() for rank in (0, 1)]
    assert ranks[0] == ranks[1] and set(ranks[0]) == {"0", "1"}
