"""Preferences through the verbs: pairs prepared, trained on and validated; every fault in one line."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console

from babyllama.commands import doctor, evaluate, prepare, train
from babyllama.commands.chat import learned, remarks, turns_of
from babyllama.commands.preferring import comparison, sums_of
from babyllama.data.shards.shards import Prepared
from babyllama.data.sources.corpora import CorpusChoice
from babyllama.errors import InputError
from babyllama.load import load
from babyllama.model.checkpoint import save_model
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer
from babyllama.recipe import load_recipe
from babyllama.run import Run
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.train import train_bpe
from babyllama.train.engines.world import World
from babyllama.train.reference import FOLDER

from .small_run import CONTEXT, messages_of, save_taught, small_tokenizer

WORDS = "一二三四五六七八九十天空云草雪火水"
PAIRS = [{"prompt": f"{a}和{b}？", "chosen": f"好，是{a}。", "rejected": f"不，是{a}。"} for a in WORDS for b in WORDS]
RATED = [{"prompt": p["prompt"], "completion": p[key], "label": key == "chosen"}
         for p in PAIRS for key in ("chosen", "rejected")]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base that answers, pairs in which one word is liked, a chat corpus."""
    folder = tmp_path_factory.mktemp("preferring")
    save_taught(folder / "base" / "model")
    long = {"prompt": "问" * CONTEXT, "chosen": "答", "rejected": "不", "held_out": False}
    chats = [{"messages": messages_of(p["prompt"], p["chosen"])} for p in PAIRS[:40]]
    for name, lines in (("pairs", [*PAIRS, long]), ("rated", RATED), ("chats", chats), ("long", [long] * 2)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
        prepare.main(prepare.PrepareRecipe(
            out=folder / f"{name}-data", tokenizer=folder / "base" / "model", validation=0.2, workers=1,
            corpora=(CorpusChoice(path=str(folder / f"{name}.jsonl"), label=name),)))  # fmt: skip
    return folder


def recipe(folder, out, *overrides, data="pairs"):
    given = [f"out={folder}/{out}", f"data.path={folder}/{data}-data", "init.kind=from", f"init.path={folder}/base",
             "objective.kind=dpo", "optimizer.kind=adamw", "optimizer.lr=3e-3", "plan.steps=12",
             "plan.micro_batch_size=8", "plan.log_every=1", "plan.validate_every=6", "device=cpu"]  # fmt: skip
    return load_recipe(train.TrainRecipe, None, [*given, *overrides])


def trained(folder, out, *overrides, data="pairs"):
    made = recipe(folder, out, *overrides, data=data)
    train.main(made)
    lines = Run.open(made.out).metrics()
    return tuple([m for m in lines if m["kind"] == kind] for kind in ("train", "validation"))


def test_dpo_learns_what_is_liked_and_says_so(folder, capsys):
    steps, looks = trained(folder, "dpo")
    said = capsys.readouterr().out
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and abs(steps[0]["kl"]) < 1e-3
    assert looks[-1]["accuracy"] >= 0.9 and looks[-1]["pairs"] > 30 and looks[-1]["loss"] < math.log(2)
    assert steps[-1]["margin"] > 0.3 and steps[-1]["chosen"] > steps[-1]["rejected"]
    assert f"{looks[-1]['accuracy']:.1%} of {looks[-1]['pairs']} right" in said
    assert "pairs: 1 of" in said and "too long" in said
    info = Run.open(folder / "dpo").info["summary"]
    assert info["validation_loss"] == looks[-1]["loss"] and info["bits_per_byte"] is None
    assert f"is ready: babyllama chat {folder / 'dpo'}" in said and info["turns"] == 1
    remark = remarks(folder / "dpo", small_tokenizer(), learned(folder / "dpo", small_tokenizer()), 0)[0]
    assert "each question is asked by itself" in remark and "？" in remark  # one of its questions, to try


def test_a_model_sees_as_many_turns_as_before_it_learned_from_preferences(folder):
    """Of a preference's prompt nobody wrote down how many turns it has."""
    start = shutil.copytree(folder / "base", folder / "talker")
    (start / "recipe.yaml").write_text("{}")
    (start / "run.json").write_text('{"verb": "train", "parent": null, "summary": {"turns": 3}}')
    trained(folder, "talked", "plan.steps=1", f"init.path={start}")
    assert turns_of(folder / "talked") == 3


@pytest.mark.parametrize("data", ["rated", "pairs"])
def test_kto_learns_from_answers_alone(folder, data):
    steps, looks = trained(folder, f"kto-{data}", "objective={kind: kto}", "plan.steps=24", data=data)
    assert steps[0]["loss"] == pytest.approx(0.5, abs=1e-4) and steps[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert looks[-1]["accuracy"] >= 0.9 and looks[-1]["pairs"] > 60


@pytest.mark.parametrize("kind", ["ipo", "hinge", "simpo", "orpo"])
def test_the_others_learn_too(folder, kind):
    _, looks = trained(folder, kind, f"objective={{kind: {kind}}}", "plan.steps=16")
    assert looks[-1]["accuracy"] >= 0.9


def test_an_adapter_s_reference_is_its_base_and_the_sums_are_computed_once(folder, capsys):
    """Nothing is loaded twice: what the first training kept is what the second reads."""
    trained(folder, "first", "plan.steps=1")
    files = list((folder / "pairs-data" / FOLDER).iterdir())
    stamp = files[0].stat().st_mtime_ns
    steps, looks = trained(folder, "lora", "adapter.kind=lora", "optimizer.lr=0.02")
    assert [file.stat().st_mtime_ns for file in (folder / "pairs-data" / FOLDER).iterdir()] == [stamp]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and looks[-1]["accuracy"] >= 0.9


def test_the_sums_are_those_of_the_model_alone(folder):
    made = recipe(folder, "sums")
    prepared, loaded = Prepared.open(folder / "pairs-data"), load(folder / "base", torch.device("cpu"), "fp32")
    compared = comparison(made, loaded.model, loaded.tokenizer.hash)
    found = sums_of(made, prepared, compared, loaded.model, World(), torch.device("cpu"), torch.float32, Console())
    store, sums = prepared.store("pairs", "train"), found["pairs", "train"]
    lengths = np.diff(store.document_offsets)
    assert (np.isnan(sums) == (lengths - 1 > CONTEXT)).all()
    for number in (0, 1, 7, store.documents - 1):
        start, stop = store.document_offsets[number : number + 2].tolist()
        tokens, kept = torch.from_numpy(store.tokens(start, stop).astype(np.int64)), store.mask(start + 1, stop)
        if len(tokens) - 1 <= CONTEXT:
            log_p = loaded.model.double()(tokens[None, :-1])[0].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
            assert sums[number] == pytest.approx(log_p[torch.from_numpy(kept)].sum().item(), rel=1e-5)
    assert store.good.tolist() == [True, False] * (store.documents // 2)


@pytest.mark.parametrize("more,data,said", [
    (["init={kind: new}"], "pairs", "objective.kind: dpo needs a model that answers already"),
    ([], "chats", "chats holds chats, from which objective.kind=dpo does not learn"),
    ([], "rated", "rated holds rated answers"),
    ([], "long", "no answer of long has room"),
    (["objective.kind=next_token"], "pairs", "pairs holds preference pairs"),
    (["plan.context=500"], "pairs", "above twice the model's 96 positions"),
    (["objective.beta=-1"], "pairs", "objective.beta"),
    (["objective={kind: reward}", "adapter.kind=lora"], "pairs", "does not hold a reward model's head"),
    (["objective={kind: reward}", "samples.prompts=[x]"], "pairs", "a reward model writes nothing"),
])  # fmt: skip
def test_faults_are_one_clear_line(folder, more, data, said):
    with pytest.raises(InputError) as caught:
        train.main(recipe(folder, "fault", *more, data=data))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "fault").exists()


def test_a_reference_of_another_vocabulary_is_refused(folder, tmp_path):
    tokenizer = train_bpe(["别的字表"] * 3, 300)
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32,
                                    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
                                    max_position_embeddings=CONTEXT))  # fmt: skip
    save_model(model, tmp_path / "other", **tokenizer.config_ids)
    tokenizer.save(tmp_path / "other")
    with pytest.raises(InputError, match=r"objective\.reference: .* has another tokenizer"):
        train.main(recipe(folder, "fault", f"objective.reference={tmp_path}/other"))


def test_evaluate_says_how_many_pairs_are_in_order(folder, capsys):
    """Of a run that compared, against its reference too; of any other model by the mean log-probability."""
    trained(folder, "for-evaluate")
    capsys.readouterr()
    found = {}
    for name in ("base", "for-evaluate"):
        out = folder / f"{name}.json"
        evaluate.main(evaluate.EvaluateRecipe(model=folder / name, data=folder / "pairs-data", out=out, device="cpu",
                                              questions=0))  # fmt: skip
        found[name] = json.loads(out.read_text())["pairs"]["pairs"]
        assert "preference pairs, val split" in capsys.readouterr().out
    assert found["base"]["by_ratio"] is None and found["base"]["pairs"] == found["for-evaluate"]["pairs"] > 30
    for measure in ("by_mean", "by_ratio"):
        shown = found["for-evaluate"][measure]
        assert shown["accuracy"] >= 0.9 and shown["low"] < shown["accuracy"] <= shown["high"] <= 1


def test_a_reward_model_learns_is_measured_and_marks_answers(folder, capsys):
    steps, looks = trained(folder, "reward", "objective={kind: reward}", "plan.steps=16")
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=0.1) and looks[-1]["accuracy"] >= 0.9
    out = folder / "reward.json"
    given = {"model": folder / "reward", "out": out, "device": "cpu", "questions": 0}
    evaluate.main(evaluate.EvaluateRecipe(data=folder / "pairs-data", **given))
    found = json.loads(out.read_text())["pairs"]["pairs"]
    assert found["by_score"]["accuracy"] >= 0.9 and found["by_mean"] is None and found["chosen"] > found["rejected"]
    with pytest.raises(InputError, match="is a reward model, which is measured on preference pairs, not on chats"):
        evaluate.main(evaluate.EvaluateRecipe(data=folder / "chats-data", **given))
    with pytest.raises(InputError, match="is a reward model, which says what answers are worth and writes none"):
        load(folder / "reward")

    more = [f"rewards=[{{kind: model, path: {folder}/reward}}]", "objective={kind: grpo}", "plan.steps=2",
            "rollouts={group: 4, max_tokens: 8}"]  # fmt: skip
    train.main(recipe(folder, "by-model", *more, data="chats"))
    lines = [json.loads(line) for line in (folder / "by-model" / "rollouts.jsonl").read_text("utf-8").splitlines()]
    judge = load(folder / "reward", torch.device("cpu"), scores=True)
    chat = {"role": "user", "content": lines[0]["prompt"]}, {"role": "assistant", "content": lines[0]["answer"]}
    if lines[0]["ended"]:
        tokens = render_chat(judge.tokenizer, chat).tokens
        assert lines[0]["reward"] == pytest.approx(judge.model(torch.tensor([tokens]))[0, -1, 0].item(), abs=1e-4)
    assert len({line["reward"] for line in lines}) > 4
    with pytest.raises(InputError, match="writes answers and gives no score"):
        train.main(recipe(folder, "fault", f"rewards=[{{kind: model, path: {folder}/base}}]", *more[1:], data="chats"))


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_doctor_finds_a_preference_training_healthy(folder, kind):
    """Its validation is no next token's, so the saved model is not held against it; its steps are taken once more."""
    trained(folder, f"for-doctor-{kind}", f"objective={{kind: {kind}}}", "plan.steps=6")
    out = folder / "doctor.json"
    doctor.main(doctor.DoctorRecipe(target=str(folder / f"for-doctor-{kind}"), out=out, steps=6, device="cpu"))
    verdicts = {found["check"]: found["verdict"] for found in json.loads(out.read_text())["findings"]}
    assert "fault" not in verdicts.values() and verdicts["progress"] == verdicts["labels"] == "ok"
    assert verdicts["saved model"] == "not applicable"
