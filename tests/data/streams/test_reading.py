"""Rows taken apart again: nothing of a document is lost, padding is told, both answers of a pair have their label."""

from __future__ import annotations

import numpy as np
import pytest
from small_data import CHATS, prepared, recipe, save_tokenizer, write_lines

from babyllama.commands.prepare import main as prepare
from babyllama.data.shards.samples import pieces
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.answers import Room, answers
from babyllama.data.streams.batches import DataRecipe, Stream, collated
from babyllama.data.streams.reading import stretches
from babyllama.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = prepared(tmp_path_factory.mktemp("reading"), "validation=0")
    return folder, Tokenizer.load(folder.path)


def read(folder, label, context, **more):
    """All rows of one corpus, in its own order."""
    (rows,) = Stream(folder, "train", DataRecipe(path=folder.path, weights={label: 1}, **more), context, 0).corpora
    return [stretches(collated([rows.row(row)]), 0, folder.eos) for row in range(rows.rows)]


def test_packed_chats_come_back_whole(made):
    folder, tokenizer = made
    rows = read(folder, "chat", 64)
    found = [pieces(s.tokens.tolist(), s.learned.tolist(), tokenizer) for row in rows for s in row if not s.padding]
    asked = {f"<|user|>{c['messages'][0]['content']}<|assistant|>": f"{c['messages'][1]['content']}</s>" for c in CHATS}
    assert {before.text: answer.text for before, answer in found} == asked and len(found) == len(CHATS)
    for row in rows:
        assert sum(len(s.tokens) - (not s.padding) for s in row) == 64  # a last target has no place of its own
        assert all(s.positions.tolist() == list(range(len(s.tokens))) for s in row if not s.padding)
    assert any(row[-1].padding for row in rows) and not any(s.padding for row in rows for s in row[:-1])


@pytest.mark.parametrize("apart", [False, True])
def test_a_stream_of_texts_has_every_token_once(made, apart):
    folder, _ = made
    rows, store = read(folder, "text", 50, separate_documents=apart), folder.store("text", "train")
    learned = [s.tokens[s.learned] for row in rows for s in row]
    assert np.concatenate(learned).tolist() == store.tokens(0, len(store)).tolist()
    last = rows[-1][-1]
    assert last.padding and len(last.tokens) == -len(store) % 50
    assert len(rows[0]) == 1 if not apart else len(rows[0]) > 1


def test_answers_of_a_pair(tmp_path):
    pairs = [{"prompt": "问？", "chosen": "好", "rejected": "坏坏"}]
    file = write_lines(tmp_path / "pairs.jsonl", pairs)
    prepare(
        recipe(tmp_path / "out", save_tokenizer(tmp_path / "tok"), [{"path": str(file)}], "workers=1", "validation=0")
    )
    folder, tokenizer = Prepared.open(tmp_path / "out"), Tokenizer.load(tmp_path / "tok")
    rows = answers(folder.store("pairs", "train"), Room(64, 64), folder.eos, 0)
    found = stretches(collated([rows.row(0)]), 0, folder.eos)
    said = [pieces(s.tokens.tolist(), s.learned.tolist(), tokenizer)[-1].text for s in found[:2]]
    assert said == ["好</s>", "坏坏</s>"] and [s.label for s in found] == [1, -1, 0] and found[2].padding
