"""Bits per byte by a model: what it says is what PyTorch's own loss says, and what was not learned is left out."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_data import recipe, save_tokenizer, write_lines
from torch.nn.functional import cross_entropy

from babyllama.commands.prepare import main as prepare
from babyllama.data.clean.cleaning import Cleaning
from babyllama.data.clean.perplexity import Perplexity
from babyllama.data.clean.presets import FILTERS
from babyllama.data.sources.documents import Chat, Text
from babyllama.data.sources.readers import read_blobs
from babyllama.errors import InputError
from babyllama.model.checkpoint import save_model
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.recipe import validate
from babyllama.tokenizer.tokenizer import Tokenizer

CONTEXT = 48
GOOD = [f"第{i}篇：春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。" for i in range(40)]
BAD = ["".join(chr(0x4E00 + (i * 997 + j * 131) % 20000) for j in range(25)) for i in range(10)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Trained for some seconds on GOOD alone."""
    folder = save_tokenizer(tmp_path_factory.mktemp("perplexity") / "model")
    tokenizer = Tokenizer.load(folder)
    torch.manual_seed(0)
    made = Transformer(ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=CONTEXT))  # fmt: skip
    initialise(made, 0)
    rows = [[tokenizer.eos_id, *tokenizer.encode(text)][: CONTEXT + 1] for text in GOOD[:20]]
    rows = torch.tensor([row + [tokenizer.eos_id] * (CONTEXT + 1 - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(made.parameters(), lr=2e-2)
    for _ in range(25):
        loss = cross_entropy(made(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_model(made.requires_grad_(False), folder, **tokenizer.config_ids)
    return folder


def by_hand(folder: Path, text: str) -> float:
    """Piece by piece, one row at a time, by PyTorch's mean loss."""
    from babyllama.model.checkpoint import load_model

    loaded, tokenizer, nats = load_model(folder).float(), Tokenizer.load(folder), 0.0
    ids = tokenizer.encode(text)
    for first in range(0, len(ids), CONTEXT):
        piece = torch.tensor([tokenizer.eos_id, *ids[first : first + CONTEXT]])
        with torch.no_grad():
            nats += cross_entropy(loaded(piece[None, :-1])[0], piece[1:]).item() * (len(piece) - 1)
    return nats / math.log(2) / len(text.encode())


def test_the_figure_is_that_of_the_loss(model):
    filter = Perplexity(model=model, at_most=2)
    texts = [GOOD[0], BAD[0], "好", GOOD[1] * 9, "x" * 1500]
    found = filter.measures(texts)
    assert found == pytest.approx([by_hand(model, text[:1000]) for text in texts], rel=1e-4)
    assert found[0] < 2 < found[1]
    threads = torch.get_num_threads()
    assert filter.measures(texts) == found and torch.get_num_threads() == threads


def test_what_the_model_did_not_learn_is_left_out(model):
    cleaning = Cleaning([Perplexity(model=model, at_most=2)])
    documents = [Text(text) for pair in zip(GOOD[20:30], BAD, strict=True) for text in pair]
    chat = Chat(({"role": "user", "content": BAD[0]}, {"role": "assistant", "content": BAD[1]}))
    assert list(cleaning([*documents, chat])) == [*map(Text, GOOD[20:30]), chat]  # in their order; chats pass
    (entry,) = cleaning.ledger
    assert (entry["documents"], entry["dropped"], entry["reasons"]) == (21, 10, {"above 2": 10})
    assert sum(entry["bins"]) == 20


def mixed(folder: Path, model: Path, workers: int) -> dict:
    """The manifest of GOOD and BAD texts, in several blobs, of which three of five are kept."""
    file = folder / "mixed.jsonl"
    if not file.is_file():
        write_lines(file, [{"text": text} for text in [*GOOD[20:], *BAD] for _ in range(2)])
    clean = [{"kind": "length", "at_least": 5}, {"kind": "perplexity", "model": str(model), "quantiles": [0, 0.6]}]
    out = folder / f"out{workers}"
    given = (f"workers={workers}", "validation=0", f"clean={json.dumps(clean)}")
    prepare(recipe(out, model, [{"path": str(file)}], *given))
    return json.loads((out / "manifest.json").read_text())


@pytest.fixture
def small_blobs(monkeypatch):
    monkeypatch.setattr(read_blobs, "__defaults__", ("auto", 1500, "utf-8"))


def test_in_prepare_with_quantiles(model, tmp_path, small_blobs):
    manifest = mixed(tmp_path, model, 1)
    (filter,) = manifest["filters"]
    assert filter["filter"] == "perplexity" and len(filter["hash"]) == 32 and filter["at_least"] is None
    corpus = manifest["corpora"]["mixed"]
    assert len(corpus["splits"]["train"]["shards"]) > 1
    kept = corpus["splits"]["train"]["documents"]
    assert kept == round(0.6 * 60) and corpus["cleaning"][1]["reasons"] == {f"above {filter['at_most']:g}": 60 - kept}


@pytest.mark.slow  # each worker imports PyTorch
def test_any_number_of_workers_makes_the_same(model, tmp_path, small_blobs):
    assert mixed(tmp_path, model, 1) == mixed(tmp_path, model, 2)


@pytest.mark.parametrize("more,fault", [
    ({"model": "nowhere", "at_most": 1}, "nowhere: no run with a model"),
    ({"model": "adapter", "at_most": 1}, "adapter: an adapter; merge it first"),
    ({"model": "nowhere", "at_most": 1, "quantiles": [0, 0.5]}, "leave at_least and at_most out"),
    ({"model": "nowhere", "quantiles": [0.5, 0.2]}, "two shares in order"),
])  # fmt: skip
def test_faults(more, fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=fault):
        validate(FILTERS["perplexity"], {"kind": "perplexity", **more}, "").check()


def test_without_limits_it_only_measures(model):
    assert Perplexity(model=model).judge(99.0) is None


def test_a_prepare_without_it_loads_no_pytorch():
    code = "import sys; import babyllama.data.clean.perplexity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
