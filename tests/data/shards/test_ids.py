"""Ids that several records of a corpus carry are counted over all its blobs, and named."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_data import recipe, save_tokenizer, write_lines

from babyllama.commands.prepare import main as prepare
from babyllama.data.shards.ids import repeated_ids, write_ids
from babyllama.data.shards.shards import Prepared
from babyllama.data.sources import readers
from babyllama.data.sources.records import Id

TEXT = "春眠不觉晓，处处闻啼鸟。"


@pytest.mark.parametrize("more", [[], ["dedup=exact"]])
def test_repeated_ids_are_counted_and_their_records_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    monkeypatch.setattr(readers.read_blobs, "__defaults__", ("auto", 100, "utf-8"))  # several blobs
    records = [{"id": i, "text": f"{i}{TEXT}"} for i in range(20)]
    records += [{"id": "7", "text": f"又{TEXT}"}, {"id": None, "text": f"无{TEXT}"}, {"id": None, "text": f"没{TEXT}"}]
    (tmp_path / "twice").mkdir()
    first = write_lines(tmp_path / "twice" / "a.jsonl", records)
    second = write_lines(tmp_path / "twice" / "b.jsonl", [{"id": 3, "text": f"再{TEXT}"}, {"id": 3, "text": TEXT}])
    once = write_lines(tmp_path / "once.jsonl", [{"id": i, "text": f"一次{i}{TEXT}"} for i in range(20)])
    corpora = [{"path": str(first.parent)}, {"path": str(once)}]
    prepare(recipe(tmp_path / "out", save_tokenizer(tmp_path / "tok"), corpora, "workers=1", *more))
    found = Prepared.open(tmp_path / "out").manifest["corpora"]
    assert found["twice"]["repeated_ids"]["records"] == 3 and "repeated_ids" not in found["once"]
    assert found["twice"]["repeated_ids"]["first"] in (f"{first}:4 and {second}:1", f"{first}:8 and {first}:21")
    assert sum(split["documents"] for split in found["twice"]["splits"].values()) == 25
    assert "records with the id of an earlier one, kept: 3 (such as" in capsys.readouterr().out


def test_a_blob_without_ids_leaves_no_file(tmp_path: Path) -> None:
    write_ids(tmp_path / "a.ids", [Id(5, "a.jsonl:", 1), Id(5, "啊\udcff.jsonl:", 2)])
    assert repeated_ids([tmp_path / "a.ids", tmp_path / "b.ids"]) == (1, "a.jsonl:1 and 啊\udcff.jsonl:2")
    write_ids(tmp_path / "a.ids", [])
    assert repeated_ids([tmp_path / "a.ids"]) == (0, "") and not list(tmp_path.iterdir())
