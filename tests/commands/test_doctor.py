"""The verb doctor on real runs and recipes: a watch, a rehearsal, exit codes, the machine's report."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from babyllama import cli
from babyllama.commands import prepare, train
from babyllama.commands.doctor import DoctorRecipe, main
from babyllama.data.sources.corpora import CorpusChoice
from babyllama.errors import InputError
from babyllama.foresight.doctor import CHECKS
from babyllama.recipe import load_recipe

from .small_run import messages_of, small_tokenizer

CHATS = [(f"{i}是第几个数？", f"是第{i}个数，很高兴见到你。") for i in range(60)]
TEXTS = [f"第{i}篇：小小的语言模型很高兴。" + "一加一等于二。" * (i % 5 + 1) for i in range(120)]
MODEL = ["init.model.preset=tiny", "init.model.hidden_size=32", "init.model.num_hidden_layers=1",
         "init.model.num_attention_heads=2", "init.model.num_key_value_heads=2"]  # fmt: skip
PLAN = ["plan.steps=12", "plan.micro_batch_size=4", "plan.accumulate=2", "plan.context=48", "plan.save_every=6",
        "plan.log_every=2", "device=cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts and chats, prepared; a run over the texts in bf16."""
    folder = tmp_path_factory.mktemp("doctor")
    small_tokenizer().save(_made(folder / "tok"))
    kinds = {"texts": [{"text": text} for text in TEXTS],
             "chats": [{"messages": messages_of(*chat)} for chat in CHATS]}  # fmt: skip
    for name, lines in kinds.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
        prepare.main(prepare.PrepareRecipe(
            out=folder / name, tokenizer=folder / "tok", validation=0.0, workers=1,
            corpora=(CorpusChoice(path=str(folder / f"{name}.jsonl")),)))  # fmt: skip
    train.main(training(folder, "base", f"data.path={folder}/texts", *MODEL, "precision=bf16"))
    return folder


def _made(folder):
    folder.mkdir()
    return folder


def training(folder, out, *words):
    return load_recipe(train.TrainRecipe, None, [f"out={folder}/{out}", *PLAN, *words])


def doctor(target, tmp_path, *words, code=0):
    out = tmp_path / "doctor.json"
    recipe = load_recipe(DoctorRecipe, None, [f"target={target}", f"out={out}", "steps=12", "device=cpu", *words])
    if code:
        with pytest.raises(SystemExit) as left:
            main(recipe)
        assert left.value.code == code
    else:
        main(recipe)
    report = json.loads(out.read_text("utf-8"))
    assert [finding["check"] for finding in report["findings"]] == list(CHECKS)
    assert report["healthy"] == (code == 0)
    return {f["check"]: f for f in report["findings"] if f["verdict"] == "fault"}, report


def written(folder, name, *words):
    """A train recipe as a file."""
    from babyllama.recipe import dump_recipe

    path = folder / f"{name}.yaml"
    path.write_text(dump_recipe(training(folder, name, *words)), "utf-8")
    return path


def test_a_healthy_run(folder, tmp_path, capsys):
    before = sorted(str(p) for p in (folder / "base").rglob("*") if ".lock" not in p.name)
    faults, report = doctor(folder / "base", tmp_path)
    assert not faults and "healthy" in capsys.readouterr().out
    verdicts = {f["check"]: f["verdict"] for f in report["findings"]}
    assert [name for name, verdict in verdicts.items() if verdict != "ok"] == [
        "weight decay", "overfitting", "ranks", "fp16 overflow", "chat template", "long chats", "held out",
        "validation", "RoPE"]  # fmt: skip
    assert "recorded loss × 1 " in next(f["evidence"] for f in report["findings"] if f["check"] == "accumulation")
    assert before == sorted(str(p) for p in (folder / "base").rglob("*") if ".lock" not in p.name)


@pytest.mark.parametrize("words", [
    ["data.path={}/texts", "data.packing=documents", *MODEL, "optimizer.kind=adamw", "precision=bf16"],
    ["data.path={}/texts", "data.separate_documents=true", *MODEL, "precision=fp16"],
    ["data.path={}/chats", "data.packing=documents", "init.kind=from", "init.path={}/base", "plan.accumulate=4"],
])  # fmt: skip
def test_healthy_recipes(folder, tmp_path, words):
    recipe = written(folder, "healthy", *(word.format(folder) for word in words))
    faults, report = doctor(recipe, tmp_path)
    assert not faults, report
    assert not (folder / "healthy").exists()
    verdicts = {f["check"]: f["verdict"] for f in report["findings"]}
    assert verdicts["end token"] == verdicts["labels"] == verdicts["mask"] == verdicts["accumulation"] == "ok"


def test_a_learning_rate_that_explodes(folder, tmp_path, capsys):
    recipe = written(folder, "wild", f"data.path={folder}/texts", *MODEL, "optimizer.kind=adamw", "optimizer.lr=100.0")
    faults, _ = doctor(recipe, tmp_path, code=1)
    assert list(faults) == ["learning rate"] and "lower optimizer.lr" in capsys.readouterr().out
    assert not doctor(recipe, tmp_path, "overrides=[optimizer.lr=0.003]")[0]


def test_rounded_masters_and_drifted_ranks_in_a_run(folder, tmp_path):
    run = tmp_path / "run"
    train.main(training(tmp_path, "run", f"data.path={folder}/texts", *MODEL))
    file = sorted((run / "state").glob("step-*"))[-1] / "state.safetensors"
    save_file({n: t.bfloat16().float() if "master" in n else t for n, t in load_file(file).items()}, file)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(json.dumps({"step": 12, "kind": "ranks", "fingerprints": ["0a", "0b"]}) + "\n")
    faults, _ = doctor(run, tmp_path, "steps=0", code=1)
    assert list(faults) == ["ranks", "whole weights", "half-precision resume"]
    assert faults["half-precision resume"]["where"].endswith("step-0000012")
    assert "100.00% are bf16 numbers" in faults["half-precision resume"]["evidence"]


def test_going_on_from_half_weights_over_the_same_data(folder, tmp_path):
    words = ["init.kind=from", f"init.path={folder}/base"]
    again = written(folder, "again", f"data.path={folder}/texts", *words)
    faults, _ = doctor(again, tmp_path, "steps=2", code=1)
    assert list(faults) == ["half-precision resume"]
    assert "100.00% are bf16 numbers" in faults["half-precision resume"]["evidence"]


def test_answers_cut_off_by_a_short_context(folder, tmp_path):
    """Every long question fills its rows; what is left of the chat, its answer, is masked by a broken corpus."""
    store = folder / "masked"
    prepare.main(prepare.PrepareRecipe(out=store, tokenizer=folder / "tok", validation=0.0, workers=1,
                                       corpora=(CorpusChoice(path=str(folder / "chats.jsonl")),)))  # fmt: skip
    for mask in store.rglob("train-*.mask"):
        mask.write_bytes(bytes(mask.stat().st_size))
    recipe = written(folder, "cut", f"data.path={store}", "data.packing=documents", *MODEL)
    assert list(doctor(recipe, tmp_path, code=1)[0]) == ["mask"]


def test_the_command_line(folder, tmp_path, capsys, monkeypatch):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["babyllama", "doctor", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, capsys.readouterr()

    recipe = str(written(folder, "word", f"data.path={folder}/texts", *MODEL))
    code, shown = run(recipe, "steps=6", "format=json")
    assert code == 0 and json.loads(shown.out)["healthy"]
    code, shown = run(recipe, "steps=12", "overrides=[optimizer.lr=1000.0]")
    assert code == 1 and "learning rate" in shown.out
    for words, says in [(("nowhere.yaml",), "no such recipe"), ((str(folder),), "is not a run"),
                        ((str(folder / "texts"),), "holds a prepare run"), ((recipe, "steps=0"), "steps: 0 reads"),
                        ((), "target: this key must be given"), ((recipe, "nothing=1"), "unknown key")]:  # fmt: skip
        code, shown = run(*words)
        assert code == 2 and says in shown.err and "Traceback" not in shown.err, shown.err


def test_a_missing_gpu_is_one_line(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="cuda is asked for"):
        main(DoctorRecipe(target=str(folder / "base"), device="cuda"))
