"""Faults of a record are skipped or stop, in every format alike; faults of a file always stop and name their cause."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_readers import documents

from babyllama.data.sources import files, readers
from babyllama.data.sources.corpora import CorpusChoice, read_documents
from babyllama.data.sources.finding import find_files, passed_over
from babyllama.data.sources.readers import read_blobs
from babyllama.data.sources.records import Shape, parse
from babyllama.errors import InputError
from babyllama.recipe import load_recipe

GBK = "汉字".encode("gbk")


def zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.compress(data)


def archive(name: str, content: bytes) -> bytes:
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w") as file:
        file.writestr(zipfile.ZipInfo(name), content)  # without the clock: the bytes are part of the test's name
    return found.getvalue()


def tar(name: str, content: bytes) -> bytes:
    found, member = io.BytesIO(), tarfile.TarInfo(name)
    member.size = len(content)
    with tarfile.open(fileobj=found, mode="w") as file:
        file.addfile(member, io.BytesIO(content))
    return found.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "' + GBK + b'"}\n{"text": "b"}\n', "a.jsonl:2: not valid UTF-8"),
        ("a.json", b'[{"text": "a"}, {"text": "x",,}, {"text": "b"}]', "a.json, record 2: not valid JSON"),
        ("a.json", b'[{"text": "a"}, {"text": "' + GBK + b'"}, {"text": "b"}]', "record 2: not valid UTF-8"),
        ("a.json", b'{"data": [{"text": "a"}, {"t": ["]}", "}]"]}, {"text": "b"}], "n": 1}', "record 2: no key"),
        ("a.json", b'{\n"text": "a"}\n{\n"text": x}\n{\n"text": "b"}', "a.json, record 2: not valid JSON"),
        ("a.csv", b"text,n\na,1\nx\nb,2\n", "a.csv, row 2: line 3: 1 fields, but the header has 2"),
        ("a.csv", b"text,n\na,1\n" + GBK + b",2\nb,2\n", "a.csv, row 2: line 3: not valid UTF-8"),
        ("a.csv", b'text,n\na,1\n"x"y,2\nb,2\n', "a.csv, row 2: line 3: not valid CSV"),
        ("a.txt", b"a\n" + GBK + b"\nb\n", "a.txt, document 2: line 2: not valid UTF-8, but it reads as GB18030"),
    ],
)  # fmt: skip
def test_one_policy(tmp_path: Path, name: str, content: bytes, place: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    format: Any = "lines" if name.endswith("txt") else "auto"
    with pytest.raises(InputError) as caught:
        documents(path, format=format)
    assert place in str(caught.value) and str(caught.value).endswith("on_bad=skip")
    assert documents(path, format=format, shape=Shape("text", on_bad="skip")) == ["a", "b"]
    parsed = [parse(blob, Shape("text", on_bad="skip")) for blob in read_blobs([path], format)]
    assert sum(p.bad for p in parsed) == 1 and place in "".join(p.first_bad for p in parsed)


def test_bad_bytes_in_an_unread_column(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {"text": pa.array(["一".encode(), "二".encode(), b"\xff"], pa.binary()), "image": [b"\xff\xfe"] * 3,
             "score": [float("nan"), float("inf"), 1.0]}  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet", shape=Shape("text", on_bad="skip")) == ["一", "二"]
    with pytest.raises(InputError, match=r"a\.parquet, row 3: not valid UTF-8 \(nor GB18030\)"):
        documents(tmp_path / "a.parquet")
    for name, line in (("a.jsonl", '{"text": "一", "n": NaN}\n'), ("b.json", '[{"text": "一", "n": -Infinity}]')):
        (tmp_path / name).write_text(line, "utf-8")
        assert documents(tmp_path / name) == ["一"]


LINES = b"".join(b'{"text": "%d"}\n' % i for i in range(5000))


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.jsonl.zst", zstd(LINES)[:-30], "damaged or cut off (the last frame has no end)"),
        ("a.jsonl.zst", zstd(LINES) + zstd(LINES)[:9], "damaged or cut off (the last frame has no end)"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-30], "damaged or cut off"),
        ("a.json", b'[{"text": "a"}]\n[{"text": "b"}]', "a.json:2: '[{\"text\": \"b\"}]' stands after the end of the"),
        ("a.json", b'[{"text": "a"}]\n\n, 1', "a.json:3: ', 1' stands after the end of the array"),
        ("a.json", b'{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "a second array, under 'test'"),
        ("a.json", b'[{"text": "a"}, {"text": "b}]', "a.json, record 2: not valid JSON in an array"),
        ("a.csv", b"text,text\na,b\n", "a.csv:1: the column 'text' is there twice"),
        ("a.csv", b'text,n\na,1\n"b,2\nc,3\n', "a.csv:3: a quotation that begins here does not end"),
        ("a.zip", archive("a.jsonl", LINES)[:40], "a.zip: damaged or cut off, or no zip archive"),
        ("a.zip", archive("b.zip", archive("a.jsonl", LINES)), "no corpus file in this archive, but b.zip"),
        ("a.zip", archive("b/a.jsonl", archive("a.jsonl", LINES)), "a.zip/b/a.jsonl: is a zip archive; end its name"),
        ("a.zip", archive("a.jsonl", LINES).replace(b'"77', b'"78', 1), "a.zip/a.jsonl: damaged or cut off (Bad"),
        ("a.jsonl", archive("a.jsonl", LINES), "a.jsonl: is a zip archive; end its name in .zip, or unpack it"),
        ("a.tar.gz", gzip.compress(tar("a.jsonl", LINES), mtime=0), "a.tar.gz: is a tar archive; unpack it"),
        ("a.jsonl.xz", lzma.compress(LINES), "a.jsonl.xz: is compressed by xz; unpack it (xz -d)"),
        ("a.jsonl", gzip.compress(LINES, mtime=0), "is compressed by gzip; unpack it, or end its name in .gz"),
        ("a.jsonl.zst", gzip.compress(LINES, mtime=0), "damaged or cut off"),
        ("a.parquet", b"PAR1" + LINES[:500], "damaged or no Parquet file"),
    ],
)  # fmt: skip
def test_a_damaged_file_always_stops(tmp_path: Path, name: str, content: bytes, fault: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        documents(tmp_path / name, shape=Shape("text", on_bad="skip"))
    assert fault in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "format"), [("a.jsonl", "auto"), ("a.txt", "auto"), ("a.txt", "lines")])
def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, format: Any
) -> None:
    for module in (files, readers):
        monkeypatch.setattr(module, "LINE_BYTES", 1 << 20)
    monkeypatch.setattr(files.Bytes.readline, "__defaults__", (1 << 20,))
    (tmp_path / name).write_bytes(b'{"text": "a"}\n{"text": "' + "字".encode() * (1 << 20) + b'"}\n')
    with pytest.raises(InputError, match=rf"{name}:2: longer than .* MiB without a line end; cut it into lines"):
        documents(tmp_path / name, format=format, shape=Shape("text", on_bad="skip"), blob_bytes=1000)


@pytest.mark.parametrize("encoding", ["gb18030", "GBK", "utf-16", "utf-16-le", "big5", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_encodings(tmp_path: Path, encoding: str, name: str) -> None:
    text = "春天來了"
    written = {"a.jsonl": f'{{"text": "{text}"}}\n', "a.json": f'[{{"text": "{text}"}}]', "a.txt": text,
               "a.csv": f"id,text\n1,{text}\n"}[name]  # fmt: skip
    (tmp_path / name).write_bytes(written.encode(encoding))
    choice = CorpusChoice(path=str(tmp_path / name), encoding=encoding)
    assert [d.text for d in read_documents(choice)] == [text]


def test_encoding_faults(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\x81\xff"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl:2: not valid gb18030; give the right encoding"):
        list(read_documents(CorpusChoice(path=str(tmp_path / "a.jsonl"), encoding="gb18030")))
    for wrong in ("latin-x", "hex", "rot13"):
        with pytest.raises(InputError, match="is unknown; examples are utf-8, gb18030, auto"):
            load_recipe(CorpusChoice, None, ["path=a", f"encoding={wrong}"])


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    for name in ("a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "sub/.b.jsonl", "sub/c.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "a"}\n')
    assert [p.name for p in find_files(str(tmp_path))] == ["a.jsonl", "c.txt"]
    with pytest.raises(InputError, match="no home folder ~nobody-is-called-so; give the whole path"):
        find_files("~nobody-is-called-so/a.jsonl")
    left = [".ipynb_checkpoints/a-checkpoint.jsonl", "notes.md", "sub/.b.jsonl"]
    assert passed_over(str(tmp_path)) == left
    assert CorpusChoice(path=str(tmp_path)).open().passed_over == tuple(left)
    assert passed_over(str(tmp_path / "a.jsonl")) == []


def test_values_over_several_lines(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
    line = json.dumps(turns)
    for name, content in {"a.json": json.dumps(turns, indent=1), "b.jsonl": f"{line}\n{line}",
                          "c.json": json.dumps({"messages": turns}, indent=1) * 2,
                          "d.json": json.dumps([turns, turns])}.items():  # fmt: skip
        (tmp_path / name).write_text(content)
        found = list(read_documents(CorpusChoice(path=str(tmp_path / name))))
        assert [d.kind for d in found] == ["chat"] * (1 if name == "a.json" else 2), name
        assert {d.text for d in found} == {"问\n答"}


@given(data=st.binary(max_size=80),
       start=st.sampled_from([b"", b"[", b"{", b'{"data": [', b'[{"text": "a"},', b"text,n\n"]),
       name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz", "a.json.zst", "a.parquet"]),
       encoding=st.sampled_from(["utf-8", "gb18030", "utf-16", "auto"]))  # fmt: skip
def test_any_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes, name: str, encoding: str
) -> None:
    """Never a traceback; and with `skip` no single record stops the work, only what damages the file."""
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(start + data)
    for on_bad in ("stop", "skip"):
        try:
            for blob in read_blobs([path], encoding=encoding):
                parse(blob, Shape("text", on_bad=on_bad))  # type: ignore[arg-type]
        except InputError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            assert on_bad == "stop" or "on_bad" not in str(error)


def test_with_skip_the_work_goes_on_after_damaged_files(tmp_path: Path) -> None:
    """Each is one bad record that names it; what was read before the damage stays."""
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES, mtime=0)[:-30])
    (tmp_path / "b.zip").write_bytes(archive("in.jsonl", LINES)[:40])
    (tmp_path / "c.csv").write_bytes(b'text,n\nx,1\n"y,2\n')
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    (tmp_path / "e.txt").write_bytes(b"BZh91AY")
    (tmp_path / "f.jsonl").write_text('{"text": "good"}\n', "utf-8")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    choice = CorpusChoice.model_validate({"path": str(tmp_path)})
    source = choice.open("skip")
    parsed = [parse(blob, source.shape) for blob in source.blobs()]
    assert [document.text for part in parsed for document in part.documents][-1] == "good"
    assert sum(part.bad for part in parsed) == 5 and source.passed_over == ("gone.jsonl",)
    found = "".join(note for part in parsed for note in part.notes if "damaged" in note)
    assert all(f"{tmp_path}/{name}" in found for name in ("a.jsonl.gz", "b.zip", "c.csv", "d.parquet", "e.txt"))
    first = next(part.first_bad for part in parsed if part.bad)
    assert re.search(r"a\.jsonl\.gz, file 1: damaged or cut off .*; what follows its byte \d+ is left out", first)
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: damaged or cut off"):
        list(choice.open("stop").blobs())


def test_utf_16_without_a_mark_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("一行\n又一行".encode("utf-16-be"))
    with pytest.raises(InputError, match="if it is UTF-16, say encoding: utf-16-le or utf-16-be"):
        documents(tmp_path / "a.txt")
