"""Rows of pairs and rated answers: whole, apart, labelled, by row number; what has no room is left out and counted."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from babyllama.data.shards.shards import TokenStore
from babyllama.data.streams.answers import Answers, Room, answers
from babyllama.data.streams.batches import IGNORE, collated

EOS = 9999
LENGTHS = st.lists(st.tuples(st.integers(2, 12), st.integers(2, 12)), min_size=1, max_size=20)


class Memory(TokenStore):
    """Answers of given lengths whose tokens tell where they stood; the last half of each is learned."""

    def __init__(self, lengths, kind="preference"):
        super().__init__((), (sum(lengths),), kind, np.dtype("<u4"))
        marks = [i % 2 + 1 for i in range(len(lengths))]  # good, bad, good, …
        mask = np.concatenate([[0] * (n - n // 2) + [m] * (n // 2) for n, m in zip(lengths, marks, strict=True)])
        object.__setattr__(self, "all", np.arange(sum(lengths), dtype="<u4"))
        object.__setattr__(self, "mask_file", mask.astype(np.uint8))
        object.__setattr__(self, "_documents", np.array([(n, n) for n in lengths], "<u4"))

    def _slice(self, start, stop, suffix, dtype):
        return (self.mask_file if suffix else self.all)[start:stop]


@given(lengths=LENGTHS, context=st.integers(4, 30), longest=st.integers(1, 12), single=st.booleans(),
       seed=st.integers(0, 3))  # fmt: skip
def test_every_answer_that_has_room_is_in_one_row_beside_its_partner(lengths, context, longest, single, seed):
    flat = [n for pair in lengths for n in pair]
    store, group = Memory(flat), 1 if single else 2
    rows = answers(store, Room(context, longest), EOS, seed, np.arange(len(flat), dtype=np.float32), single=single)
    starts, seen = np.cumsum([0, *flat]), []
    for number in range(rows.rows):
        row = rows.row(number)
        documents = rows.documents(number).tolist()
        seen += documents
        for segment, document in enumerate(documents):
            here = row.segments == segment
            whole = np.arange(starts[document], starts[document + 1])
            assert row.tokens[here].tolist() == whole[:-1].tolist()
            assert row.positions[here].tolist() == list(range(len(whole) - 1))
            learned = row.targets[here][row.targets[here] != IGNORE]
            assert learned.tolist() == whole[len(whole) - len(whole) // 2 :].tolist()
            assert row.extras["label"][segment] == (-1 if document % 2 else 1)
            assert row.extras["reference"][segment] == document
        assert not row.extras["label"][len(documents) :].any()
        assert (row.targets[row.segments >= len(documents)] == IGNORE).all()
        if not single:
            assert [d % 2 for d in documents] == [0, 1] * (len(documents) // 2)
            assert all(b == a + 1 for a, b in zip(documents[::2], documents[1::2], strict=True))
    units = np.array(flat).reshape(-1, group) - 1
    fits = [i for i, unit in enumerate(units) if unit.sum() <= context and unit.max() <= longest]
    assert sorted(seen) == [i * group + j for i in fits for j in range(group)]
    assert rows.left_out == len(units) - len(fits)


def test_rated_answers_stand_alone_and_a_batch_carries_what_is_known():
    store = Memory([5, 4, 6], kind="rated")
    rows = answers(store, Room(10, 10), EOS, 0)
    assert isinstance(rows, Answers) and rows.group == 1 and rows.left_out == 0
    batch = collated([rows.row(number) for number in range(rows.rows)])
    assert set(batch.extras) == {"label"} and batch.extras["label"].shape == batch.tokens.shape
    assert sorted(batch.extras["label"][batch.extras["label"] != 0].tolist()) == [-1, 1, 1]
    halves = [collated([rows.row(number)]) for number in range(rows.rows)]
    assert torch.equal(type(batch).joined(halves).extras["label"], batch.extras["label"])
    assert store.good.tolist() == [True, False, True]


def test_the_first_ones_only():
    rows = answers(Memory([3, 3] * 5), Room(8, 8), EOS, 0, documents=5)  # two pairs and a half
    assert sorted(d for n in range(rows.rows) for d in rows.documents(n).tolist()) == [0, 1, 2, 3]
