"""Order, windows, packing, mixtures, evaluation; each against a plain re-reading of the documents."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import prepared

from babyllama.data.shards.shards import Prepared, TokenStore
from babyllama.data.streams.batches import IGNORE, Batch, DataRecipe, Stream
from babyllama.data.streams.evaluation import evaluation
from babyllama.data.streams.order import BLOCK, block_counts, permute
from babyllama.data.streams.packing import fit_documents
from babyllama.data.streams.rows import Packed, Windows
from babyllama.errors import InputError
from babyllama.recipe import load_recipe

EOS = 9999


class Memory(TokenStore):
    """A store of given documents; token ids are distinct, so that a token tells where it stood."""

    def __init__(self, lengths: list[int], kind: Any = "text", masked: float = 0.5) -> None:
        super().__init__((), (sum(lengths),), kind, np.dtype("<u4"))
        total = sum(lengths)
        object.__setattr__(self, "all", np.arange(total, dtype="<u4"))
        object.__setattr__(self, "kept", np.random.default_rng(0).random(total) >= masked)
        object.__setattr__(self, "_documents", np.array([(n, n * 3) for n in lengths], "<u4"))

    def tokens(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= len(self)
        return self.all[start:stop]

    def mask(self, start: int, stop: int) -> np.ndarray:
        return np.ones(stop - start, bool) if self.kind == "text" else self.kept[start:stop]


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=25)


@given(size=st.integers(1, 3000), seed=st.integers(0, 5))
def test_permutation_is_a_bijection(size: int, seed: int) -> None:
    places = permute(np.arange(size), size, seed)
    assert sorted(places.tolist()) == list(range(size))
    assert np.array_equal(permute(np.arange(size)[::3], size, seed), places[::3])


def test_permutation_shuffles() -> None:
    places = permute(np.arange(10_000), 10_000, 1)
    assert abs(np.corrcoef(places, np.arange(10_000))[0, 1]) < 0.05
    assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 0.05
    assert (places == permute(np.arange(10_000), 10_000, 2)).sum() < 10
    assert permute(np.array([10**12]), 10**12 + 7, 3)[0] < 10**12 + 7


# ── windows ────────────────────────────────────────────────────────────────────────────────────────────────────────
@given(lengths=LENGTHS, context=st.integers(1, 17), separate=st.booleans())
def test_every_token_is_a_target_once(lengths: list[int], context: int, separate: bool) -> None:
    store = Memory(lengths)
    windows = Windows(store, context, EOS, separate)
    rows = [windows.row(i) for i in range(windows.rows)]
    targets = np.concatenate([row.targets for row in rows])
    assert targets[targets != IGNORE].tolist() == list(range(len(store)))
    inputs = np.concatenate([row.tokens for row in rows])[: len(store)]
    assert inputs.tolist() == [EOS, *range(len(store) - 1)]


@given(lengths=LENGTHS, context=st.integers(1, 17))
def test_separate_windows(lengths: list[int], context: int) -> None:
    """Targets of one document share a segment, no other does, and positions count up from 0 in each."""
    store = Memory(lengths)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    windows = Windows(store, context, EOS, separate=True)
    for index in range(windows.rows):
        row = windows.row(index)
        assert row.segments is not None and row.positions is not None
        real = row.targets != IGNORE
        owners = np.where(real, owner[np.where(real, row.targets, 0)], -1)
        assert np.array_equal(np.diff(owners) != 0, np.diff(row.segments) != 0)
        check_positions(row.segments, row.positions)


def check_positions(segments: np.ndarray, positions: np.ndarray) -> None:
    for segment in np.unique(segments):
        places = np.flatnonzero(segments == segment)
        assert np.array_equal(positions[places], np.arange(len(places)))
        assert np.array_equal(places, np.arange(places[0], places[0] + len(places)))


# ── packing ────────────────────────────────────────────────────────────────────────────────────────────────────────
@given(lengths=LENGTHS, context=st.integers(1, 17), kind=st.sampled_from(["text", "chat"]), seed=st.integers(0, 3))
def test_packing_loses_and_cuts_nothing(lengths: list[int], context: int, kind: str, seed: int) -> None:
    store = Memory(lengths, kind, masked=0.0)
    packed = Packed(store, fit_documents(store, context, seed), EOS)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    owner = np.repeat(np.arange(len(lengths)), lengths)
    seen: list[int] = []
    for index in range(packed.rows):
        row = packed.row(index)
        assert row.segments is not None and row.positions is not None
        check_positions(row.segments, row.positions)
        for segment in np.unique(row.segments):
            targets = row.targets[row.segments == segment]
            if (targets == IGNORE).all():
                assert segment == row.segments[-1]  # only the padding has none
                continue
            inputs = row.tokens[row.segments == segment]
            document = owner[targets[0]]
            whole = lengths[document] - (kind == "chat")
            assert len(targets) == whole or whole > context
            assert (owner[targets] == document).all() and np.array_equal(np.diff(targets), np.ones(len(targets) - 1))
            before = targets[0] - 1 if targets[0] else EOS
            assert inputs.tolist() == [before, *targets[:-1]]
            seen += targets.tolist()
    first = set(starts.tolist()) if kind == "chat" else set()
    assert sorted(seen) == [token for token in range(len(store)) if token not in first]


@given(lengths=LENGTHS, context=st.integers(2, 17), packing=st.sampled_from(["stream", "documents"]))
def test_only_masked_targets_of_chats(lengths: list[int], context: int, packing: str) -> None:
    store = Memory(lengths, "chat")
    rows = (
        Packed(store, fit_documents(store, context, 1), EOS) if packing == "documents" else Windows(store, context, EOS)
    )
    targets = [t for i in range(rows.rows) for t in rows.row(i).targets.tolist() if t != IGNORE]
    skipped = set((np.cumsum(lengths) - lengths).tolist()) if packing == "documents" else set()
    assert sorted(targets) == [t for t in np.flatnonzero(store.kept).tolist() if t not in skipped]


def test_packing_is_tight_and_fast() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(4.5, 0.8, 100_000).astype(int), 2, 512)
    packing = fit_documents(Memory(lengths.tolist()), 512, 1)
    assert packing.fill > 0.97
    assert packing.lengths.sum() == lengths.sum()
    row_sizes = np.add.reduceat(packing.lengths, packing.borders[:-1])
    assert row_sizes.max() <= 512


# ── streams ────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp("batches"), "validation=0.2")


def stream(folder: Prepared, seed: int = 1, context: int = 32, **keys: Any) -> Stream:
    return Stream(folder, "train", DataRecipe(path=folder.path, **keys), context, seed)


def counted(batch: Batch) -> Counter[int]:
    return Counter(batch.targets[batch.targets != IGNORE].tolist())


CHOICES = [{}, {"separate_documents": True}, {"packing": "documents"}, {"weights": {"text": 3.0, "chat": 1.0}}]


@pytest.mark.parametrize("keys", CHOICES)
def test_batches_do_not_depend_on_how_they_are_asked_for(folder: Prepared, keys: dict[str, Any]) -> None:
    whole = stream(folder, **keys).batch(5, 40)
    again = stream(folder, **keys)
    parts = [again.batch(first, 8) for first in reversed(range(5, 45, 8))][::-1]
    for name in ("tokens", "targets", "positions", "segments"):
        expected = getattr(whole, name)
        if expected is not None:
            assert expected.dtype == torch.int64 and expected.shape == (40, 32)
            assert torch.equal(expected, torch.cat([getattr(part, name) for part in parts]))
    assert whole.weight == sum(part.weight for part in parts) > 0
    assert not torch.equal(whole.tokens, stream(folder, seed=2, **keys).batch(5, 40).tokens)


@pytest.mark.parametrize("keys", CHOICES[:3])
def test_an_epoch_is_everything_once(folder: Prepared, keys: dict[str, Any]) -> None:
    found = stream(folder, **keys)
    text, chat = (folder.store(label, "train") for label in ("text", "chat"))
    expected = Counter(text.tokens(0, len(text)).tolist())
    expected += Counter(chat.tokens(0, len(chat))[chat.mask(0, len(chat))].tolist())
    epochs = [found.batch(epoch * found.rows, found.rows) for epoch in range(2)]
    assert counted(epochs[0]) == counted(epochs[1]) == expected
    assert not torch.equal(epochs[0].tokens, epochs[1].tokens)
    assert found.fill > 0.9


def test_mixture(folder: Prepared) -> None:
    found = stream(folder, packing="documents", weights={"text": 3.0, "chat": 1.0})
    chats = set(folder.store("chat", "train").tokens(0, 1).tolist())  # every chat begins with the user's token
    batch = found.batch(7 * BLOCK, BLOCK)
    assert sum(row[0].item() in chats for row in batch.tokens) == 250
    first = sum(row[0].item() in chats for row in found.batch(0, 200).tokens)
    assert 20 < first < 90  # spread over the block
    texts = stream(folder, packing="documents", weights={"text": 1.0, "chat": 0.0})
    assert texts.rows < found.rows and not any(row[0].item() in chats for row in texts.batch(0, 99).tokens)


def test_each_corpus_of_a_mixture_has_its_own_epochs(folder: Prepared) -> None:
    found = stream(folder, weights={"text": 1.0, "chat": 1.0})
    rows = -(-len(folder.store("text", "train")) // 32)
    order = [row for corpus, row in found.places(0, 2 * BLOCK) if corpus == 0]
    times = Counter(order).values()
    assert set(order) == set(range(rows)) and sum(times) == BLOCK and max(times) - min(times) == bool(BLOCK % rows)


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 1), min_size=1))
@settings(max_examples=50)
def test_block_counts(weights: dict[str, float]) -> None:
    counts = block_counts(weights)
    assert sum(counts.values()) == BLOCK
    assert all(abs(counts[k] - BLOCK * w / sum(weights.values())) < 1 for k, w in weights.items())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"text": 1.0, "novel": 1.0}, "no corpus 'novel'; it has text, chat"),
        ({"text": 0.0}, "at least one must be above 0"),
        ({}, "at least one must be above 0"),
        ({"text": 1.0, "chat": 0.0001}, "weights.chat: 0.0001 must be 0, or at least 1/1000"),
        ({"text": 2.0, "chat": -1.0}, "weights.chat: -1.0 must be 0"),
    ],
)
def test_bad_weights(folder: Prepared, weights: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as caught:
        stream(folder, weights=weights)
    assert message in str(caught.value)


def test_recipe_and_moving() -> None:
    recipe = load_recipe(DataRecipe, None, ["path=x", "weights={a: 1, b: 0.5}"])
    assert recipe.weights == {"a": 1.0, "b": 0.5} and recipe.path == Path("x")
    batch = Batch(torch.zeros(1, 2), torch.zeros(1, 2), segments=torch.zeros(1, 2)).to("meta")
    assert batch.tokens.is_meta and batch.positions is None and batch.segments is not None


# ── evaluation ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("label", ["text", "chat"])
@pytest.mark.parametrize("max_tokens", [None, 1, 300])
@pytest.mark.parametrize("apart", [False, True])
def test_evaluation(folder: Prepared, label: str, max_tokens: int | None, apart: bool) -> None:
    store = folder.store(label, "val")
    found = evaluation(folder, label, "val", 32, 4, max_tokens, apart)
    offsets = store.document_offsets
    stop = int(offsets[found.documents])
    if max_tokens is None:
        assert found.documents == store.documents and found.bytes == store.bytes
    else:
        assert found.documents == 1 or stop <= max_tokens
        assert found.documents == store.documents or offsets[found.documents + 1] > max_tokens
        assert found.bytes == store.document_bytes[: found.documents].sum()
    batches = list(found.batches)
    assert all((batch.segments is not None) == (apart or label == "chat") for batch in batches)
    assert all(len(batch.tokens) <= 4 for batch in batches)
    kept = store.tokens(0, stop)[store.mask(0, stop)]
    assert sum((counted(batch) for batch in batches), Counter()) == Counter(kept.tolist())
    assert sum(batch.weight for batch in found) == len(kept)


def test_evaluation_of_nothing(tmp_path: Path) -> None:
    found = evaluation(prepared(tmp_path, "validation=0"), "text", "val", 32, 4)
    assert list(found.batches) == [] and found.bytes == 0
    with pytest.raises(InputError, match="the val split of text is empty"):
        Stream(Prepared.open(tmp_path / "out"), "val", DataRecipe(path=tmp_path), 32, 1)
