"""Every format gives the same documents; every fault names its place."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyllama.data.sources.documents import Text
from babyllama.data.sources.finding import find_files
from babyllama.data.sources.readers import read_blobs
from babyllama.data.sources.records import Parsed, Shape, parse
from babyllama.errors import InputError

TEXTS = ["第一篇，有逗号", '第二篇"引号"', "第三篇\n两行", "四" * 50]
ANY_TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


def documents(path: Path, blob_bytes: int = 1 << 20, shape: Shape | None = None, format: Any = "auto") -> list[Any]:
    shape = shape or Shape("text")
    return [d.text for blob in read_blobs([path], format, blob_bytes) for d in parse(blob, shape).documents]


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def write(path: Path, texts: list[str]) -> Path:
    data = lines(texts)
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        import zstandard

        # two frames, as concatenated files have
        half = len(data.splitlines(True)[0])
        data = zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    elif path.suffix == ".json":
        data = json.dumps([{"completion": text} for text in texts], ensure_ascii=False, indent=1).encode()
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"content": texts, "n": list(range(len(texts)))}), path)
        return path
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as handle:
            rows = csv.writer(handle, delimiter="\t" if path.suffix == ".tsv" else ",")
            rows.writerows([["id", "text"], *enumerate(texts)])
        return path
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.parquet", "a.csv", "a.tsv"])
@pytest.mark.parametrize("blob_bytes", [1, 1 << 20])
def test_formats_agree(tmp_path: Path, name: str, blob_bytes: int) -> None:
    assert documents(write(tmp_path / name, TEXTS), blob_bytes) == TEXTS


@given(texts=st.lists(ANY_TEXT, max_size=8), indent=st.sampled_from([None, 2]), blob_bytes=st.integers(1, 200))
def test_any_text_survives(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], indent: Any, blob_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.jsonl").write_bytes(lines(texts))
    (folder / "a.json").write_text(json.dumps(texts, ensure_ascii=False, indent=indent), "utf-8")
    assert documents(folder / "a.jsonl", blob_bytes) == texts
    assert documents(folder / "a.json", blob_bytes) == texts


def test_array_larger_than_the_buffer(tmp_path: Path) -> None:
    texts = ["长" * 700_000, "短", "长" * 900_000]
    assert documents(write(tmp_path / "a.json", texts)) == texts


def test_byte_order_mark_crlf_and_missing_last_newline(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + lines(TEXTS).replace(b"\n", b"\r\n").rstrip()
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "b.json").write_bytes(data)
    assert documents(tmp_path / "a.jsonl", 8) == documents(tmp_path / "b.json") == TEXTS


def test_text_files(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_bytes("\ufeff第一段\r\n\r\n第二段\r\n第三段\r\n".encode())
    assert documents(path) == ["第一段\n\n第二段\n第三段"]
    assert documents(path, format="lines") == ["第一段", "第二段", "第三段"]
    assert documents(path, format="blocks") == ["第一段", "第二段\n第三段"]
    long = "行" * 5000 + "\n"
    path.write_text(long * 20, "utf-8")
    pieces = documents(path)
    assert len(pieces) > 1 and "\n".join(pieces) == (long * 20).strip("\n")


def test_blobs_cover_the_file_and_know_their_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [f"{i}" * 9 for i in range(40)])
    blobs = list(read_blobs([path, path], blob_bytes=100))
    assert b"".join(blob.lines for blob in blobs) == path.read_bytes() * 2
    assert blobs[-1].position == 2 * path.stat().st_size
    first = 1
    for blob in blobs[: len(blobs) // 2]:
        assert blob.first == first
        first += blob.lines.count(b"\n")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "ok"}\n{"text": \n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"text": "ok"}\n\n{"text": "\xb0\xa1"}\n', "a.jsonl:3: not valid UTF-8, but it reads as GB18030"),
        ("a.jsonl", b'{"title": "t", "body": "b"}\n', "keys are title, body; name the one with the text in field"),
        ("a.jsonl", b'{"text": 3}\n', "key 'text' must hold text, not a int"),
        ("a.jsonl", b'{"text": "ok"}\n[1]\n', "a.jsonl:2: a record is a JSON object, not a list"),
        ("a.jsonl", b"[1]\n", "a.jsonl, record 1: a record is a JSON object, not a int"),
        ("a.json", b'[{"text": "a"}, {"text": ]', "a.json, record 2: not valid JSON"),
        ("a.json", b'[{"text": "a"}', "a.json, record 2: not valid JSON"),
        ("a.json", b'{\n"text": "a"}\n{\n"text": "b"}\nzzz', "a.json, record 3: not valid JSON"),
        ("a.json", b'[{"text": "a"}, 3]', "a.json, record 2: a record is a JSON object"),
        ("a.jsonl.gz", gzip.compress(lines(TEXTS * 99), mtime=0)[:-20], "damaged or cut off"),
        ("a.jsonl.zst", b"no zstandard at all", "damaged or cut off"),
        ("a.parquet", b"no parquet", "damaged or no Parquet file"),
        ("a.csv", b"text,n\na,1\nb\n", "a.csv, row 2: line 3: 1 fields, but the header has 2"),
        ("a.txt", "国".encode("gbk"), "a.txt, document 1: line 1: not valid UTF-8, but it reads as GB18030"),
        ("a.xyz", b"", "the name does not tell the format"),
        ("a.PDF", b"%PDF", "is no text; save it as .txt"),
        ("a.xlsx", b"PK", "is no text; save it as .csv"),
    ],
)  # fmt: skip
def test_faults_name_the_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        documents(tmp_path / name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_line_number_in_a_late_blob(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(["x" * 50] * 99) + b"broken\n")
    with pytest.raises(InputError, match=r"a\.jsonl:100: "):
        documents(path, blob_bytes=256)


def test_skip_counts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "a"}\nbroken\n{"no": 1}\n{"text": " "}\n{"text": null}\n{"text": "b"}\n'
    )
    parsed = [parse(blob, Shape("text", on_bad="skip")) for blob in read_blobs([tmp_path / "a.jsonl"])]
    first = f"{tmp_path}/a.jsonl:2: not valid JSON (Expecting value)"
    assert parsed == [Parsed([Text("a"), Text("b")], bad=2, dropped=2, first_bad=first)]


def test_find_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.txt.gz", "sub/c.parquet", "readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(p.relative_to(tmp_path)) for p in find_files(str(tmp_path))]
    assert names == ["a.txt.gz", "b.jsonl", "sub/c.parquet"]
    assert [p.name for p in find_files(f"{tmp_path}/*.jsonl")] == ["b.jsonl"]
    with pytest.raises(InputError, match="no such file"):
        find_files(str(tmp_path / "none*"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no corpus file"):
        find_files(str(tmp_path / "empty"))


def test_a_wrong_encoding_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"text": "春眠不觉晓"}\n'.encode("gbk"))
    with pytest.raises(InputError, match=r"a\.jsonl: not in the encoding that was given .*; say another"):
        list(read_blobs([tmp_path / "a.jsonl"], encoding="utf-16"))


def test_brackets_in_the_names_of_folders_are_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "[完结]书[2023]" / "一[a]"
    folder.mkdir(parents=True)
    for name in ("a.txt", "b[1].txt", "c.md"):
        (folder / name).touch()
    assert [p.name for p in find_files(f"{folder}/*.txt")] == ["a.txt", "b[1].txt"]
    assert [p.name for p in find_files(f"{tmp_path}/[[]完结]*/**/*.txt")] == ["a.txt", "b[1].txt"]
    assert [p.name for p in find_files(f"{folder}/b[1].txt")] == ["b[1].txt"]
    with pytest.raises(InputError, match=r"in a pattern \[ab\] is one sign, a or b: write \[\[\] for a bracket"):
        find_files(f"{folder}/b[1]*.txt")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("笔记.md", "but 笔记.md; known are .jsonl"), ("笔记.md", "by a pattern with their format: {path: "),
        ("表.xlsx", "but 表.xlsx; known are .jsonl"), ("表.xlsx", "save such a file as .csv in UTF-8"),
    ],
)  # fmt: skip
def test_a_folder_of_other_files_says_what_to_do_with_them(tmp_path: Path, name: str, remedy: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError) as caught:
        find_files(str(tmp_path))
    assert remedy in str(caught.value)


def test_a_message_shows_some_keys_of_a_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({f"{'问' * 50}{i}": i for i in range(1000)}) + "\n", "utf-8")
    with pytest.raises(InputError) as caught:
        documents(path)
    assert f"keys are {'问' * 40}…, " in str(caught.value) and len(str(caught.value)) < 1000
