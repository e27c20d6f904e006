"""Zip archives: the documents are those of the same files in a folder; what is not read is named with its path."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pytest
from small_data import recipe, save_tokenizer

from babyllama.commands.prepare import main as prepare
from babyllama.data.sources.corpora import CorpusChoice, read_documents
from babyllama.data.sources.finding import find_files, passed_over
from babyllama.data.sources.readers import read_blobs
from babyllama.data.sources.zips import members
from babyllama.errors import InputError

FILES = {
    "a.jsonl": b'{"text": "\xe4\xb8\x80"}\n{"text": "b"}\n',
    "deep/er/b.json": b'[{"text": "c"}, {"text": "d"}]',
    "deep/c.csv": b"\xef\xbb\xbftext,n\ne,1\nf,2\n",
    "d.txt": "一行\n又一行\n".encode(),
    "e.jsonl.gz": gzip.compress(b'{"text": "g"}\n', mtime=0),
}
LEFT = {
    "readme.md": b"x",
    "inner.zip": b"PK\x03\x04",
    ".hidden.jsonl": b"{}",
    "__MACOSX/a.jsonl": b"\0",
    "t.parquet": b"",
}


def texts(path: Path, **more: object) -> list[str]:
    choice = CorpusChoice.model_validate({"path": str(path), "kind": "text", **more})
    return [document.text for document in read_documents(choice)]


@pytest.fixture(params=[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def archive(request, tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "all.zip", "w", request.param) as file:
        file.mkdir("deep")
        for name, content in {**FILES, **LEFT}.items():
            file.writestr(name, content)
    return tmp_path / "all.zip"


def test_the_same_as_a_folder(archive: Path, tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    expected = texts(tmp_path / "folder")
    assert texts(archive) == expected and len(expected) == 8
    (tmp_path / "both").mkdir()
    archive.rename(tmp_path / "both" / "all.zip")
    (tmp_path / "both" / "z.jsonl").write_text('{"text": "last"}')
    assert texts(tmp_path / "both") == [*expected, "last"]
    assert passed_over(str(tmp_path / "both")) == sorted(f"all.zip/{name}" for name in LEFT)
    assert find_files(str(tmp_path / "both"), archives=False) == [tmp_path / "both" / "z.jsonl"]


def test_positions_end_at_the_archives_size(archive: Path) -> None:
    last = [blob.position for blob in read_blobs([archive])][-1]
    assert 0 < last <= archive.stat().st_size


def test_prepare_names_what_it_does_not_read(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(recipe(tmp_path / "out", save_tokenizer(tmp_path / "tok"), [{"path": str(archive)}], "workers=1"))
    assert f"files that were not read: {len(LEFT)} (all.zip/.hidden.jsonl, " in capsys.readouterr().out
    corpora = json.loads((tmp_path / "out" / "manifest.json").read_text())["corpora"]
    assert sum(split["documents"] for split in corpora["all"]["splits"].values()) == 8


def test_bad_records_are_named_by_member_and_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("deep/a.jsonl", '{"text": "a"}\n{"text": "b"\n')
        file.writestr("gbk.txt", "汉字".encode("gbk"))
    with pytest.raises(InputError, match=r"a\.zip/deep/a\.jsonl:2: not valid JSON"):
        texts(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.writestr("gbk.txt", "汉字".encode("gbk"))
    with pytest.raises(InputError, match=r"b\.zip/gbk\.txt.*encoding: gb18030"):
        texts(tmp_path / "b.zip")
    assert texts(tmp_path / "b.zip", encoding="gb18030") == ["汉字"]


def test_a_member_with_a_password(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a.jsonl", b"x" * 20)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1  # the flag of encryption
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.zip/a\.jsonl: is encrypted; unpack it"):
        texts(tmp_path / "a.zip")


def test_a_chinese_name_of_another_system(tmp_path: Path) -> None:
    """Windows wrote names in GBK without saying so."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("ab.jsonl", '{"text": "a"}')
    raw = (tmp_path / "a.zip").read_bytes().replace(b"ab.jsonl", "书".encode("gbk") + b".jsonl")
    (tmp_path / "a.zip").write_bytes(raw)
    assert [str(member) for member in members(tmp_path / "a.zip")] == [f"{tmp_path}/a.zip/书.jsonl"]
    assert texts(tmp_path / "a.zip") == ["a"]
