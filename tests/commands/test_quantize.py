"""The verb: a folder that every other verb loads, figures before and after, a sweep, faults in one line."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from babyllama.cli import main as cli
from babyllama.commands.generate import GenerateRecipe
from babyllama.commands.generate import main as generate
from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.commands.quantize import QuantizeRecipe, _samples
from babyllama.commands.quantize import main as quantize
from babyllama.commands.train import main as train
from babyllama.commands.train_recipe import TrainRecipe
from babyllama.errors import InputError
from babyllama.load import load, read_model
from babyllama.model.checkpoint import load_model, save_model
from babyllama.quant.folder import packed_modules
from babyllama.quant.int8 import MixedInt8Linear
from babyllama.quant.linear import GroupedLinear
from babyllama.recipe import load_recipe

from .small_run import CHATS, messages_of, save_taught, small_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The taught model in base/, its chats prepared in data/."""
    folder = tmp_path_factory.mktemp("quantize")
    save_taught(folder / "base")
    (folder / "tok").mkdir()
    small_tokenizer().save(folder / "tok")
    chats = [{"messages": [*messages_of(*first), *messages_of(*second)]} for first in CHATS for second in CHATS]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats), "utf-8")
    texts = ["".join(CHATS[(n + i) % 4][i % 2] for i in range(n + 3)) for n in range(60)]
    (folder / "text.jsonl").write_text(
        "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), "utf-8"
    )
    corpora = f"[{{path: {folder / 'text.jsonl'}}}, {{path: {folder / 'chats.jsonl'}}}]"
    given = [f"out={folder / 'data'}", f"tokenizer={folder / 'tok'}", f"corpora={corpora}"]
    prepare(load_recipe(PrepareRecipe, None, [*given, "workers=1", "validation=0.3"]))
    return folder


def run(folder, name, *words):
    given = [f"model={folder / 'base'}", f"data={folder / 'data'}", f"out={folder / name}", "device=cpu",
             "calibration.samples=8", "calibration.context=48", "sample_tokens=12", "questions=2"]  # fmt: skip
    recipe = load_recipe(QuantizeRecipe, None, [*given, *words])
    quantize(recipe)
    return json.loads((folder / name / "report.json").read_text("utf-8"))


@pytest.mark.parametrize("method", ["gptq", "awq", "rtn", "int8"])
def test_from_a_model_to_a_packed_one_that_others_verbs_use(place, method, capsys):
    found = run(place, method, f"method.kind={method}", "prompts=[你是]")
    out = capsys.readouterr().out
    before, (after,) = found["before"], found["after"]
    assert "before and after" in out and f"babyllama chat {place / method}" in out
    assert after["perplexity"] < 1.5 * before["perplexity"] and after["disk_bytes"] < before["disk_bytes"]
    assert (
        after["held_bytes"] < before["held_bytes"] and len(after["layers"]) == 14 and set(after["samples"]) == {"你是"}
    )
    assert all(figures["tokens_per_second"] > 0 and figures["answers"]["asked"] > 0 for figures in (before, after))
    loaded = load(place / method, torch.device("cpu"))
    kind = MixedInt8Linear if method == "int8" else GroupedLinear
    assert {type(module) for module in packed_modules(loaded.model).values()} == {kind}
    assert loaded.model.norm.weight.dtype == torch.bfloat16
    generate(load_recipe(GenerateRecipe, None, [f"model={place / method}", "prompt=你", "max_tokens=4", "device=cpu"]))
    with pytest.raises(InputError, match="already quantised"):
        quantize(load_recipe(QuantizeRecipe, None, [f"model={place / method}", f"data={place / 'data'}",
                                                    f"out={place / 'twice'}", "calibration.context=48",
                                                    "calibration.samples=8"]))  # fmt: skip


def test_a_sweep_draws_quality_against_bits(place):
    found = run(place, "sweep", "sweep=[{kind: rtn, bits: 2}, {kind: gptq, bits: 8}, {kind: gptq, bits: 2}]")
    assert (place / "sweep" / "figure.png").stat().st_size > 5000 and not (place / "sweep" / "model").exists()
    assert [entry["name"] for entry in found["after"]] == ["rtn 2 bit g16", "gptq 8 bit g16 mse", "gptq 2 bit g16 mse"]
    assert abs(found["after"][1]["perplexity"] / found["before"]["perplexity"] - 1) < 0.02
    # A model of chats that no recipe tells of is shown at held-out questions, which it answers.
    shown = found["before"]["samples"]
    assert len(shown) == 2 and all(question and answer for question, answer in shown.items())
    assert all(entry["samples"].keys() == shown.keys() for entry in found["after"])


def test_ends_and_dtype(place):
    run(place, "ends", "ends={head: rtn, embedding: rtn, bits: 8}", "dtype=bf16")
    model = read_model(place / "ends" / "model")
    words = [f"out={place / 'on'}", f"data.path={place / 'data'}", "plan.steps=1", "device=cpu", "adapter.kind=lora"]
    for of, key in ((f"init={{kind: from, path: {place / 'ends'}}}", "init.path"),
                    (f"objective={{kind: distil, teacher: {place / 'ends'}}}", "objective.teacher")):  # fmt: skip
        with pytest.raises(InputError, match=f"{key}: the head of .*ends is packed in few bits"):
            train(load_recipe(TrainRecipe, None, [*words, f"init={{kind: from, path: {place / 'base'}}}", of]))
    assert "embed_tokens" in packed_modules(model) and model.norm.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("words,said", [
    (["method.group_size=32", "method.bits=5"], "bits"),
    (["method.group_size=40"], "group_size"),
    (["method.group_size=32"], "48 inputs, no multiple of 32; give 16, or method.short_group=true"),
    (["calibration.samples=100000"], "too short for calibration.samples=100000"),
    (["calibration.context=4096"], "above the model's 96 positions"),
    (["method.kind=onebit"], "adapter.kind=onebit has trained"),
    (["corpora=[chats, elsewhere]"], "no corpus 'elsewhere'; it has"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(place, words, said, capsys, monkeypatch):
    given = [str(place / "base"), f"data={place / 'data'}", f"out={place / 'bad'}", "calibration.context=48",
             "calibration.samples=8"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["babyllama", "quantize", *given, *words])
    with pytest.raises(SystemExit) as stopped:
        cli()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and said in error and "Traceback" not in error
    assert not (place / "bad").exists()  # and nothing that would refuse the mended command


def test_weights_that_are_not_numbers(place, tmp_path):
    model = load_model(place / "base")
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    save_model(model, tmp_path, small_tokenizer().bos_id, small_tokenizer().eos_id)
    small_tokenizer().save(tmp_path)
    with pytest.raises(InputError, match=r"layers.0.mlp.up_proj: NaN or infinite weights"):
        quantize(load_recipe(QuantizeRecipe, None, [f"model={tmp_path}", f"data={place / 'data'}",
                                                    f"out={tmp_path / 'out'}", "calibration.context=48",
                                                    "calibration.samples=8"]))  # fmt: skip


def test_a_model_that_learned_to_chat_is_asked_what_its_training_asked(tmp_path):
    """What it writes from nothing looks like a model that is broken."""
    save_taught(tmp_path / "run" / "model")
    (tmp_path / "run" / "recipe.yaml").write_text("samples: {prompts: [你是谁？], chat: true}", "utf-8")
    (tmp_path / "run" / "run.json").write_text('{"verb": "train", "summary": {}}')
    words = ["data=d", "out=o"]
    asked = [_samples(load_recipe(QuantizeRecipe, None, [f"model={tmp_path}/{name}", *words, *more]))
             for name, more in (("run", []), ("run", ["prompts=[春天]"]), ("run/model", []), ("none", []))]  # fmt: skip
    assert [(one.prompts, one.chat) for one in asked] == [
        (("你是谁？",), True), (("春天",), False), (("你是谁？",), True), (("",), False)]  # fmt: skip
