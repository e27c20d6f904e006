"""The recipes that come with the package: all can be read, and those under align/ run as they are written, one after
the other as their comments say, from a random model of a few thousand parameters.

CONTRIBUTING.md says how to run the slow ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from babyllama.commands.doctor import DoctorRecipe
from babyllama.commands.doctor import main as doctor
from babyllama.commands.evaluate import EvaluateRecipe
from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.commands.tokenizer import TokenizerRecipe
from babyllama.commands.train import main as train
from babyllama.commands.train_recipe import TrainRecipe
from babyllama.data.sources import knowledge
from babyllama.data.toolworld.tools import TOOLS
from babyllama.errors import InputError
from babyllama.foresight.rates import settings
from babyllama.model.checkpoint import save_model
from babyllama.model.config import ModelChoice, ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.plain_yaml import parse_yaml
from babyllama.recipe import BUNDLED, bundled, load_recipe
from babyllama.run import Run
from babyllama.tokenizer.train import train_bpe
from babyllama.train.losses.policy import Ppo

VERBS = {"source": TokenizerRecipe, "corpora": PrepareRecipe, "plan": TrainRecipe, "model": EvaluateRecipe}  # by a key
FEW = ("workers=1", "validation=0.3")
SMALL = ("device=cpu", "precision=fp32", "plan.epochs=null", "plan.steps=2", "plan.accumulate=1",
         "plan.validate_every=2", "plan.sample_every=2", "plan.validation_tokens=600")  # fmt: skip
CUT = {
    "samples": ("samples.max_tokens=2",),
    "rollouts": ("rollouts.max_tokens=8", "rollouts.validation_prompts=2", "rollouts.general=null"),
}
CONTEXT = 700
PREPARED = {"pairs": (), "rated": (), "votes-pairs": (), "idiom-chats": ("corpora.0.max_documents=60",),
            "tool-chats": ("corpora.0.max_documents=80", "corpora.1.max_documents=20")}  # fmt: skip
TRAINED = ["dpo", "simpo", "orpo", "kto", "reward", "votes", "idiom-start", "idioms", "poems", "tool-start", "tools",
           "sums", "ppo", "gkd"]  # fmt: skip


@pytest.mark.parametrize("name", bundled())
def test_every_recipe_is_read_by_its_verb(name):
    keys = parse_yaml((BUNDLED / f"{name}.yaml").read_text("utf-8"), name)
    (verb,) = {verb for key, verb in VERBS.items() if key in keys}
    assert load_recipe(verb, name)


@pytest.mark.parametrize("name", ["seed", "base-218m"])
def test_they_are_set_as_a_plan_of_a_billion_tokens(name):
    """One rule: what `plan` writes and what comes with the package."""
    keys = parse_yaml((BUNDLED / name / "pretrain.yaml").read_text("utf-8"), name)
    config = ModelChoice(preset=name).build(64_793)
    plan = keys["plan"]
    tokens = plan["micro_batch_size"] * plan["accumulate"] * config.max_position_embeddings
    found = settings("muon", config, round(1e9 / tokens))
    assert {key: keys[key] for key in found} == found


def test_no_recipe_of_align_is_forgotten_here():
    assert sorted(f"align/{name}" for name in (*PREPARED, *TRAINED)) == [n for n in bundled() if n.startswith("align/")]


@pytest.mark.parametrize("name", ["align/sums", "align/gkd"])
def test_rows_that_the_model_writes_cannot_be_rehearsed(name):
    with pytest.raises(InputError, match="train a few steps and give that run with steps=0"):
        doctor(DoctorRecipe(target=name, steps=2))


def asked(count: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"{n}加{n}等于几？", "chosen": f"等于{2 * n}。", "rejected": f"大概是{n}吧。"} for n in range(count)
    ]


def lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")


def chats(pairs: list[tuple[str, str]]) -> list[dict]:
    return [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs]


def starts(folder: Path) -> None:
    """What the seed model, the quickstart and the user have left, in miniature."""
    records = asked(40)
    rated = [{"prompt": r["prompt"], "completion": r[side], "label": side == "chosen"}
             for r in records for side in ("chosen", "rejected")]  # fmt: skip
    lines(folder / "data/preference/pairs.jsonl", records)
    lines(folder / "data/rated/rated.jsonl", rated)
    lines(folder / "votes.jsonl", records)
    lines(folder / "plain.jsonl", chats([(r["prompt"], r["chosen"]) for r in records]))
    lines(folder / "texts.jsonl", [{"text": f"{r['prompt']}{r['chosen']}"} for r in records])
    verse = "春眠不觉晓，\n处处闻啼鸟。\n夜来风雨声，\n花落知多少。"
    lines(folder / "poems.jsonl", chats([(f"写一首诗，第{n}首。", verse) for n in range(20)]))
    tools = [json.dumps(tool.spec, ensure_ascii=False) for tool in TOOLS.values()]
    tokenizer = train_bpe([r["prompt"] + r["chosen"] for r in records] + [verse] * 3 + tools * 3, 900)
    model = Transformer(ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=CONTEXT))  # fmt: skip
    initialise(model, 0)
    for place in ("seed/tokenizer", "quickstart/tokenizer", "seed/sft", "quickstart/medical", "quickstart/general"):
        (folder / "runs" / place).mkdir(parents=True)
        tokenizer.save(folder / "runs" / place)
        if not place.endswith("tokenizer"):
            save_model(model, folder / "runs" / place, **tokenizer.config_ids)
    for out, corpus in (("seed/chats", "path: plain.jsonl"), ("align/poem-chats", "path: poems.jsonl"),
                        ("quickstart/general-chats", "name: sums, max_documents: 60"),
                        ("quickstart/corpus", "path: texts.jsonl"),
                        ("seed/corpus", "path: texts.jsonl")):  # fmt: skip
        prepare(load_recipe(PrepareRecipe, None, [f"out=runs/{out}", "tokenizer=runs/seed/tokenizer",
                                                  f"corpora=[{{{corpus}}}]", *FEW]))  # fmt: skip


def small(name: str) -> list[str]:
    given = load_recipe(TrainRecipe, f"align/{name}")
    rows = f"plan.micro_batch_size={2 * given.rollouts.group if given.rollouts else 4}"
    if isinstance(given.objective, Ppo):
        rows += " rollouts.prompts=2"
    return [
        *SMALL,
        *rows.split(),
        *(word for key, words in CUT.items() if key in given.model_fields_set for word in words),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All of align/, run in the order of its comments; a run that is started again says so itself."""
    place = tmp_path_factory.mktemp("align")
    words = [f"{a}心成{b}" for a in "一二三四五六七" for b in "一二三四五六七"]
    blank = {"explanation": "形容事情很快地完成。", "derivation": "无", "example": "无"}
    chained = json.dumps([{"word": word, **blank} for word in words]).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(knowledge, "read_member", lambda package: chained)
        starts(place)
        for name, words in PREPARED.items():
            prepare(load_recipe(PrepareRecipe, f"align/{name}", [*words, *FEW]))
        for name in TRAINED:
            train(load_recipe(TrainRecipe, f"align/{name}", small(name)))
        yield place


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_runs_as_written(folder, name):
    run = Run.open(folder / "runs" / "align" / name)
    steps = [line for line in run.metrics() if line["kind"] == "train"]
    assert run.finished and any(line["kind"] == "validation" for line in run.metrics())
    assert run.info["summary"]["steps"] == 2 and all(line["loss"] == line["loss"] for line in steps)
    assert (run.path / "model").is_dir() and (run.path / "rollouts.jsonl").is_file() == (
        load_recipe(TrainRecipe, f"align/{name}").rollouts is not None)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_the_doctor_takes_it(folder, name, monkeypatch, capsys):
    """A random model may have faults; they are found, and nothing breaks."""
    monkeypatch.chdir(folder)
    target, steps, overrides = f"align/{name}", 2, tuple(small(name))
    if load_recipe(TrainRecipe, target).rollouts is not None:
        target, steps, overrides = f"runs/align/{name}", 0, ()
    try:
        doctor(DoctorRecipe(target=target, overrides=overrides, steps=steps, device="cpu", format="json"))
    except SystemExit as ended:
        assert ended.code == 1
    said = json.loads(capsys.readouterr().out)
    assert said["target"] == target and len(said["findings"]) > 10
