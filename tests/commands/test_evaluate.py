"""The verb evaluate: figures against ones computed here document by document, answers, files, faults."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from babyllama.commands import prepare
from babyllama.commands.evaluate import EvaluateRecipe, main
from babyllama.data.shards.shards import Prepared
from babyllama.data.sources.corpora import CorpusChoice
from babyllama.errors import InputError
from babyllama.evals.answers import (
    ask,
    corpus_questions,
    prepared_questions,
)
from babyllama.infer.engine import Engine
from babyllama.recipe import load_recipe
from babyllama.tokenizer.chat import render_chat

from .small_run import CHATS, a_run, hashed, messages_of, save_taught, small_tokenizer, taught_model

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


def test_a_model_that_is_not_there_leaves_no_folder(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        main(load_recipe(EvaluateRecipe, None, [f"model={tmp_path}/nowhere", "suite=zh-small", "device=cpu"]))
    assert not (tmp_path / "nowhere").exists()


def test_nothing_to_evaluate_on(folder):
    with pytest.raises(InputError, match="give data"):
        load_recipe(EvaluateRecipe, None, [f"model={folder}/run"])


def test_a_suite_is_one_file_that_another_run_is_compared_with(folder, tmp_path, capsys):
    def run(*more):
        recipe = load_recipe(EvaluateRecipe, None, [f"model={folder}/run", "suite=zh-small", "device=cpu", *more])
        main(recipe)
        return json.loads(recipe.file.read_text("utf-8"))

    first = run()
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "ceval: not asked; get it from huggingface.co/datasets/ceval/ceval-exam" in shown
        and "minimal_pairs 320" in shown
    )
    assert set(first["missing"]) >= {"ceval", "cmmlu", "c3"} and len(first["tasks"]) == 11
    figures = first["tasks"]["arithmetic"]
    assert figures["items"] == 240 and figures["chance"] == 0.3 and "72 blocks" in figures["interval_kind"]
    assert figures["right"] == sum(one["taken"] == one["answer"] for one in figures["answers"])
    figures = first["tasks"]["word_problems"]
    assert figures["items"] == 240 and figures["right"] == sum(one["right"] for one in figures["answers"])
    again = run(f"out={tmp_path}/again.json", f"against={folder}/run/evals/zh-small.json")
    assert again["tasks"] == first["tasks"]
    assert all(apart["value"] == 0 and apart["p"] == 1 for apart in again["against"].values())
    assert f"word_order: as good as {folder}/run/evals/zh-small.json (± " in capsys.readouterr().out


def test_faults_of_tests(folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="unknown task 'mmlu'; there are"):
        evaluate(folder, "tasks=[mmlu]")
    with pytest.raises(InputError, match="'arithmetic' is there twice"):
        evaluate(folder, "suite=zh-small", "tasks=[arithmetic]")
    with pytest.raises(InputError, match="word_problems has free answers: scoring and normalise are for"):
        evaluate(folder, "tasks=[{name: word_problems, scoring: cloze}]")
    with pytest.raises(InputError, match=r"task_data: .*nowhere is not a folder"):
        evaluate(folder, "tasks=[ceval]", f"task_data={tmp_path / 'nowhere'}")
    gbk = tmp_path / "own" / "val" / "family_val.csv"
    gbk.parent.mkdir(parents=True)
    gbk.write_bytes("id,question,A,B,C,D,answer\n0,안녕하세요,爷爷,奶奶,叔叔,舅舅,A\n".encode("utf-16-le"))
    with pytest.raises(InputError, match=r"family_val.csv: neither UTF-8 nor GB18030.*save it in UTF-8"):
        evaluate(folder, f"tasks=[{{name: ceval, path: {tmp_path / 'own'}}}]")
    (tmp_path / "c3.json").write_text("[")
    (tmp_path / "other.json").write_text('{"tasks": {"idioms": {}}}')
    with monkeypatch.context() as patch, pytest.raises(InputError) as fault:
        patch.setattr("babyllama.commands.evaluate.load", lambda *_, **__: pytest.fail("loaded before it looked"))
        named = f"[ocnli, c3, arithmetic, {{name: chid, path: {tmp_path}/no.json}}]"
        evaluate(folder, f"data={folder}/out", f"tasks={named}", f"task_data={tmp_path}")
    with monkeypatch.context() as patch:
        patch.setattr("babyllama.commands.evaluate.load", lambda *_, **__: pytest.fail("loaded before it looked"))
        for other, said in (
            (tmp_path, rf"evaluate it in the same way first: babyllama evaluate {tmp_path} data=.* 'tasks=\[…\]'"),
            (tmp_path / "other.json", "has none of"),
        ):
            with pytest.raises(InputError, match=said):
                evaluate(folder, "tasks=[arithmetic]", f"against={other}")
    assert re.fullmatch(r"ocnli: get it from .*\n.*c3\.json.*\n.*no\.json.*\n.*task_data=FOLDER", str(fault.value))
    config = folder / "run" / "model" / "tokenizer_config.json"
    kept = config.read_text("utf-8")
    config.write_text(json.dumps({k: v for k, v in json.loads(kept).items() if k != "chat_template"}))
    try:
        with pytest.raises(InputError, match="has no chat template; leave chat=true out"):
            evaluate(folder, "tasks=[{name: arithmetic, chat: true}]", f"out={tmp_path}/x.json")
    finally:
        config.write_text(kept)
