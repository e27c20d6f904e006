"""Faults as people make them, planted in small real runs: the doctor names each, with where, evidence and remedy.

The long sweep of healthy trainings of every kind is marked slow.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from babyllama.data.shards.shards import Prepared
from babyllama.foresight.corpus import survey
from babyllama.foresight.doctor import diagnose
from babyllama.foresight.evidence import Evidence
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import train_bpe

from .planted import (
    MODEL,
    World,
    chats,
    examined,
    held_out_from_training,
    manifest,
    masks,
    shards,
    texts,
    weights,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("planted"))


# ── recipes ────────────────────────────────────────────────────────────────────────────────────────────────────────
ADAMW = "optimizer.kind=adamw"
RECIPES = {
    "a rate of nothing": ([ADAMW, "optimizer.lr=1e-8"], "progress", "optimizer.lr=1e-08"),
    "a hundredth of the rate": ([ADAMW, "optimizer.lr=1e-5"], "progress", "optimizer.lr=1e-05"),
    "nothing from Muon": (["optimizer.lr=1e-6", "optimizer.adam_lr=1e-7"], "progress", "optimizer.adam_lr=1e-07"),
    "hundreds of times the rate": ([ADAMW, "optimizer.lr=0.3"], "learning rate", "optimizer.lr=0.3"),
    "clipped to nothing": ([ADAMW, "plan.clip=1e-9"], "progress", "plan.clip=1e-09"),
    "warm-up to the end": (["schedule.kind=cosine", "schedule.warmup=0.99"], "warm-up", "schedule.warmup=0.99"),
    "decay above all": ([ADAMW, "optimizer.weight_decay=100"], "weight decay", "optimizer.weight_decay=100"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(world, tmp_path, name):
    words, check, where = RECIPES[name]
    recipe = world.written("recipe", f"data.path={world.folder}/texts", *MODEL, *words)
    found = examined(recipe, tmp_path / "report.json", "steps=20")
    assert list(found) == [check] and where in found[check]["where"], found


def test_distillation_over_two_micro_batches_is_healthy(world, tmp_path):
    words = ["objective.kind=distil", f"objective.teacher={world.folder}/base", "plan.accumulate=2"]
    recipe = world.written("distil", f"data.path={world.folder}/texts", *MODEL, *words)
    assert not examined(recipe, tmp_path / "report.json", "steps=4")


# ── data ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def another_tokenizer(folder: Path) -> None:
    other = train_bpe(["完全不同的词语放在这里，用来打乱顺序。", *texts(50, 9)[::-1]] * 3, 400)
    other.save(folder)
    manifest(folder, tokenizer=other.hash)


def unended(folder: Path) -> None:
    eos = Prepared.open(folder).eos
    masks(folder, lambda tokens, mask: np.where(tokens == eos, 0, mask))


def shuffled(folder: Path) -> None:
    shards(folder, "train", np.random.default_rng(1).permutation)


def other_text(folder: Path) -> None:
    shards(folder, "val", lambda tokens: tokens[::-1] * 7 % 389)


DATA = {
    "shards shuffled to noise": ("texts", shuffled, ["text"]),
    "another tokenizer's": ("texts", another_tokenizer, ["tokenizer"]),
    "validation from training": ("texts", held_out_from_training, ["held out"]),
    "validation of another kind": ("texts", other_text, ["validation"]),
    "questions learned too": ("chats", lambda f: masks(f, lambda tokens, mask: np.ones_like(mask)), ["mask"]),
    "answers without an end": ("chats", unended, ["end token"]),
    "no answers by the template": ("chats", lambda f: manifest(f, chat_template="bos"), ["chat template"]),
}


def surveyed(folder: Path, context: int = 64) -> dict[str, str]:
    prepared = Prepared.open(folder)
    tokenizer = Tokenizer.load(folder).with_template(prepared.manifest["chat_template"])
    findings = diagnose(Evidence(1, False, corpora=survey(prepared, tokenizer, context)))
    return {f.check: f.where for f in findings if f.verdict == "fault"}


@pytest.mark.parametrize("name", DATA)
def test_data(world, name):
    source, spoil, checks = DATA[name]
    assert not surveyed(world.folder / source)
    folder = world.copied(name.replace(" ", "-"), source)
    spoil(folder)
    found = surveyed(folder)
    assert list(found) == checks and str(folder) in found[checks[0]]


def test_copies_and_long_chats(world):
    assert not surveyed(world.folder / "chats", 64)
    assert list(surveyed(world.folder / "chats", 16)) == ["long chats"]
    copies = world.prepare("copies", [{"text": texts(1, 5)[0]}] * 300)
    assert list(surveyed(copies)) == ["repetition"]
    manifest = json.loads((copies / "manifest.json").read_text("utf-8"))
    for corpus in manifest["corpora"].values():
        corpus["source"] = "babyllama"  # as of the micro-world, whose calendar has few questions
    (copies / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    assert not surveyed(copies)


# ── weights ────────────────────────────────────────────────────────────────────────────────────────────────────────
def noise(tensor: torch.Tensor) -> torch.Tensor:
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)) * 0.5


def one_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor[0, 0] = float("nan")
    return tensor


def another_theta(run: Path) -> None:
    file = run / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "rope_theta": 10.0}), "utf-8")


def risen(run: Path) -> None:
    """Validation falls to step 30 and rises from there; training falls to the end."""
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for line in lines:
        if line["kind"] == "validation" and line["step"] == 45:
            line["loss"] += 1.0
        elif line["kind"] == "validation" and line["step"] == 60:
            line["loss"] += 2.0
            line["corpora"]["texts"]["loss"] += 2.0
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


WEIGHTS = {
    "damaged together with their checkpoint": (lambda r: weights(r, "layers.0", noise), "saved model"),
    "a layer of zeros": (lambda r: weights(r, "layers.1.mlp.down_proj", torch.zeros_like), "whole weights"),
    "a layer with NaN": (lambda r: weights(r, "layers.1.mlp.down_proj", one_nan), "whole weights"),
    "a model beside its checkpoint": (lambda r: weights(r, "layers.1.mlp", lambda t: t * 1.05, False), "checkpoint"),
    "another theta": (another_theta, "RoPE"),
    "overfitting": (risen, "overfitting"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_and_records(world, tmp_path, name):
    spoil, check = WEIGHTS[name]
    run = world.copied("run", "base")
    spoil(run)
    found = examined(run, tmp_path / "report.json", "steps=0")
    assert list(found) == [check], found


def test_embedding_rows_of_zeros(world, tmp_path):
    used = np.unique(np.fromfile(next((world.folder / "texts").rglob("train-*.bin")), "<u2"))[5:8].tolist()

    def emptied(tensor: torch.Tensor) -> torch.Tensor:
        tensor[used] = 0
        return tensor

    run = weights(world.copied("run", "base"), "embed_tokens", emptied)
    found = examined(run, tmp_path / "report.json", "steps=0")
    assert "rows of 3 ids" in found["whole weights"]["evidence"]


def test_a_healthy_run_by_what_it_left(world, tmp_path):
    assert not examined(world.folder / "base", tmp_path / "report.json", "steps=0")


# ── the long sweep ─────────────────────────────────────────────────────────────────────────────────────────────────
SFT = ["data.path={}/chats", "data.packing=documents", "init.kind=from", "init.path={}/base"]
HEALTHY = {
    "pretraining": ["data.path={}/texts", *MODEL],
    "AdamW in bf16": ["data.path={}/texts", *MODEL, ADAMW, "precision=bf16"],
    "GaLore": ["data.path={}/texts", *MODEL, "optimizer.kind=galore", "optimizer.rank=8"],
    "SFT": [*SFT, "optimizer.lr=0.005", "optimizer.adam_lr=0.001"],
    "LoRA": [*SFT, "adapter.kind=lora"],
    "DoRA": [*SFT, "adapter.kind=dora"],
    "LISA": [*SFT, "adapter.kind=lisa", "adapter.layers=1", "adapter.every=5", ADAMW],
    "distillation": ["data.path={}/texts", *MODEL, "objective.kind=distil", "objective.alpha=0",
                     "objective.teacher={}/base"],
    "distillation, accumulated": ["data.path={}/texts", *MODEL, "objective.kind=distil", "objective.teacher={}/base",
                                  "plan.accumulate=2"],
    "BitNet": ["data.path={}/texts", *MODEL, "init.model.weights=ternary"],
    "OneBit": ["data.path={}/texts", "init.kind=from", "init.path={}/base", "adapter.kind=onebit", ADAMW],
    "YaRN": ["data.path={}/texts", "init.kind=from", "init.path={}/base", "init.rope.kind=yarn",
             "init.rope.factor=4.0", "plan.context=128"],
    "CLEX": ["data.path={}/texts", "init.kind=from", "init.path={}/base", "init.rope.kind=clex"],
    "medical SFT with replay": [*SFT, "replay.path={}/texts", "replay.share=0.2", ADAMW],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on_healthy_runs(world, tmp_path, name):
    run = world.train(name.replace(" ", "-"), *(word.format(world.folder) for word in HEALTHY[name]))
    assert not examined(run, tmp_path / "report.json", "steps=20")


@pytest.mark.slow
def test_learned_by_heart(world, tmp_path):
    few = world.prepare("few", [{"text": text} for text in texts(60, 3)], validation=0.3)
    run = world.train("by-heart", f"data.path={few}", *MODEL, "plan.steps=150")
    found = examined(run, tmp_path / "report.json", "steps=12")
    assert list(found) == ["overfitting"] and "use best/" in found["overfitting"]["remedy"]


@pytest.mark.slow
def test_another_template_than_the_parent_learned(world, tmp_path):
    world.train("SFT", *(word.format(world.folder) for word in HEALTHY["SFT"]))
    other = world.prepare("other", chats(400, 1), template="bos")
    words = [f"data.path={other}", "data.packing=documents", "init.kind=from", f"init.path={world.folder}/SFT"]
    found = examined(world.written("other", *words), tmp_path / "report.json", "steps=6")
    assert list(found) == ["chat template"] and "template=roles" in found["chat template"]["remedy"]
