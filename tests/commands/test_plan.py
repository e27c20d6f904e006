"""The verb plan: what it prints can be pasted, what it writes can be loaded, faults are one line."""

from __future__ import annotations

import json
import shlex

import pytest

from babyllama.commands import plan, prepare
from babyllama.commands.plan import PlanRecipe
from babyllama.commands.train import TrainRecipe
from babyllama.data.sources.corpora import CorpusChoice
from babyllama.errors import InputError
from babyllama.hardware import Card
from babyllama.recipe import load_recipe
from babyllama.train.engines.engines import Fsdp

from .small_run import save_taught, small_tokenizer


def figures(capsys, *words: str) -> dict:
    plan.main(load_recipe(PlanRecipe, None, [*words, "format=json"]))
    return json.loads(capsys.readouterr().out)


def train_recipe_of(command: str, launcher: str = "babyllama") -> TrainRecipe:
    words = shlex.split(command)
    start = words.index("train")
    assert " ".join(words[:start]) == launcher
    return load_recipe(TrainRecipe, None, words[start + 1 :])


def test_a_model_is_chosen_and_its_command_is_a_recipe(capsys, tmp_path):
    found = figures(capsys, "gpu=RTX 3060 12G", "hours=8", "corpus_tokens=300000000", f"out={tmp_path}/plan.yaml")
    recipe = train_recipe_of(found["command"])
    assert recipe == load_recipe(TrainRecipe, str(tmp_path / "plan.yaml"))
    config = recipe.init.model.build(64_793)
    assert config.model_dump(mode="json") == found["config"] and config.parameters == found["parameters"]
    assert recipe.plan.steps * recipe.plan.rows * recipe.plan.context == found["tokens"]
    assert recipe.plan.rows * recipe.plan.context == found["global_batch_tokens"]
    assert recipe.plan.micro_batch_size <= found["largest_micro_batch"]
    assert found["seconds"] <= 8 * 3600 + 1 and found["memory_gib"] <= found["usable_gib"] == pytest.approx(11.04)
    assert sum(found["memory_parts_gib"].values()) == pytest.approx(found["memory_gib"], abs=0.02)
    assert found["seconds"] == pytest.approx(found["steps"] * sum(found["step_parts_seconds"].values()), rel=0.05)
    assert found["bits_per_byte_low"] < found["bits_per_byte"] < found["bits_per_byte_high"]
    assert 0 < found["epochs"] <= 4 and found["cost"] is None and len(found["others"]) > 5


def test_the_table(capsys):
    plan.main(load_recipe(PlanRecipe, None, ["gpu=3060", "hours=8", "corpus_tokens=300000000"]))
    shown = capsys.readouterr().out
    for word in ("RTX 3060", "micro-batch", "accumulate", "tokens", "time", "memory", "bits per byte", "▸", "forecasts",
                 "babyllama train out=runs/planned"):  # fmt: skip
        assert word in shown
    assert "corpus is the limit" not in shown
    plan.main(load_recipe(PlanRecipe, None, ["gpu=h100", "hours=8", "corpus_tokens=3000000"]))
    shown = capsys.readouterr().out
    assert "corpus is the limit" in shown and "only good for comparing" in shown


def test_a_given_model(capsys, tmp_path):
    found = figures(capsys, "gpu=H100", "model.preset=seed", "tokens=1000000000", "context=256", "price_per_hour=2",
                    "micro_batch_size=64", "global_batch_tokens=65536", f"out={tmp_path}/plan.json")  # fmt: skip
    assert json.loads((tmp_path / "plan.json").read_text("utf-8")) == found
    assert (found["parameters"], found["context"], found["micro_batch_size"], found["accumulate"]) == (
        58479616,
        256,
        64,
        4,
    )
    assert found["cost"] == pytest.approx(2 * found["seconds"] / 3600, abs=0.01) and found["others"] == []
    recipe = train_recipe_of(found["command"])
    assert recipe.init.model.preset == "seed" and recipe.init.model.build(64_793).max_position_embeddings == 256


@pytest.mark.parametrize("words", [["hours=1e300"], ["money=1e9", "price_per_hour=1e-300"]])
def test_ages_are_refused(words):
    with pytest.raises(InputError, match="more than a hundred years"):
        load_recipe(PlanRecipe, None, ["gpu=3090", *words])


def test_money_buys_hours(capsys):
    words = ("gpu=4090", "corpus_tokens=1000000000")
    by_money = figures(capsys, *words, "money=10", "price_per_hour=0.5", "gpus=2")
    by_hours = figures(capsys, *words, "hours=10", "gpus=2")
    assert by_money["config"] == by_hours["config"] and by_money["tokens"] == by_hours["tokens"]
    assert by_money["cost"] <= 10


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_several_gpus(capsys, engine):
    found = figures(capsys, "gpu=A100 40G", "gpus=8", f"engine={engine}", "model.depth=16", "hours=24")
    launcher = "torchrun --standalone --nproc-per-node=8 -m babyllama.cli"
    assert found["command"].startswith(launcher) and f"engine.kind={engine}" in found["command"]
    assert found["accumulate"] % 8 == 0
    assert found["global_batch_tokens"] == found["micro_batch_size"] * found["accumulate"] * found["context"]
    alone = figures(capsys, "gpu=A100 40G", "model.depth=16", "hours=24")
    assert 4 < found["tokens_per_second"] / alone["tokens_per_second"] <= 8


def test_a_mesh(capsys):
    """Rows too long for one card are shared by all eight, whose states are two copies."""
    words = ["gpu=4090", "gpus=8", "hours=9", "recompute=false", "context=131072",
             "model.depth=16", "model.max_position_embeddings=131072"]  # fmt: skip
    with pytest.raises(InputError, match=r"engine=fsdp, engine\.context=2 or more for long rows"):
        figures(capsys, *words)
    found = figures(capsys, *words, "engine=fsdp", "engine.replicate=2", "engine.context=8")
    assert found["mesh"] == {"replicate": 2, "shard": 4, "context": 8}
    engine = train_recipe_of(found["command"], "torchrun --standalone --nproc-per-node=8 -m babyllama.cli").engine
    assert engine == Fsdp(replicate=2, context=8)
    assert found["global_batch_tokens"] == found["micro_batch_size"] * found["accumulate"] * 131_072
    plan.main(PlanRecipe(gpu="4090", gpus=8, hours=1, engine=engine))
    assert "replicate 2 × shard 4, context 8" in capsys.readouterr().out


def test_a_prepared_folder_says_tokens_and_vocabulary(capsys, tmp_path):
    save_taught(tmp_path / "model")
    texts = ["小小的语言模型很高兴。", "一加一等于二，二加一等于三。", "再见，欢迎再来！再见。"]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), "utf-8")
    prepare.main(prepare.PrepareRecipe(
        out=tmp_path / "data", tokenizer=tmp_path / "model", validation=0.0, workers=1,
        corpora=(CorpusChoice(path=str(tmp_path / "texts.jsonl")),)))  # fmt: skip
    capsys.readouterr()
    found = figures(capsys, "gpu=T4", "hours=1", f"data={tmp_path}/data")
    tokenizer = small_tokenizer()
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in texts)
    assert found["corpus"]["tokens"] == tokens and found["corpus"]["vocab_size"] == tokenizer.vocab_size
    assert found["corpus"]["bytes_per_token"] == pytest.approx(sum(len(t.encode()) for t in texts) / tokens)
    assert f"data.path={tmp_path}/data" in found["command"]


def test_this_machine(capsys, monkeypatch):
    monkeypatch.setattr(plan, "this_card", lambda device: Card("CPU", 0.1, 16, 20, bf16=False))
    found = figures(capsys, "gpu=cpu", "hours=2", "corpus_tokens=20000000", "vocab_size=8192", "context=256")
    assert found["card"]["name"] == "CPU" and not found["compile"] and "CUDA" not in found["memory_parts_gib"]
    assert train_recipe_of(found["command"]).init.model.max_position_embeddings == 256
    with pytest.raises(InputError, match="gpus: 2, but this is a CPU"):
        figures(capsys, "gpu=cpu", "gpus=2", "hours=1")


@pytest.mark.parametrize(
    ("words", "fault"),
    [(["gpu=RTX 3066", "hours=1"], "did you mean RTX 3060"), (["gpu=h100"], "give hours"),
     (["gpu=h100", "hours=1", "money=3"], "not both"), (["gpu=h100", "money=3"], "price_per_hour"),
     (["gpu=h100", "hours=1", "data=x", "corpus_tokens=3"], "not both"), (["hours=1", "out=a.txt"], "must end in"),
     (["gpu=h100", "model.preset=seed"], "length is not known"), (["hours=1", "gpu=t4", "data=nothing"], "no prepared"),
     (["gpu=3060", "hours=9", "model.depth=40"], r"recompute needs .* GiB.*smaller model.*engine=fsdp"),
     (["gpu=t4", "hours=9", "model.depth=8", "model.max_position_embeddings=128", "context=512"], "above the model")],
)  # fmt: skip
def test_faults_are_one_line(words, fault, capsys):
    with pytest.raises(InputError, match=fault) as error:
        figures(capsys, *words)
    assert "\n" not in str(error.value)
