"""Rows of Parquet files come out as Python's own JSON of them would, whatever is in them."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from babyllama.data.sources import parquet
from babyllama.data.sources.parquet import read_parquet
from babyllama.data.sources.records import Shape, parse
from babyllama.errors import InputError

HOSTILE = [
    "",
    "“引”",
    'a "b" \\ c\\n',
    "\n\r\t",
    "".join(map(chr, range(160))),
    "𠮷🙂\u2028\ufeff",
    None,
    "\\\\u0041",
    "þÿ",
]


def lines(path, **more) -> list[bytes]:
    return b"".join(blob.lines for blob in read_parquet(path, **more)).split(b"\n")[:-1]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_texts_are_what_they_were(tmp_path, kind):
    column = pa.array([text and text.encode() for text in HOSTILE], pa.binary()).cast(pa.string())
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    pq.write_table(pa.table({'te"x\\t': column}), tmp_path / "a.parquet")
    assert [json.loads(line) for line in lines(tmp_path / "a.parquet")] == [{'te"x\\t': text} for text in HOSTILE]


def test_other_columns_are_as_python_writes_them(tmp_path):
    rows = [{"n": 1, "x": 0.1, "ok": True, "messages": [{"role": 'u"', "content": "一\\\n"}], "none": None},
            {"n": None, "x": float("inf"), "ok": None, "messages": [], "none": None}]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [json.loads(line) for line in lines(tmp_path / "a.parquet")] == rows


def test_bytes_that_are_no_text_are_one_bad_record_each(tmp_path):
    held = pa.array(["一".encode(), b"\xff\xfe", "国".encode("gb18030"), b"\xfd", "二".encode()], pa.binary())
    said_to_be_text = pa.Array.from_buffers(pa.string(), len(held), held.buffers())
    for name, column in (("bytes", held), ("text", said_to_be_text)):
        pq.write_table(pa.table({"text": column}), path := tmp_path / f"{name}.parquet")
        (blob,) = read_parquet(path)
        found = parse(blob, Shape("text", on_bad="skip"))
        assert [document.text for document in found.documents] == ["一", "二"] and found.bad == 3
        assert found.first_bad.startswith(f"{path}, row 2: not valid UTF-8")


def test_blobs_are_numbered_through_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_BATCH_ROWS", 7)
    texts = [f"文{i}" * 20 for i in range(100)]
    pq.write_table(pa.table({"text": texts}), path := tmp_path / "a.parquet", row_group_size=30)
    blobs = list(read_parquet(path, blob_bytes=2000))
    assert len(blobs) > 2 and blobs[-1].position == path.stat().st_size
    assert [json.loads(line)["text"] for blob in blobs for line in blob.lines.splitlines()] == texts
    assert [blob.first for blob in blobs] == [
        1 + sum(b.lines.count(b"\n") for b in blobs[:i]) for i in range(len(blobs))
    ]


def test_no_rows_no_columns_and_columns_there_twice(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({}), tmp_path / "b.parquet")
    assert not list(read_parquet(tmp_path / "a.parquet")) + list(read_parquet(tmp_path / "b.parquet"))
    pq.write_table(pa.table([pa.array(["一"])] * 2, names=["text", "text"]), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"c\.parquet: the column 'text' is there twice; rename one of them"):
        lines(tmp_path / "c.parquet")
