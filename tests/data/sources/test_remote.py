"""Corpora on a real HTTP server: read as they come, also over a connection that breaks; faults in one line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest
from file_server import Server, serving

from babyllama.data.sources import remote
from babyllama.data.sources.corpora import CorpusChoice, read_documents
from babyllama.errors import InputError
from babyllama.recipe import validate

TEXTS = [f"第{i}篇：" + "春眠不觉晓，处处闻啼鸟。" * (i % 7 + 1) for i in range(3000)]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS).encode()
COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "_WAITS", (0.01,) * 4)
    monkeypatch.setattr(remote, "_BLOCK", 1 << 16)
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "a.parquet")
    array = json.dumps([{"text": text} for text in TEXTS]).encode()
    files = {"/d/a.jsonl": LINES, "/d/a.jsonl.gz": gzip.compress(LINES), "/d/a.json": array,
             "/d/a.parquet": (tmp_path / "a.parquet").read_bytes()}  # fmt: skip
    with serving(files) as found:
        yield found


def read(server: Server, name: str, **more: Any) -> list[str]:
    path = f"http://127.0.0.1:{server.server_port}/{name}"
    return [d.text for d in read_documents(validate(CorpusChoice, {"path": path, **more}, "corpora"))]


@pytest.mark.parametrize("name", ["d/a.jsonl", "d/a.jsonl.gz", "d/a.json", "d/a.parquet", "d/a.jsonl.gz?sign=x.y"])
def test_all_formats(server: Server, name: str) -> None:
    assert read(server, name) == TEXTS


@pytest.mark.parametrize("name", ["d/a.jsonl", "d/a.jsonl.gz", "d/a.json"])
def test_a_server_without_ranges(server: Server, name: str) -> None:
    server.ranges = False
    assert read(server, name) == TEXTS


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_is_made_again_where_it_broke(server: Server, ranges: bool) -> None:
    server.ranges, server.breaks = ranges, 3
    assert read(server, "d/a.jsonl", kind="text") == TEXTS and server.breaks == 0
    if ranges:
        assert {part for _, part in server.asked} - {None}


def test_faults_are_one_line(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"/d/b\.jsonl: is not there; check the address$"):
        read(server, "d/b.jsonl?key=secret")
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/a\.jsonl: cannot be read \(.*\); check the network"):
        list(read_documents(validate(CorpusChoice, {"path": "http://127.0.0.1:9/a.jsonl"}, "corpora")))
    with pytest.raises(InputError, match="nothing reads nosuch:// here"):
        list(read_documents(validate(CorpusChoice, {"path": "nosuch://a/b.jsonl"}, "corpora")))

    def missing(scheme: str, **more: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(InputError, match=r"needs the package s3fs; .*\[s3\]"):
        list(read_documents(validate(CorpusChoice, {"path": "s3://bucket/a.jsonl"}, "corpora")))


def test_a_connection_that_never_holds_is_one_line(server: Server) -> None:
    server.breaks = 1000
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be read \("):
        read(server, "d/a.jsonl", kind="text")


def test_patterns_where_files_can_be_listed() -> None:
    system = fsspec.filesystem("memory")
    for name, lines in (("b", LINES), ("a", b'{"text": "\xe6\x98\xa5"}\n')):
        system.pipe(f"/corpus/{name}.jsonl", lines)
    found = list(read_documents(validate(CorpusChoice, {"path": "memory://corpus/*.jsonl"}, "corpora")))
    assert [document.text for document in found] == ["春", *TEXTS]
    with pytest.raises(InputError, match=r"memory://corpus/\*\.csv: nothing there fits it"):
        list(read_documents(validate(CorpusChoice, {"path": "memory://corpus/*.csv"}, "corpora")))


def test_the_hub_is_streamed_of_one_commit(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"  # as HF_ENDPOINT makes it
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    names = ["README.md", "data/1.jsonl", "data/2.jsonl"]
    tree = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
    about = {"id": "o/n", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
    server.files |= {"/api/datasets/o/n": json.dumps(about).encode(),
                     f"/api/datasets/o/n/tree/{COMMIT}": json.dumps(tree).encode(),
                     f"/datasets/o/n/resolve/{COMMIT}/data/1.jsonl": LINES,
                     f"/datasets/o/n/resolve/{COMMIT}/data/2.jsonl": LINES[: LINES.index(b"\n") + 1]}  # fmt: skip
    choice = validate(CorpusChoice, {"path": "hf://o/n/data/*.jsonl", "stream": True}, "corpora")
    source = choice.open()
    assert source.fetched == tuple({"file": name, "revision": COMMIT, "sha256": None} for name in names[1:])
    assert source.source.endswith(f"at {COMMIT[:12]}") and not (tmp_path / "cache").exists()
    assert [document.text for document in read_documents(choice)] == [*TEXTS, TEXTS[0]]


def test_stream_is_for_the_hub() -> None:
    with pytest.raises(InputError, match="stream is for a corpus from the hub"):
        validate(CorpusChoice, {"path": "a.jsonl", "stream": True}, "corpora")
