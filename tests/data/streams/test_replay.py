"""Replay: the rows of both streams, unchanged, in exact shares, addressed by number."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from small_data import prepared

from babyllama.data.streams.batches import DataRecipe, Stream
from babyllama.data.streams.replay import Mixed, Replay
from babyllama.errors import InputError
from babyllama.recipe import validate


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    data = prepared(folder)
    chat, text = (next(label for label in data.corpora if kind in label) for kind in ("chat", "text"))
    new = Stream(data, "train", DataRecipe(path=data.path, weights={chat: 1.0}, packing="documents"), 32, 1)
    old = Stream(data, "train", DataRecipe(path=data.path, weights={text: 1.0}, separate_documents=True), 32, 2)
    return new, old


@pytest.mark.parametrize("share", [0.1, 0.333, 0.9])
def test_shares_are_exact_in_each_thousand_and_each_stream_goes_on_in_order(streams, share):
    mixed = Mixed(*streams, share, seed=7)
    places = mixed.places(0, 3000)
    for start in range(0, 3000, 1000):
        assert sum(not new for new, _ in places[start : start + 1000]) == round(share * 1000)
    for kind in (True, False):
        numbers = sorted(number for new, number in places if new == kind)
        assert numbers == list(range(len(numbers)))
    runs = sum(a[0] != b[0] for a, b in itertools.pairwise(places))
    assert runs > 0.7 * 2 * share * (1 - share) * 3000  # mixed, not in two lumps


def test_rows_are_the_streams_own_whatever_the_batch(streams):
    new, old = streams
    mixed = Mixed(new, old, 0.3, seed=7)
    whole = mixed.batch(40, 24)
    parts = [mixed.batch(40 + at, 8) for at in (0, 8, 16)]
    for name in ("tokens", "targets", "positions", "segments"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts])), name
    kinds = set()
    for index, (is_new, number) in enumerate(mixed.places(40, 24)):
        kinds.add(is_new)
        row = (new if is_new else old).batch(number, 1)
        for name in ("tokens", "targets", "positions", "segments"):
            assert torch.equal(getattr(whole, name)[index], getattr(row, name)[0]), (name, is_new)
    assert kinds == {True, False}


def test_a_plain_stream_beside_chats_is_one_document_a_row(streams):
    new, old = streams
    plain = Stream(_prepared(old), "train", DataRecipe(path=_prepared(old).path, packing="stream"), 32, 2)
    assert plain.batch(0, 1).segments is None
    mixed = Mixed(new, plain, 0.5, seed=1)
    batch = mixed.batch(0, 20)
    for index, (is_new, _) in enumerate(mixed.places(0, 20)):
        if not is_new:
            assert batch.segments[index].unique().tolist() == [0] and batch.positions[index].tolist() == list(range(32))


def _prepared(stream):
    from babyllama.data.shards.shards import Prepared

    return Prepared.open(stream.corpora[0].store.paths[0].parents[2])


def test_an_epoch_reads_every_new_row(streams):
    new, old = streams
    mixed = Mixed(new, old, 0.25, seed=7)
    assert mixed.rows == math.ceil(new.rows / 0.75)
    assert {number for is_new, number in mixed.places(0, 2000) if is_new} >= set(range(new.rows))
    assert min(new.fill, old.fill) <= mixed.fill <= max(new.fill, old.fill)


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_a_share_must_lie_between(share):
    with pytest.raises(InputError, match="share"):
        validate(Replay, {"path": "x", "share": share}, "replay")
