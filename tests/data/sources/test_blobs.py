"""Small files share a blob, and every line still knows the file that it is from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyllama.data.sources.blobs import Blob, joined
from babyllama.data.sources.files import Unreadable
from babyllama.data.sources.readers import read_blobs
from babyllama.data.sources.records import Shape, parse
from babyllama.errors import InputError


@given(st.lists(st.tuples(st.integers(1, 99), st.lists(st.binary(max_size=9).filter(lambda b: b"\n" not in b)))),
       st.integers(0, 40), st.booleans())  # fmt: skip
def test_every_line_keeps_its_place(files: list[tuple[int, list[bytes]]], most: int, ended: bool) -> None:
    end = b"\n" if ended else b""
    blobs = [Blob(f"{i}:", first, b"\n".join(lines) + end, 0) for i, (first, lines) in enumerate(files)]
    found = [line for blob in joined(blobs, most) for line in blob.numbered()]
    wanted = [line for blob in blobs for line in blob.numbered()]
    # The end of the last line of each is no line of its own between others.
    assert [line for line in found if line[2]] == [line for line in wanted if line[2]]


def test_small_files_become_few_blobs_and_large_ones_stay_alone(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text(f"第{number}章", "utf-8")
    (tmp_path / "20.txt").write_text("长\n" * 1000, "utf-8")
    files = sorted(tmp_path.iterdir())
    blobs = list(read_blobs(files, blob_bytes=16 << 10))
    assert [len(blob.more) + 1 for blob in blobs] == [20, 1, 19]
    assert [blob.position for blob in blobs][-1] == sum(file.stat().st_size for file in files)
    texts = [document.text for blob in blobs for document in parse(blob, Shape("text")).documents]
    assert texts == [file.read_text("utf-8").strip() for file in files]


def test_faults_name_the_file_that_they_are_in(tmp_path: Path) -> None:
    for name, text in (
        ("a.jsonl", '{"text": "一"}'),
        ("b.jsonl", '{"text": "二"}\n{"text": \n'),
        ("c.jsonl", '{"text": "三"}'),
    ):
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "d.jsonl.gz").write_bytes(b"\x1f\x8b\x08 cut off")
    files = sorted(tmp_path.iterdir())
    (blob,) = read_blobs(files, on_bad="skip")
    found = parse(blob, Shape("text", on_bad="skip"))
    assert [document.text for document in found.documents] == ["一", "二", "三"]
    assert found.bad == 2 and found.first_bad.startswith(f"{tmp_path}/b.jsonl:2: not valid JSON")
    assert f"the rest of {tmp_path}/d.jsonl.gz, which is damaged" in found.notes
    with pytest.raises(InputError, match=r"b\.jsonl:2: not valid JSON"):
        parse(blob, Shape("text"))


def test_what_was_read_before_a_fault_comes_before_it(tmp_path: Path) -> None:
    def blobs():
        yield Blob("a:", 1, json.dumps({"text": "一"}).encode(), 1)
        yield Blob("b:", 1, Unreadable("zzz").line, 2)
        raise InputError("c: damaged")

    found = joined(blobs(), 1000)
    assert [where for where, _, _ in next(found).numbered()] == ["a:", "b:"]
    with pytest.raises(InputError, match="c: damaged"):
        next(found)
