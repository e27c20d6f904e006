"""The verb evaluate: figures against ones computed here document by document, answers, files, faults."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import xxhash

from babyllama.commands import prepare
from babyllama.commands.evaluate import EvaluateRecipe, main
from babyllama.data.shards.shards import Prepared
from babyllama.data.sources.corpora import CorpusChoice
from babyllama.errors import InputError
from babyllama.evals.answers import (
    Answer,
    AnswerSums,
    ask,
    character_f1,
    compared,
    corpus_questions,
    prepared_questions,
)
from babyllama.evals.provenance import provenance
from babyllama.infer.engine import Engine
from babyllama.recipe import load_recipe
from babyllama.tokenizer.chat import render_chat

from .small_run import CHATS, messages_of, save_taught, small_tokenizer, taught_model

TEXTS = ["小小的语言模型很高兴。", "一加一等于二，二加一等于三。", "再见，欢迎再来！再见。"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A taught model, its prepared data and the corpus files."""
    folder = tmp_path_factory.mktemp("evaluate")
    save_taught(folder / "run" / "model")
    chats = [{"messages": messages_of(*chat)} for chat in CHATS]
    first, second = chats[0]["messages"], chats[1]["messages"]
    chats.append({"messages": [*first, *second]})
    for name, lines in (("chats", chats), ("texts", [{"text": text} for text in TEXTS])):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    prepare.main(prepare.PrepareRecipe(
        out=folder / "data", tokenizer=folder / "run" / "model", validation=0.0, workers=1,
        corpora=tuple(CorpusChoice(path=str(folder / f"{name}.jsonl")) for name in ("chats", "texts"))))  # fmt: skip
    return folder


def evaluate(folder, *overrides: str) -> dict:
    given = [f"model={folder}/run", f"data={folder}/data", "split=train", "device=cpu", "precision=fp32"]
    recipe = load_recipe(EvaluateRecipe, None, [*given, *overrides])
    main(recipe)
    return json.loads(recipe.file.read_text("utf-8"))


def summed_loss(tokens: list[int], counted: list[bool]) -> tuple[float, int, int]:
    """(nll, tokens, correct) of one document alone, in float64."""
    logprobs = taught_model()(torch.tensor([tokens]))[0].double().log_softmax(-1)
    kept = [i for i in range(1, len(tokens)) if counted[i]]
    nll = -sum(logprobs[i - 1, tokens[i]].item() for i in kept)
    return nll, len(kept), sum(int(logprobs[i - 1].argmax() == tokens[i]) for i in kept)


def test_the_figures(folder, capsys):
    tokenizer = small_tokenizer()
    found = evaluate(folder, "questions=0")["loss"]
    chats = [messages_of(*chat) for chat in CHATS]
    chats.append([*chats[0], *chats[1]])
    rendered = [render_chat(tokenizer, chat) for chat in chats]
    texts = [tokenizer.eos_id]  # one stream: every document stands after an end token
    for text in TEXTS:
        texts += [*tokenizer.encode(text), tokenizer.eos_id]
    answers = [m["content"] for chat in chats for m in chat if m["role"] == "assistant"]
    expected = {
        "chats": ([summed_loss(r.tokens, r.mask) for r in rendered], sum(len(a.encode()) for a in answers)),
        "texts": ([summed_loss(texts, [True] * len(texts))], sum(len(t.encode()) for t in TEXTS)),
    }
    shown = capsys.readouterr().out
    for label, (parts, size) in expected.items():
        nll, tokens, correct = map(sum, zip(*parts, strict=True))
        assert found[label]["tokens"] == tokens and found[label]["bytes"] == size
        assert found[label]["loss"] == pytest.approx(nll / tokens, rel=1e-4)
        assert found[label]["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-4)
        assert found[label]["bits_per_byte"] == pytest.approx(nll / math.log(2) / size, rel=1e-4)
        assert found[label]["accuracy"] == pytest.approx(correct / tokens)
        assert label in shown and f"{nll / tokens:.3f}"[:-1] in shown
    assert found["chats"]["accuracy"] > 0.95 > found["texts"]["accuracy"]


def test_a_taught_model_answers_by_heart(folder, capsys):
    result = evaluate(folder, "corpora=[chats]", "name=by-heart")
    assert list(result["loss"]) == list(result["answers"]) == ["chats"]
    figures = result["answers"]["chats"]
    assert (figures["asked"], figures["exact"], figures["f1"], figures["ended"], figures["too_long"]) == (5, 1, 1, 1, 0)
    assert figures["characters"] == figures["reference_characters"] == sum(
        len(a) for _, a in [*CHATS, CHATS[1]]) / 5  # fmt: skip
    kept = {(a["question"], a["answer"], a["reference"]) for a in figures["answers"]}
    assert {(q, a, a) for q, a in CHATS} < kept
    assert (folder / "run" / "evals" / "by-heart.json").is_file()
    assert CHATS[0][1] in capsys.readouterr().out
    cut = evaluate(folder, "corpora=[chats]", "answer_tokens=1", "rows=2")["answers"]["chats"]
    assert cut["ended"] == cut["exact"] == 0 and cut["tokens"] == 1 and 0 < cut["f1"] < 1


def test_prompts_are_those_of_training(folder):
    """Fault 18: prompt + reference + end = what training reads, token for token; from shards and from files."""
    tokenizer = small_tokenizer()
    store = Prepared.open(folder / "data").store("chats", "train")
    prepared = prepared_questions(store, 99, tokenizer)
    read = corpus_questions(CorpusChoice(path=str(folder / "chats.jsonl")), 99, tokenizer)
    chats = [messages_of(*chat) for chat in CHATS]
    learned = [render_chat(tokenizer, chat).tokens for chat in [*chats, [*chats[0], *chats[1]]]]
    for questions in (prepared, read):
        whole = [[*q.prompt, *tokenizer.encode(q.reference), tokenizer.eos_id] for q in questions]
        assert sorted(whole) == sorted(learned)
    some = corpus_questions(CorpusChoice(path=str(folder / "chats.jsonl")), 2, tokenizer)
    assert some == read[:2] and len(prepared_questions(store, 2, tokenizer)) == 2


def test_the_questions_of_a_corpus_are_those_held_out(folder, tmp_path):
    """The smallest hashes are the validation split, so a small sample was not trained on."""
    prepare.main(prepare.PrepareRecipe(
        out=tmp_path / "data", tokenizer=folder / "run" / "model", validation=0.5, workers=1,
        corpora=(CorpusChoice(path=str(folder / "chats.jsonl")),)))  # fmt: skip
    held_out = Prepared.open(tmp_path / "data").store("chats", "val")
    assert 0 < held_out.documents < 5
    tokenizer = small_tokenizer()
    read = corpus_questions(CorpusChoice(path=str(folder / "chats.jsonl")), held_out.documents, tokenizer)
    prepared = prepared_questions(held_out, 99, tokenizer)
    assert sorted(q.prompt for q in read) == sorted(q.prompt for q in prepared)


def test_questions_that_fit_no_context_are_counted(folder):
    file = folder / "long.jsonl"
    lines = [{"messages": messages_of("长" * 300, "短")}, {"messages": messages_of(*CHATS[0])}]
    file.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    recipe = load_recipe(EvaluateRecipe, None, [f"model={folder}/run", f"questions_from=[{{path: {file}}}]"])
    main(recipe)
    result = json.loads((folder / "run" / "evals" / "questions.json").read_text("utf-8"))
    assert result["answers"]["long (corpus)"]["asked"] == result["answers"]["long (corpus)"]["too_long"] == 1
    assert result["loss"] == {}


def test_batches_of_questions_change_no_answer(folder):
    tokenizer = small_tokenizer()
    questions = corpus_questions(CorpusChoice(path=str(folder / "chats.jsonl")), 99, tokenizer)
    engine = Engine(taught_model(), tokenizer.vocab_size)
    one, many = (list(ask(engine, tokenizer, questions, 64, rows)) for rows in (1, 99))
    assert one == many


def test_the_template_is_that_of_the_prepared_data(folder, tmp_path, monkeypatch):
    """Also for questions that come from elsewhere: the model's own folder may name another."""
    asked, other = [], "bos"
    prepare.main(prepare.PrepareRecipe(
        out=tmp_path / "data", tokenizer=folder / "run" / "model", validation=0.0, workers=1, template=other,
        corpora=(CorpusChoice(path=str(folder / "chats.jsonl")),)))  # fmt: skip
    monkeypatch.setattr("babyllama.commands.evaluate.ask", lambda _, __, questions, *___: asked.append(questions) or ())
    evaluate(folder, f"data={tmp_path}/data", f"questions_from=[{{path: {folder}/chats.jsonl}}]", "loss_tokens=1",
             f"out={tmp_path}/bos.json")  # fmt: skip
    tokenizer = small_tokenizer()
    mine, expected = ([render_chat(t, messages_of(*chat)[:1], True).tokens for chat in CHATS]
                      for t in (tokenizer, tokenizer.with_template(other)))  # fmt: skip
    assert len(asked) == 2
    for prompts in ([question.prompt for question in questions] for questions in asked):
        assert all(prompt in prompts for prompt in expected) and not any(prompt in prompts for prompt in mine)


def test_a_folder_that_cannot_be_written_is_said_before_the_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("babyllama.commands.evaluate.load", lambda *_: pytest.fail("it has begun"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/here\.json: cannot write here .*; choose another out="):
        evaluate(folder, f"out={tmp_path}/file/here.json")


# ── what a model has seen ───────────────────────────────────────────────────────────────────────────────────────────
def a_run(path, parent=None, data=None, verb="train", context=None, replay=None):
    """A run's facts without its model."""
    path.mkdir()
    start = {"kind": "new"} if parent is None else {"kind": "from", "path": str(parent)}
    recipe = {"init": start, "data": {"path": str(data)}, "plan": {"context": context},
              "replay": replay and {"path": str(replay)}}  # fmt: skip
    (path / "recipe.yaml").write_text(json.dumps(recipe if verb == "train" else {}))
    (path / "run.json").write_text(json.dumps({"verb": verb, "parent": parent and str(parent)}))
    return path


def some_data(path, validation, source):
    path.mkdir()
    corpora = {Path(source).stem: {"kind": "text", "source": str(source), "splits": {}}}
    (path / "manifest.json").write_text(
        json.dumps({"version": 1, "dtype": "uint16", "validation": validation, "corpora": corpora})
    )
    return path


def hashed(low, high):
    """A text whose hash lies between two shares of all."""
    return next(t for t in map(str, range(10_000)) if low <= xxhash.xxh3_64_intdigest(t.encode()) / 2**64 < high)


def test_held_out_is_what_no_training_of_the_model_or_its_ancestors_saw(tmp_path):
    mine, other = tmp_path / "mine.jsonl", tmp_path / "other.jsonl"
    wide, narrow, much = (some_data(tmp_path / n, v, mine) for n, v in (("wide", 0.2), ("narrow", 0.1), ("much", 0.5)))
    base = a_run(tmp_path / "base", data=wide, context=32)
    tuned = a_run(tmp_path / "tuned", base, narrow, context=16)
    packed = a_run(tmp_path / "packed", tuned / "model", verb="quantize")
    replayed = a_run(tmp_path / "replayed", base, wide, replay=narrow)
    assert [provenance(run).context for run in (base, tuned, packed, replayed)] == [32, 16, 16, None]
    assert [provenance(run).held_out for run in (base, tuned, packed, replayed)] == [0.2, 0.1, 0.1, 0.1]
    held = [[provenance(run).of_split(Prepared.open(data), split) for data in (wide, narrow, much)
             for split in ("val", "train")] for run in (base, packed)]  # fmt: skip
    unknown = ["unknown", "unknown"]
    assert held[0] == ["held out", "trained on", "held out", "unknown", *unknown]
    assert held[1] == ["unknown", "trained on", "held out", "trained on", *unknown]
    chats = some_data(tmp_path / "chats", 0.5, other)  # of another source than the base's
    assert provenance(a_run(tmp_path / "sft", base, chats)).of_split(Prepared.open(chats), "val") == "held out"
    texts = [hashed(0, 0.1), hashed(0.1, 0.2), hashed(0.2, 1)]
    choices = CorpusChoice(path=str(mine)), CorpusChoice(path=str(other))
    for choice, beyond in zip(choices, ("trained on", "unknown"), strict=True):
        assert [provenance(base).of_text(t, choice) for t in texts] == ["held out", "held out", beyond]
        assert [provenance(tuned).of_text(t, choice) for t in texts] == ["held out", beyond, beyond]


def test_a_text_that_max_documents_may_have_left_out_is_not_called_trained_on(tmp_path):
    file = tmp_path / "poems.jsonl"
    file.write_text("".join(json.dumps({"text": f"{text}春眠不觉晓"}) + "\n" for text in range(9)), "utf-8")
    small_tokenizer().save(tmp_path / "tok")
    found = {}
    for name, cut in {"whole": {}, "first": {"max_documents": 4}, "short": {"max_characters": 4000}}.items():
        choice = CorpusChoice(path=str(file), **cut)
        prepare.main(prepare.PrepareRecipe(out=tmp_path / name, tokenizer=tmp_path / "tok", corpora=(choice,),
                                           validation=0.0, workers=1))  # fmt: skip
        history = provenance(a_run(tmp_path / f"run-{name}", data=tmp_path / name))
        found[name] = history.of_text("8春眠不觉晓", CorpusChoice(path=str(file)))
        assert history.of_split(Prepared.open(tmp_path / name), "train") == "trained on"
    assert found == {"whole": "trained on", "first": "unknown", "short": "unknown"}


def test_a_past_that_is_not_known_is_said_so(tmp_path):
    data = some_data(tmp_path / "data", 0.2, "x")
    foreign = a_run(tmp_path / "foreign", tmp_path / "nowhere", data)
    gone = a_run(tmp_path / "gone", data=tmp_path / "removed")
    for model in (foreign, gone, tmp_path):
        assert provenance(model).held_out is None
        assert provenance(model).of_split(Prepared.open(data), "val") == "unknown"
        assert provenance(model).of_text(hashed(0, 0.1), CorpusChoice(path="y")) == "unknown"
    assert provenance(foreign).of_split(Prepared.open(data), "train") == "trained on"


def test_context_and_documents_are_said(folder, capsys):
    found = evaluate(folder, "questions=0", "context=32")
    assert (found["context"], found["trained_context"], found["documents"]) == (32, 96, "unknown")
    shown = " ".join(capsys.readouterr().out.split())
    assert "rows of 32 tokens, but the model was trained on rows of 96" in shown
    assert "train split, unknown whether trained on" in shown
    a_run(folder / "trained", data=folder / "data", context=48)
    save_taught(folder / "trained" / "model")
    found = evaluate(folder, f"model={folder}/trained", "questions=0")
    assert (found["context"], found["trained_context"], found["documents"]) == (48, 48, "trained on")
    assert "rows of 48 tokens, as in training" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [("你好", "你好", 1.0), ("好 你\n", "你好", 1.0), ("你你", "你好", 0.5), ("你", "你好吗", 0.5), ("是", "否", 0.0),
     ("", "否", 0.0), ("", " ", 1.0)],
)  # fmt: skip
def test_character_f1(answer, reference, expected):
    assert character_f1(answer, reference) == expected


def test_scores_add_up():
    good, poor = Answer("q", " 是的 ", "是的", 3, True), Answer("q", "不", "是的", 9, False)
    sums = sum(map(compared, (good, poor)), AnswerSums())
    figures = sums.figures
    assert sums.asked == 2 and figures["exact"] == figures["f1"] == figures["ended"] == 0.5
    assert figures["tokens"] == 6 and figures["characters"] == 2.5 and figures["reference_characters"] == 2


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [(["corpora=[nothing]"], "no corpus 'nothing'"), (["context=4000"], "above the model's 96 positions"),
     (["split=val"], "no document is held out; prepare more"),
     (["questions_from=[{path: TEXTS}]"], "only chats have questions"), (["name=../x"], "name"), (["rows=0"], "rows")],
)  # fmt: skip
def test_faults(folder, overrides, fault):
    with pytest.raises(InputError, match=fault):
        evaluate(folder, *(o.replace("TEXTS", str(folder / "texts.jsonl")) for o in overrides))


def test_the_same_label_twice_would_overwrite_an_answer(folder):
    twice = f"{{path: {folder}/chats.jsonl}}"
    with pytest.raises(InputError, match="questions_from: the label 'chats' is there twice; give one of them another"):
        load_recipe(EvaluateRecipe, None, [f"model={folder}/run", f"questions_from=[{twice}, {twice}]"])


def test_a_corpus_that_nothing_is_held_out_of_is_named_and_the_rest_measured(folder, tmp_path, capsys):
    few, many = tmp_path / "few.jsonl", tmp_path / "many.jsonl"
    few.write_text(json.dumps({"text": hashed(0.5, 1)}), "utf-8")
    many.write_text("\n".join(json.dumps({"text": text}) for text in (hashed(0, 0.4), hashed(0.5, 1))), "utf-8")
    prepare.main(prepare.PrepareRecipe(
        out=tmp_path / "data", tokenizer=folder / "run" / "model", validation=0.5, workers=1,
        corpora=(CorpusChoice(path=str(few)), CorpusChoice(path=str(many)))))  # fmt: skip
    found = evaluate(folder, f"data={tmp_path}/data", "split=val", f"out={tmp_path}/found.json")
    assert list(found["loss"]) == ["many"]
    assert "few: no document is held out, not measured" in capsys.readouterr().out


def test_nothing_to_evaluate_on(folder):
    with pytest.raises(InputError, match="give data"):
        load_recipe(EvaluateRecipe, None, [f"model={folder}/run"])
