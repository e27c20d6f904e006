"""Scores of a reward model over HTTP: those that evaluate finds, by every way to ask; what cannot be is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from small_run import CONTEXT, messages_of, save_taught, small_tokenizer, taught_model

from babyllama.commands import evaluate, prepare
from babyllama.commands.serve import ServeRecipe, _named, _openers
from babyllama.data.sources.corpora import CorpusChoice
from babyllama.load import load
from babyllama.model.checkpoint import save_model
from babyllama.model.transformer import with_reward_head
from babyllama.serve.models import Models

from .conftest import told_here

WORDS = "一二三四五六七"
ANSWERS = ("好，是{}。", "不，欢迎再来，再见。{}")  # of unequal length: one batch, padded
PAIRS = [(f"{a}和{b}？", *(text.format(a) for text in ANSWERS)) for a in WORDS for b in WORDS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scores")
    save_taught(root / "writes")
    (root / "reward").mkdir()
    model = with_reward_head(taught_model(), 3)
    model.lm_head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    save_model(model, root / "reward", **small_tokenizer().config_ids)
    small_tokenizer().save(root / "reward")
    return root


def served(folders: Path, *posted: tuple[str, dict[str, Any]]) -> list[httpx.Response]:
    recipe = ServeRecipe(models=(folders / "reward", folders / "writes"), device="cpu")
    models = Models(_openers(_named(recipe), recipe))
    return told_here(models, ["reward", "writes"], list(posted))


def scores(answer: httpx.Response) -> list[float]:
    found = answer.json()
    assert answer.status_code == 200 and found["object"] == "list", found
    assert [one["index"] for one in found["data"]] == list(range(len(found["data"])))
    assert {one["object"] for one in found["data"]} == {"score"}
    return [one["score"] for one in found["data"]]


def test_scores_are_those_of_evaluate_and_of_the_model_alone(folders):
    lines = [{"prompt": p, "chosen": a, "rejected": b, "held_out": True} for p, a, b in PAIRS]
    (folders / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    prepare.main(prepare.PrepareRecipe(
        out=folders / "pairs", tokenizer=folders / "reward", workers=1,
        corpora=(CorpusChoice(path=str(folders / "pairs.jsonl"), label="pairs"),)))  # fmt: skip
    evaluate.main(
        evaluate.EvaluateRecipe(
            model=folders / "reward", data=folders / "pairs", out=folders / "found.json", device="cpu", questions=0
        )
    )
    told = json.loads((folders / "found.json").read_text())["pairs"]["pairs"]

    chats = [messages_of(prompt, answer) for prompt, *both in PAIRS for answer in both]
    texts = {"prompt": [c[0]["content"] for c in chats], "completion": [c[1]["content"] for c in chats]}
    many, parts, one, part = served(
        folders, ("/v1/score", {"model": "reward", "messages": chats}), ("/v1/score", {"model": "reward", **texts}),
        ("/v1/score", {"model": "reward", "messages": chats[5]}),
        ("/v1/score", {"model": "reward", **{key: value[5] for key, value in texts.items()}}))  # fmt: skip
    found = scores(many)
    assert scores(parts) == found and scores(one) == scores(part) == pytest.approx([found[5]], abs=1e-5)
    chosen, rejected = found[::2], found[1::2]
    assert told["pairs"] == len(PAIRS) and len(set(found)) == len(found)
    assert sum(chosen) / len(PAIRS) == pytest.approx(told["chosen"], abs=1e-5)
    assert sum(rejected) / len(PAIRS) == pytest.approx(told["rejected"], abs=1e-5)
    right = sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(PAIRS)
    assert right == told["by_score"]["accuracy"]

    tokenizer, model = small_tokenizer(), load(folders / "reward", torch.device("cpu"), scores=True).model.double()
    ids, roles, total = tokenizer.encode, tokenizer.role_ids, 0
    for (asked, answer), score in zip(chats, found, strict=True):  # the template written out
        tokens = [roles["user"], *ids(asked["content"]), roles["assistant"],
                  *ids(answer["content"]), tokenizer.eos_id]  # fmt: skip
        assert model(torch.tensor([tokens]))[0, -1, 0].item() == pytest.approx(score, abs=1e-5)
        total += len(tokens)
    assert many.json()["usage"] == {"prompt_tokens": total, "total_tokens": total}


ASKED = {"role": "user", "content": "你好！"}
ANSWERED = [ASKED, {"role": "assistant", "content": "你好"}]


@pytest.mark.parametrize(("route", "body", "param", "said"), [
    ("score", {"model": "writes", "messages": ANSWERED}, "model", "'writes' is no reward model and has no scores"),
    ("chat/completions", {"model": "reward", "messages": [ASKED]}, "model", "is a reward model: it says what answers"),
    ("completions", {"model": "reward", "prompt": "你"}, "model", "ask for scores at /v1/score"),
    ("score", {"model": "reward", "messages": [ASKED]}, "messages", "must end with the assistant's answer"),
    ("score", {"model": "reward", "messages": [ANSWERED, [ASKED]]}, "messages", "conversation 1: messages: must end"),
    ("score", {"model": "reward", "messages": [ANSWERED, []]}, "messages", "conversation 1: messages: must end"),
    ("score", {"model": "reward", "messages": [ANSWERED[1]]}, "messages", "assistant cannot stand at the start"),
    ("score", {"model": "reward", "messages": ANSWERED, "prompt": "a"}, "messages", "either messages, or prompt and"),
    ("score", {"model": "reward", "prompt": "a"}, "messages", "either messages, or prompt and completion"),
    ("score", {"model": "reward", "prompt": ["a", "b"], "completion": ["a"]}, "completion", "1 answers to 2 questions"),
    ("score", {"model": "reward", "prompt": "问" * 999, "completion": "a"}, "messages", f"length is {CONTEXT}"),
    ("score", {"model": "reward", "messages": 3}, "messages", "should be a valid array"),
])  # fmt: skip
def test_what_cannot_be_is_said(folders, route, body, param, said):
    (answer,) = served(folders, (f"/v1/{route}", body))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param) and said in error["message"]
