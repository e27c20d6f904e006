"""ModelScope's own addresses on a real HTTP server: listed, fetched, continued, refused, offline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import Server, serving

from babyllama.data.sources import modelscope, remote
from babyllama.data.sources.corpora import CorpusChoice, read_documents
from babyllama.errors import InputError
from babyllama.recipe import validate

TEXTS = [f"第{i}篇：春眠不觉晓，处处闻啼鸟。" for i in range(500)]
NAME = "data/sft 一.jsonl"
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS).encode()
SHA256 = hashlib.sha256(LINES).hexdigest()
TREE, FILE = "/api/v1/datasets/o/r/repo/tree", "/datasets/o/r/resolve/master/data/sft%20%E4%B8%80.jsonl"


def listing(*entries: dict[str, str]) -> bytes:
    return json.dumps({"Code": 200, "Data": {"Files": list(entries)}}).encode()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "_WAITS", (0.01,))
    monkeypatch.setenv("BABYLLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret")
    files = [{"Path": "data", "Type": "tree"}, {"Path": "../../bad.jsonl", "Type": "blob"}]
    files.append({"Path": NAME, "Type": "blob", "Sha256": SHA256})
    with serving({TREE: listing(*files), FILE: LINES}) as found:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://127.0.0.1:{found.server_port}/")
        yield found


def choice(path: str = "ms://o/r/data/*.jsonl", **more: object) -> CorpusChoice:
    return validate(CorpusChoice, {"path": path, **more}, "corpora")


def texts(path: str = "ms://o/r/data/*.jsonl", **more: object) -> list[str]:
    return [document.text for document in read_documents(choice(path, **more))]


@pytest.mark.parametrize("stream", [False, True])
def test_a_pattern_is_listed_and_its_files_are_read(server: Server, tmp_path: Path, stream: bool) -> None:
    assert texts(stream=stream) == TEXTS
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert kept == [] if stream else [path.read_bytes() for path in kept] == [LINES]
    source = choice().open()
    assert source.fetched == ({"file": NAME, "revision": "master", "sha256": SHA256},)
    assert server.headers["Cookie"] == "m_session_id=secret"


def test_offline_the_cache_will_do(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert texts() == TEXTS
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:1")
    assert texts() == TEXTS
    with pytest.raises(
        InputError, match=r"o/other: ModelScope does not list its files \(.*cannot be read .*ms://OWNER"
    ):
        texts("ms://o/other/a.jsonl")


def test_what_broke_off_is_continued(server: Server, tmp_path: Path) -> None:
    partial = tmp_path / "cache" / "modelscope" / "o" / "r" / "master" / f"{NAME}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(LINES[:20_000])
    assert texts() == TEXTS and not partial.exists()
    parts = [part for path, part in server.asked if path == FILE and part]
    assert parts and all(int(part.removeprefix("bytes=").partition("-")[0]) >= 20_000 for part in parts)


def test_other_content_is_refused(server: Server, tmp_path: Path) -> None:
    server.files[FILE] = LINES[:-5] + b'!!"}\n'
    with pytest.raises(InputError, match=f"came with sha256 .* not {SHA256}; .*or download .* by hand"):
        texts()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    server.files[FILE] = LINES
    assert texts() == TEXTS


def test_several_pages_are_asked_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelscope, "_PAGE", 3)
    server.pages[TREE] = [server.files[TREE], listing({"Path": "b.jsonl", "Type": "blob"})]
    assert modelscope.list_files("o/r", "master") == {NAME: SHA256, "b.jsonl": None}


def test_corpora_by_name_come_from_there_if_the_environment_says_so(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, file = "shibing624/medical", "pretrain/train_encyclopedia.json"
    server.files[f"/api/v1/datasets/{repo}/repo/tree"] = listing({"Path": file, "Type": "blob"})
    server.files[f"/datasets/{repo}/resolve/master/{file}"] = LINES
    monkeypatch.setenv("BABYLLAMA_HUB", "modelscope")
    source = validate(CorpusChoice, {"name": "shibing624_medical_encyclopedia"}, "corpora").open()
    assert source.source == f"ModelScope {repo} at master" and source.fetched[0]["sha256"] == SHA256
    monkeypatch.setenv("BABYLLAMA_HUB", "modelscop")
    with pytest.raises(InputError, match="BABYLLAMA_HUB is 'modelscop'; known are huggingface and modelscope"):
        validate(CorpusChoice, {"name": "shibing624_medical_encyclopedia"}, "corpora").open()


def test_what_is_no_listing_is_said(server: Server) -> None:
    server.files[TREE] = b"<html>login</html>"
    with pytest.raises(InputError, match=r"does not list its files \(it answered '<html>login"):
        texts()
    with pytest.raises(InputError, match="'ms://o/r' must be ms://OWNER/NAME/FILES"):
        choice("ms://o/r")
