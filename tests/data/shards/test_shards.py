"""The prepared folder: what is written is read back, whoever wrote it and however often it was interrupted."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import CHATS, TEXTS, prepared, write_lines

from babyllama.data.shards import encode
from babyllama.data.shards.encode import Plan, encode_corpora, write_manifest
from babyllama.data.shards.shards import Prepared, TokenStore, token_dtype, usual_turns
from babyllama.data.sources.corpora import CorpusChoice, Source
from babyllama.data.sources.readers import read_blobs
from babyllama.data.sources.records import Shape
from babyllama.errors import InputError
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer, corpora and a prepared folder that the tests only read."""
    path = tmp_path_factory.mktemp("shards")
    prepared(path, "validation=0.1")
    return path


def source(path: Path, blob_bytes: int = 2000) -> Source:
    """A source of many small blobs."""
    opened = CorpusChoice(path=str(path)).open()
    return replace(opened, blobs=lambda: read_blobs([path], blob_bytes=blob_bytes))


def encoded(folder: Path, out: Path, workers: int = 1, blob_bytes: int = 2000) -> dict[str, bytes]:
    """Both corpora in small blobs → every file's bytes."""
    tokenizer = Tokenizer.load(folder / "tok")
    plan = Plan(folder / "tok", tokenizer.chat_template, tokenizer.hash, 0.1)
    sources = [source(folder / f"{name}.jsonl", blob_bytes) for name in ("text", "chat")]
    write_manifest(out, sources, list(encode_corpora(sources, out, plan, workers)), plan)
    return contents(out)


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def documents(store: TokenStore) -> list[list[int]]:
    offsets = store.document_offsets.tolist()
    return [store.tokens(a, b).tolist() for a, b in pairwise(offsets)]


def test_round_trip(folder: Path) -> None:
    found, tokenizer = Prepared.open(folder / "out"), Tokenizer.load(folder / "out")
    assert list(found.corpora) == ["text", "chat"]
    expected = [[*tokenizer.encode(text), tokenizer.eos_id] for text in TEXTS]
    stores = found.corpora["text"]
    assert sorted(documents(stores["train"]) + documents(stores["val"])) == sorted(expected)
    assert 0 < stores["val"].documents < 40
    assert stores["train"].bytes + stores["val"].bytes == sum(len(text.encode()) for text in TEXTS)
    rendered = [render_chat(tokenizer, chat["messages"]) for chat in CHATS]
    chats = found.corpora["chat"]
    assert sorted(documents(chats["train"]) + documents(chats["val"])) == sorted(chat.tokens for chat in rendered)
    masks = sum(int(store.mask(0, len(store)).sum()) for store in chats.values())
    assert masks == sum(sum(chat.mask) for chat in rendered)
    assert sum(s.bytes for s in chats.values()) == sum(len(c["messages"][1]["content"].encode()) for c in CHATS)
    assert found.eos == tokenizer.eos_id and found.manifest["chat_template"] == tokenizer.chat_template
    found.check_tokenizer(tokenizer.hash)
    with pytest.raises(InputError, match=rf"made with tokenizer {tokenizer.hash}, but the model's is abc"):
        found.check_tokenizer("abc")
    with pytest.raises(InputError, match="no corpus 'x'; it has text, chat"):
        found.store("x", "train")


def test_shards_are_one_array(folder: Path, tmp_path: Path) -> None:
    """Reading over borders gives what one big shard would give (regression: only the first file was read)."""
    encoded(folder, tmp_path / "many")
    encoded(folder, tmp_path / "one", blob_bytes=1 << 20)
    for label in ("text", "chat"):
        many, one = (Prepared.open(tmp_path / name).store(label, "train") for name in ("many", "one"))
        assert len(many.paths) > 3 and len(one.paths) == 1 and len(many) == len(one)
        rng = np.random.default_rng(0)
        for start, stop in np.sort(rng.integers(0, len(one) + 1, (50, 2))).tolist():
            assert np.array_equal(many.tokens(start, stop), one.tokens(start, stop))
            assert np.array_equal(many.mask(start, stop), one.mask(start, stop))
        assert np.array_equal(many.document_offsets, one.document_offsets)
        with pytest.raises(IndexError):
            many.tokens(0, len(many) + 1)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=5), data=st.data())
def test_any_slice_of_any_shards(tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], data: Any) -> None:
    out, tokens, paths, counts = tmp_path_factory.mktemp("s"), 0, [], []
    for index, documents_of in enumerate(sizes):
        path = out / f"train-{index:05d}.bin"
        count = sum(documents_of)
        np.arange(tokens, tokens + count, dtype="<u2").tofile(path)
        np.array([(n, 1) for n in documents_of], "<u4").tofile(path.with_suffix(".docs"))
        tokens, paths, counts = tokens + count, [*paths, path], [*counts, count]
    store = TokenStore(tuple(paths), tuple(counts), "text", np.dtype("<u2"))
    start = data.draw(st.integers(0, tokens))
    stop = data.draw(st.integers(start, tokens))
    assert store.tokens(start, stop).tolist() == list(range(start, stop))
    assert len(store) == tokens and store.document_offsets[-1] == tokens
    shutil.rmtree(out)


def test_workers_do_not_matter(folder: Path, tmp_path: Path) -> None:
    assert encoded(folder, tmp_path / "1", workers=1) == encoded(folder, tmp_path / "2", workers=2)


def test_interrupted_then_continued(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = encoded(folder, tmp_path / "whole")
    real, calls = encode.encode_blob, 0

    def stops(job: encode.Job) -> encode.Done:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(encode, "encode_blob", stops)
    with pytest.raises(KeyboardInterrupt):
        encoded(folder, tmp_path / "cut")
    with pytest.raises(InputError, match="prepare was interrupted; run the same command again"):
        Prepared.open(tmp_path / "cut")
    assert encoded(folder, tmp_path / "cut") == expected
    blobs = sum(name.endswith(".json") for name in expected) - 1
    assert calls == blobs + 1  # the four finished ones were not encoded again


def test_changed_lines_are_encoded_again(folder: Path, tmp_path: Path) -> None:
    """Continuing with another file leaves no trace of the first."""
    for name in ("text", "chat"):
        shutil.copy(folder / f"{name}.jsonl", tmp_path)
    shutil.copytree(folder / "tok", tmp_path / "tok")
    encoded(tmp_path, tmp_path / "out")
    write_lines(tmp_path / "text.jsonl", [{"text": text} for text in TEXTS[40:]])
    assert encoded(tmp_path, tmp_path / "out") == encoded(tmp_path, tmp_path / "fresh")


def test_held_out_by_text_alone(folder: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "text.jsonl", [{"text": text} for text in reversed(TEXTS)])
    shutil.copy(folder / "chat.jsonl", tmp_path)
    shutil.copytree(folder / "tok", tmp_path / "tok")
    encoded(folder, tmp_path / "a")
    encoded(tmp_path, tmp_path / "b", blob_bytes=700)
    held = [sorted(documents(Prepared.open(tmp_path / name).store("text", "val"))) for name in "ab"]
    assert held[0] == held[1] != []


def test_bad_line_comes_back_from_a_worker(folder: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines, "{broken", *lines]))
    tokenizer = Tokenizer.load(folder / "tok")
    plan = Plan(folder / "tok", tokenizer.chat_template, tokenizer.hash, 0.1)
    with pytest.raises(InputError, match=rf"bad\.jsonl:{len(TEXTS) + 1}: not valid JSON"):
        list(encode_corpora([source(tmp_path / "bad.jsonl")], tmp_path / "out", plan, 2))


def test_full_disk(folder: Path, tmp_path: Path) -> None:
    """No file may grow any further, as on a full disk: one line names the shard, and nothing half-written stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(InputError) as caught:
            encoded(folder, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "shards/text" in str(caught.value) and "File too large" in str(caught.value)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_all_that_decides_a_shard_is_in_its_key(folder: Path) -> None:
    """Whoever continues with another of these encodes anew; how bad records are treated is looked at apart."""
    plan = Plan(folder / "tok", "roles", "0123", 0.1)
    (blob, *_) = read_blobs([folder / "text.jsonl"], blob_bytes=2000)
    job = encode.Job(plan, folder, "text", 0, Shape("text"), blob)
    others = [
        *(replace(job, plan=replace(plan, **change)) for change in
          ({"hash": "4567"}, {"template": "bos"}, {"validation": 0.2})),
        *(replace(job, shape=replace(job.shape, **change)) for change in
          ({"kind": "chat"}, {"field": "text"}, {"max_characters": 9}, {"encoding": "gbk"})),
        *(replace(job, blob=replace(blob, **change)) for change in ({"lines": blob.lines[1:]}, {"first": 2})),
    ]  # fmt: skip
    assert len({job.key, *(other.key for other in others)}) == 1 + len(others)
    assert replace(job, shape=replace(job.shape, on_bad="skip")).key == job.key


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(folder / "out", tmp_path / "copy"))


@pytest.mark.parametrize("name", ["text/train-00000.bin", "text/train-00000.docs", "chat/train-00000.mask"])
def test_truncated_and_missing_shards(copy: Path, name: str) -> None:
    path = copy / "shards" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"{path.name}: has \d+ bytes instead of \d+"):
        Prepared.open(copy)
    path.unlink()
    with pytest.raises(InputError, match=rf"{path.name}: is missing"):
        Prepared.open(copy)


def test_bad_manifests(copy: Path, tmp_path: Path) -> None:
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(InputError, match="version 9, not 1"):
        Prepared.open(copy)
    manifest.write_text("{")
    with pytest.raises(InputError, match="damaged"):
        Prepared.open(copy)
    with pytest.raises(InputError, match="no prepared data"):
        Prepared.open(tmp_path)
    (tmp_path / "run.json").write_text('{"verb": "train"}')
    with pytest.raises(InputError, match="holds a train run, no prepared data"):
        Prepared.open(tmp_path)
    with pytest.raises(InputError, match=r"is a file, no prepared data; make them of it with: .*path: .*run.json"):
        Prepared.open(tmp_path / "run.json")


def test_answers_of_each_chat_are_counted(tmp_path: Path) -> None:
    """Over the borders of shards too; nine of ten chats decide what is usual, and texts have no say."""
    answers = [1, 3, 2, 1, 1, 1, 1, 1, 1, 1, 7]
    turns = [[{"role": ("user", "assistant")[i % 2], "content": f"{n}.{i}"} for i in range(2 * n)] for n in answers]
    write_lines(tmp_path / "chat.jsonl", [{"messages": turn} for turn in turns])
    write_lines(tmp_path / "text.jsonl", [{"text": "文"}])
    small = prepared(tmp_path / "made").path / ".." / "tok"
    tokenizer = Tokenizer.load(small)
    plan = Plan(small, tokenizer.chat_template, tokenizer.hash, 0.0)
    sources = [source(tmp_path / f"{name}.jsonl", 100) for name in ("chat", "text")]
    write_manifest(tmp_path / "out", sources, list(encode_corpora(sources, tmp_path / "out", plan, 1)), plan)
    stores = [Prepared.open(tmp_path / "out").store(name, "train") for name in ("chat", "text")]
    assert len(stores[0].paths) > 3 and stores[0].turns().tolist() == answers
    assert usual_turns(stores) == 3 and usual_turns(stores[1:]) == 0
    assert usual_turns([]) == 0


def test_dtype() -> None:
    assert token_dtype(1 << 16) == np.dtype("<u2") and token_dtype((1 << 16) + 1) == np.dtype("<u4")


def test_hash_names_the_content(folder: Path, tmp_path: Path) -> None:
    """Equal wherever the folder lies and whoever wrote the manifest; another with one other byte, border or mask."""
    first = Prepared.open(folder / "out").hash
    moved = Path(shutil.copytree(folder / "out", tmp_path / "moved"))
    assert Prepared.open(moved).hash == first
    manifest = json.loads((moved / "manifest.json").read_text("utf-8"))
    for corpus in manifest["corpora"].values():
        corpus["source"] = "elsewhere"
        for split in corpus["splits"].values():
            for shard in split["shards"]:
                del shard["xxh3"]  # as folders of before the digests
    (moved / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    assert Prepared.open(moved).hash == first
    for name in ("text/train-00000.bin", "chat/train-00000.mask", "chat/val-00000.docs"):
        path = moved / "shards" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
        assert Prepared.open(moved).hash != first, name
        path.write_bytes(whole)
    prepared(tmp_path, "validation=0.1", texts=TEXTS[1:])
    assert Prepared.open(tmp_path / "out").hash != first


def test_another_file_at_the_same_path_is_read_anew(tmp_path: Path) -> None:
    """In one process: written over, or put in its place with the same size and time."""
    path = tmp_path / "0.bin"
    for number, values in enumerate(([1, 2, 3], [4, 5, 6], [7, 8, 9])):
        new = tmp_path / "new"
        new.write_bytes(np.array(values, "<u2").tobytes())
        if number:
            os.utime(new, ns=(0, path.stat().st_mtime_ns))
        new.replace(path)
        assert TokenStore((path,), (3,), "text", np.dtype("<u2")).tokens(0, 3).tolist() == values


def test_another_tokenizer_at_the_same_path_is_loaded_anew(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "tok", tmp_path / "tok")
    plan = Plan(tmp_path / "tok", "roles", "first", 0.1)
    first = encode._load(plan)
    assert encode._load(plan) is first and encode._load(replace(plan, hash="second")) is not first
