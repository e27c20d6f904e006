"""What is said about the rows before a training, counted apart from the code that says it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_data import CHATS, prepared, recipe, save_tokenizer, write_lines

from babyllama.commands.prepare import main as prepare
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import IGNORE, DataRecipe, Stream
from babyllama.data.streams.remarks import remarks, rows_without_targets
from babyllama.data.streams.rows import Packed, Windows

CONTEXT = 48


@pytest.fixture(scope="module")
def long_chats(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Every third question fills several rows."""
    folder = tmp_path_factory.mktemp("remarks")
    records = [{"question": ("等于几？" * 40 if i % 3 == 0 else "") + chat["messages"][0]["content"],
                "answer": chat["messages"][1]["content"]} for i, chat in enumerate(CHATS)]  # fmt: skip
    path = write_lines(folder / "long.jsonl", records)
    corpora = [{"path": str(path)}]
    prepare(recipe(folder / "out", save_tokenizer(folder / "tok"), corpora, "workers=1", "validation=0"))
    return Prepared.open(folder / "out")


def test_counts(long_chats: Prepared) -> None:
    stream = Stream(long_chats, "train", DataRecipe(path=long_chats.path), CONTEXT, 1)
    (rows,) = stream.corpora
    assert isinstance(rows, Packed)  # chats are kept whole unless the recipe says otherwise
    batch = stream.batch(0, stream.rows)
    empty = sum(bool((targets == IGNORE).all()) for targets in batch.targets)
    assert 0 < empty < stream.rows and rows_without_targets(rows) == empty
    first, second, third = remarks(long_chats, stream, CONTEXT)
    assert first.startswith("long: 30 of 90 chats (33.3%) are longer than the context of 48 tokens and are cut")
    assert second.startswith(f"long: {empty} of {stream.rows} rows have nothing to learn")
    assert third.startswith("long: nothing is held out")


def test_streamed_chats_are_named(long_chats: Prepared) -> None:
    stream = Stream(long_chats, "train", DataRecipe(path=long_chats.path, packing="stream"), CONTEXT, 1)
    assert isinstance(stream.corpora[0], Windows)
    first, _ = remarks(long_chats, stream, CONTEXT)
    assert "data.packing=documents keeps each whole" in first


def test_texts_and_chats_side_by_side(tmp_path: Path) -> None:
    """By default texts are streamed and chats kept whole; a row of text is one document in such a batch."""
    found = prepared(tmp_path, "validation=0.1")
    stream = Stream(found, "train", DataRecipe(path=found.path), 32, 1)
    assert [type(rows) for rows in stream.corpora] == [Windows, Packed] and not list(remarks(found, stream, 32))
    batch = stream.batch(0, stream.rows)
    assert batch.segments is not None and batch.positions is not None
    kinds = np.array([corpus for corpus, _ in stream.places(0, stream.rows)])
    assert (batch.segments[kinds == 0] == 0).all() and (batch.segments[kinds == 1] > 0).any()
    learned = sum(int(stores["train"].mask(0, len(stores["train"])).sum()) for stores in found.corpora.values())
    assert int((batch.targets != IGNORE).sum()) == learned
