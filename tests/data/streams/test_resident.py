"""A resident stream against the stream itself."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import prepared, recipe, save_tokenizer, write_lines

from babyllama.commands.prepare import main as prepare
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import DataRecipe, Stream
from babyllama.data.streams.resident import Resident

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tokenizer = save_tokenizer(folder / "tok")
    texts = [
        [{"text": "床前明月光疑是地上霜" * (1 + number % 3) + str(number)} for number in range(n)] for n in (40, 25)
    ]
    paths = [write_lines(folder / f"{len(lines)}.jsonl", lines) for lines in texts]
    prepare(recipe(folder / "out", tokenizer, [{"path": str(path)} for path in paths], "workers=1"))
    return Prepared.open(folder / "out")


@pytest.mark.parametrize("context", [5, 16, 64])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_are_the_streams_own(data, context, weighted):
    weights = dict.fromkeys(data.corpora, 1.0) if weighted else None
    stream = Stream(data, "train", DataRecipe(path=data.path, weights=weights), context, 1)
    resident = Resident.of(stream, context, CPU)
    for first, count in ((0, stream.rows), (3, 7), (2 * stream.rows - 2, 5)):
        ours, expected = resident.batch(first, count), stream.batch(first, count)
        assert torch.equal(ours.tokens, expected.tokens) and torch.equal(ours.targets, expected.targets)
        assert ours.weight == expected.weight == int((expected.targets != -100).sum())


def test_ids_above_half_of_16_bits(data, tmp_path):
    """Kept in signed 16 bits on the device, and read as what they are."""
    copy = Prepared.open(shutil.copytree(data.path, tmp_path / "high"))
    for path in (copy.path / "shards").rglob("*.bin"):
        tokens = np.fromfile(path, "<u2")
        np.where(tokens == copy.eos, tokens, tokens + 40_000).astype("<u2").tofile(path)
    stream = Stream(copy, "train", DataRecipe(path=copy.path), 16, 1)
    resident = Resident.of(stream, 16, CPU)
    ours, expected = resident.batch(0, stream.rows), stream.batch(0, stream.rows)
    assert ours.tokens.max() > 40_000 and ours.tokens.min() >= 0
    assert torch.equal(ours.tokens, expected.tokens) and torch.equal(ours.targets, expected.targets)


def test_rows_that_need_masks_stay_on_the_host(data):
    for chosen in (
        DataRecipe(path=data.path, packing="documents"),
        DataRecipe(path=data.path, separate_documents=True),
    ):
        assert Resident.of(Stream(data, "train", chosen, 16, 1), 16, CPU) is None


def test_chats_stay_on_the_host(tmp_path):
    stream = Stream(prepared(tmp_path), "train", DataRecipe(path=tmp_path / "out"), 16, 1)
    assert Resident.of(stream, 16, CPU) is None


def test_a_corpus_that_does_not_fit_stays_on_the_host(data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 10))
    stream = Stream(data, "train", DataRecipe(path=Path(data.path)), 16, 1)
    assert Resident.of(stream, 16, torch.device("cuda")) is None
