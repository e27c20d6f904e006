"""Documents drawn and numbered: every one is reached, each as its record says."""

from __future__ import annotations

import pytest
from small_data import CHATS, TEXTS, prepared, recipe, save_tokenizer, write_lines

from babyllama.commands.prepare import main as prepare
from babyllama.data.shards.samples import Piece, Selection
from babyllama.data.shards.shards import Prepared
from babyllama.errors import InputError
from babyllama.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = prepared(tmp_path_factory.mktemp("samples"), "validation=0.2")
    return folder, Tokenizer.load(folder.path)


def said(shown, tokenizer):
    return "".join(piece.text for part in shown.parts for piece in part.pieces(tokenizer))


def test_every_document_has_one_number(made):
    folder, tokenizer = made
    every = Selection(folder, list(folder.corpora))
    texts = sorted(said(every[i], tokenizer) for i in range(len(every)))
    wrote = [f"<|user|>{m[0]['content']}<|assistant|>{m[1]['content']}</s>" for m in (c["messages"] for c in CHATS)]
    assert texts == sorted([f"{text}</s>" for text in TEXTS] + wrote)
    shown = every[len(every) - 1]
    alone = Selection(folder, [shown.corpus], [shown.split])
    assert said(alone[shown.document], tokenizer) == said(shown, tokenizer)
    with pytest.raises(InputError, match=f"numbered 0 … {len(every) - 1}"):
        every[len(every)]


def test_the_mask_cuts_a_chat_into_pieces(made):
    folder, tokenizer = made
    shown = Selection(folder, ["chat"], ["train"])[0]
    pieces = shown.parts[0].pieces(tokenizer)
    question, answer = (m["content"] for m in CHATS[0]["messages"])
    assert pieces == [Piece(f"<|user|>{question}<|assistant|>", False), Piece(f"{answer}</s>", True)]
    json = shown.json(tokenizer, most=3)
    assert json["parts"][0]["left"] == json["tokens"] - 3 > 0


def test_a_draw_is_the_same_for_a_seed_and_keeps_to_lengths(made):
    folder, _ = made
    some = Selection(folder, ["text"], least=10, most=40)
    first, again, other = ([shown.document for shown in some.drawn(20, seed)] for seed in (1, 1, 2))
    assert first == again != other and len(set(first)) == len(first)
    assert all(10 <= shown.tokens <= 40 for shown in some.drawn(10**6, 0)) and 0 < len(some) < 150
    assert len(some.drawn(10**6, 0)) == len(some)
    with pytest.raises(InputError, match="no document of 100,000 tokens or more in text"):
        Selection(folder, ["text"], least=100_000)


def test_both_answers_of_a_pair_and_what_people_found_of_single_ones(tmp_path):
    pairs = [{"prompt": f"{i}？", "chosen": f"好{i}", "rejected": f"坏{i}"} for i in range(3)]
    rated = [{"prompt": f"{i}？", "completion": f"答{i}", "label": i == 1} for i in range(3)]
    corpora = [{"path": str(write_lines(tmp_path / f"{name}.jsonl", records))}
               for name, records in (("pairs", pairs), ("rated", rated))]  # fmt: skip
    prepare(recipe(tmp_path / "out", save_tokenizer(tmp_path / "tok"), corpora, "workers=1", "validation=0"))
    folder, tokenizer = Prepared.open(tmp_path / "out"), Tokenizer.load(tmp_path / "tok")
    every = Selection(folder, ["pairs", "rated"])
    assert len(every) == 6
    titles = [[part.title for part in every[i].parts] for i in (1, 3, 4)]
    assert titles == [["the better answer", "the other answer"], ["a bad answer"], ["a good answer"]]
    learned = [[p.text for p in part.pieces(tokenizer) if p.learned] for part in every[1].parts]
    assert learned == [["好1</s>"], ["坏1</s>"]]
