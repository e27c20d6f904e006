"""Adapters through the verbs: train, chat's and evaluate's loading, merge, going on, and every fault in one line."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from babyllama.commands import evaluate, generate, merge, prepare, train
from babyllama.data.sources.corpora import CorpusChoice
from babyllama.errors import InputError
from babyllama.load import load
from babyllama.model.lora import enabled
from babyllama.recipe import load_recipe
from babyllama.run import Run
from conftest import one_clear_line

from .small_run import messages_of, save_taught

CPU = torch.device("cpu")
NEW = [("天空是什么颜色？", "天空是蓝色的。"), ("水在几度结冰？", "水在零度结冰。"), ("草是什么颜色？", "草是绿色的。"),
       ("火热不热？", "火很热。"), ("雪是什么颜色？", "雪是白色的。")]  # fmt: skip
OTHERS = [(f"{i}乘一等于几？", f"等于{i}。") for i in range(20)]  # some are held out
TEXTS = ["小小的语言模型很高兴。", "一加一等于二，二加一等于三。", "再见，欢迎再来！再见。"] * 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A taught base, chats that it does not know, texts."""
    folder = tmp_path_factory.mktemp("tune")
    save_taught(folder / "base" / "model")
    chats = [{"messages": messages_of(*chat)} for chat in NEW * 6 + OTHERS]
    for name, lines in (("chats", chats), ("texts", [{"text": text} for text in TEXTS])):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
        prepare.main(prepare.PrepareRecipe(
            out=folder / f"{name}-data", tokenizer=folder / "base" / "model", validation=0.4, workers=1,
            corpora=(CorpusChoice(path=str(folder / f"{name}.jsonl"), label=name),)))  # fmt: skip
    return folder


def recipe(folder, out, *overrides):
    given = [f"out={folder}/{out}", f"data.path={folder}/chats-data", "data.packing=documents", "init.kind=from",
             f"init.path={folder}/base", "plan.steps=40", "plan.micro_batch_size=4", "plan.log_every=5",
             "plan.save_every=20", "plan.validate_every=20", "device=cpu"]  # fmt: skip
    return load_recipe(train.TrainRecipe, None, [*given, *overrides])


def test_the_rate_where_none_is_given(folder):
    """A model that is there is not trained at the rate of new weights, and whoever names an optimiser has its own."""

    def rate(*words):
        return recipe(folder, "x", *words).optimizer

    assert (rate().kind, rate().lr, rate().adam_lr) == ("muon", 0.004, 0.001) == (
        "muon", rate("adapter.kind=lisa").lr, rate("adapter.kind=lisa").adam_lr)  # fmt: skip
    assert (rate("adapter.kind=lora").kind, rate("adapter.kind=lora").lr) == ("adamw", 0.001)
    assert rate("optimizer=muon").lr == 0.02
    dpo, grpo = "objective=dpo", ["objective=grpo", "rewards=[{kind: exact}]", "plan.micro_batch_size=8"]
    for compared in ([dpo], grpo):
        assert (rate(*compared).kind, rate(*compared).lr) == ("adamw", 2e-5)
    assert rate(dpo, "adapter.kind=lora").lr == 2e-4


def tune(folder, out, *overrides):
    made = recipe(folder, out, *overrides)
    train.main(made)
    return made.out


def losses(run):
    return [m["loss"] for m in Run.open(run).metrics() if m["kind"] == "train"]


def weights(folder):
    return load_file(folder / "model.safetensors")


KINDS = {
    "lora": ["adapter.kind=lora", "adapter.rank=8", "optimizer.kind=adamw", "optimizer.lr=0.01"],
    "dora": [
        "adapter.kind=dora",
        "adapter.rank=8",
        "adapter.train=[embed_tokens, norms]",
        "optimizer.kind=adamw",
        "optimizer.lr=0.01",
        "plan.steps=150",
    ],
    "qlora": ["adapter.kind=lora", "adapter.base=nf4", "adapter.rank=8"],
    "bf16": ["adapter.kind=dora", "adapter.rank=8", "precision=bf16"],
}


@pytest.fixture(scope="module")
def tuned(folder):
    return {name: tune(folder, name, *words) for name, words in KINDS.items()}


@pytest.mark.parametrize("name", KINDS)
def test_it_learns_and_saves_an_adapter_only(folder, tuned, name):
    assert losses(tuned[name])[-1] < 0.6 * losses(tuned[name])[0]
    names = {p.name for p in (tuned[name] / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "base.json", "tokenizer.json", "README.md"} <= names
    assert not {"config.json", "model.safetensors"} & names
    summary = Run.open(tuned[name]).info["summary"]
    assert 0 < summary["trained_parameters"] < summary["parameters"]
    states = sum(f.stat().st_size for f in Run.open(tuned[name]).states()[-1][1].iterdir())
    assert states < 4 * 3 * summary["trained_parameters"] + 60_000  # masters and two moments; facts, generators


@pytest.mark.parametrize("name", KINDS)
def test_merged_attached_best_and_the_verb_merge_agree(folder, tuned, name, tokens):
    attached = load(tuned[name], CPU, "fp32", attach=True).model
    merged = load(tuned[name], CPU, "fp32").model
    merge.main(load_recipe(merge.MergeRecipe, None, [f"model={tuned[name]}", f"out={folder}/{name}-merged"]))
    whole = load(folder / f"{name}-merged", CPU, "fp32").model
    base = load(folder / "base", CPU, "fp32").model
    torch.testing.assert_close(merged(tokens), attached(tokens), rtol=1e-4, atol=2e-4)
    assert torch.equal(whole(tokens), merged(tokens))
    assert not torch.allclose(merged(tokens), base(tokens), atol=0.1)
    with enabled(attached, False):
        close = torch.equal if name != "qlora" else lambda a, b: (a - b).abs().mean() < 0.5
        assert close(attached(tokens), base(tokens))
    assert load(tuned[name] / "best", CPU, "fp32").model.config == base.config
    both = [{path.name for path in (tuned[name] / part).iterdir()} for part in ("best", "model")]
    assert both[0] == both[1] and "README.md" in both[0]
    theirs = AutoModelForCausalLM.from_pretrained(folder / f"{name}-merged" / "model", dtype=torch.float32)
    torch.testing.assert_close(theirs(tokens).logits, whole(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["lora", "dora", "bf16"])
def test_peft_opens_what_the_verb_saved(tuned, name, tokens):
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tuned[name] / "model").float().eval()
    ours = load(tuned[name], CPU, "fp32", attach=True).model
    torch.testing.assert_close(theirs(tokens).logits, ours(tokens), rtol=0, atol=2e-5)


def test_every_verb_takes_an_adapter(folder, tuned, capsys):
    evaluate.main(load_recipe(evaluate.EvaluateRecipe, None, [f"model={tuned['dora']}", f"data={folder}/chats-data",
                                                              "split=train", "device=cpu"]))  # fmt: skip
    result = json.loads((tuned["dora"] / "evals" / "chats-data-train.json").read_text("utf-8"))
    assert result["answers"]["chats"]["exact"] > 0.6
    known = result["answers"]["chats"]["answers"]
    known = next(a for a in known if a["answer"] == a["reference"])
    capsys.readouterr()
    words = [
        f"model={tuned['dora']}",
        f"prompt={known['question']}",
        "chat=true",
        "sampling.temperature=0",
        "sampling.repetition_penalty=1",
        "device=cpu",
    ]
    generate.main(load_recipe(generate.GenerateRecipe, None, words))
    assert known["reference"] in capsys.readouterr().out


def test_training_goes_on_from_an_adapter(folder, tuned, tokens):
    """As a whole model, and as the base of another adapter."""
    merged = load(tuned["lora"], CPU, "fp32").model
    nothing = tune(folder, "full-on", f"init.path={tuned['lora']}", "plan.steps=1", "optimizer.kind=adamw",
                   "optimizer.lr=1.0e-12", "optimizer.weight_decay=0")  # fmt: skip
    torch.testing.assert_close(load(nothing, CPU, "fp32").model(tokens), merged(tokens), rtol=0, atol=1e-4)
    stacked = tune(
        folder, "lora-on", f"init.path={tuned['lora']}", "plan.steps=2", "adapter.kind=dora", "adapter.rank=4"
    )
    both = load(stacked, CPU, "fp32", attach=True).model
    with enabled(both, False, "lora-on"):
        torch.testing.assert_close(both(tokens), merged(tokens), rtol=1e-4, atol=2e-4)
    with enabled(both, False):
        assert torch.equal(both(tokens), load(folder / "base", CPU, "fp32").model(tokens))


def test_lisa_and_galore_save_whole_models(folder):
    lisa = ["adapter.kind=lisa", "adapter.layers=1", "adapter.every=5", "optimizer.kind=adamw", "optimizer.lr=0.003"]
    galore = ["optimizer.kind=galore", "optimizer.rank=8", "optimizer.lr=0.01"]
    for name, words in (("lisa", lisa), ("galore", galore)):
        out = tune(folder, name, *words)
        assert losses(out)[-1] < 0.6 * losses(out)[0]
        assert weights(out / "model").keys() == weights(folder / "base" / "model").keys()


def test_neftune_and_replay_through_the_verb(folder):
    out = tune(folder, "noisy", "objective.neftune=5", f"replay.path={folder}/texts-data", "replay.share=0.25",
               "adapter.kind=lora", "adapter.rank=8")  # fmt: skip
    assert losses(out)[-1] < losses(out)[0]
    plain = tune(folder, "quiet", "adapter.kind=lora", "adapter.rank=8")
    assert losses(out) != losses(plain)
    targets = [m["targets"] for m in Run.open(out).metrics() if m["kind"] == "train"]
    assert max(targets) > max(m["targets"] for m in Run.open(plain).metrics() if m["kind"] == "train")


def test_an_adapters_optimiser_is_adamw_unless_another_is_named(folder):
    assert recipe(folder, "x", "adapter.kind=lora").optimizer.lr == 1e-3
    assert recipe(folder, "x", "adapter.kind=lora").optimizer.kind == "adamw"
    assert recipe(folder, "x").optimizer.kind == "muon"


def test_recipe_yaml_repeats_the_run(folder, tuned):
    assert load_recipe(train.TrainRecipe, str(tuned["dora"] / "recipe.yaml")) == recipe(folder, "dora", *KINDS["dora"])


@pytest.fixture
def copied(folder, tuned, tmp_path):
    """The base and an adapter of it, to be damaged."""
    for name in ("base", "lora"):
        shutil.copytree(folder / name, tmp_path / name)
    return tmp_path


def test_an_adapter_of_another_base(copied, folder, tuned):
    merge.main(load_recipe(merge.MergeRecipe, None, [f"model={copied}/lora", f"out={copied}/other"]))
    shutil.rmtree(copied / "base")
    (copied / "other").rename(copied / "base")
    with pytest.raises(InputError, match="trained on a base with hash"):
        load(copied / "lora", CPU)


FAULTS = {
    "target": (["train", "adapter.kind=lora", "adapter.targets=[qkv]"], "adapter.targets: 'qkv' matches no linear"),
    "rank": (["train", "adapter.kind=lora", "adapter.rank=49"], "rank 49 is above the smaller side of"),
    "muon": (["train", "adapter.kind=lora", "optimizer.kind=muon"], "optimizer.kind: muon is for whole matrices"),
    "galore": (["train", "adapter.kind=dora", "optimizer.kind=galore"], "optimizer.kind: galore is for whole matrices"),
    "clex": (["train", "adapter.kind=lora", "init.rope={kind: clex, max_t: 2}"],
             "init.rope.kind: clex has weights to learn, which adapter.kind=lora freezes"),
    "damaged law": (["chat", "{}/bent"], "bent/base.json: rope.factor: input should be"),
    "whole_lr": (["train", "adapter.kind=lora", "optimizer={kind: adamw, whole_lr: 0.001}"],
                 "optimizer.whole_lr: is the rate of the modules of adapter.train, and it names none"),
    "new": (["train", "adapter.kind=lora", "init={kind: new}"], "adapter.kind: lora needs a trained base"),
    "lisa": (["train", "adapter.kind=lisa", "adapter.layers=3"], "adapter.layers: 3 is more than the model's 2"),
    "lisa deepspeed": (["train", "adapter.kind=lisa", "engine.kind=deepspeed", "optimizer.kind=adamw"],
                       "cannot freeze blocks"),
    "head": (["train", "adapter.kind=lora", "adapter.train=[lm_head]"], "lm_head is tied"),
    "base kind": (["train", "adapter.kind=lora", "adapter.base=nf5"], "adapter.base"),
    "neftune": (["train", "objective.neftune=5", "data.path={}/texts-data", "data.packing=stream"], "is for chats"),
    "replay": (["train", "replay.path={}/nowhere"], "no prepared data"),
    "truncated": (["chat", "{}/cut"], "adapter_model.safetensors: not a whole safetensors file"),
    "no base": (["chat", "{}/lost"], "is not there; put it back"),
    "merge whole": (["merge", "{}/base", "out={}/m"], "holds a whole model, there is nothing to merge"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_clear_line_and_exit_code_2(folder, tuned, name, monkeypatch, capsys):
    if not (folder / "cut").exists():
        for copy in ("cut", "lost", "bent"):
            shutil.copytree(tuned["lora"] / "model", folder / copy)
        file = folder / "cut" / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-99])
        (folder / "cut" / "base.json").write_text(json.dumps({"path": "../base/model"}))
        bent = {"path": "../base/model", "rope": {"kind": "linear", "factor": "long"}}
        (folder / "bent" / "base.json").write_text(json.dumps(bent))
        (folder / "lost" / "base.json").unlink()
        config = json.loads((folder / "lost" / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "somebody/llama"
        (folder / "lost" / "adapter_config.json").write_text(json.dumps(config))
    words, expected = FAULTS[name]
    words = [word.replace("{}", str(folder)) for word in words]
    if words[0] == "train":
        given = {"out": f"{folder}/fault", "data.path": f"{folder}/chats-data", "data.packing": "documents",
                 "plan.steps": "2", "device": "cpu"}  # fmt: skip
        if not any(word.startswith("init=") for word in words):
            given |= {"init.kind": "from", "init.path": f"{folder}/base"}
        words = ["train", *(f"{k}={v}" for k, v in given.items()), *words[1:]]
    one_clear_line(words, expected, monkeypatch, capsys)
    assert not (folder / "fault").exists()


@pytest.mark.parametrize("file", ["fine-tuning.md", "fine-tuning.zh-CN.md"])
def test_every_documented_training_is_a_recipe(file):
    text = (Path(__file__).parents[2] / "docs" / file).read_text("utf-8")
    commands = [shlex.split(line)[2:] for line in text.splitlines() if line.startswith("babyllama train ")]
    found = [load_recipe(train.TrainRecipe, words[0], words[1:]) for words in commands]
    assert [(r.adapter.kind, r.optimizer.kind) for r in found] == [
        ("lora", "adamw"), ("dora", "adamw"), ("lora", "adamw"), ("lora", "adamw"), ("lisa", "adamw"),
        ("full", "galore"), ("lora", "adamw"), ("full", "adamw"), ("full", "muon")]  # fmt: skip
