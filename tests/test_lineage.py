"""The runs that a model comes from, by records as runs write them."""

from __future__ import annotations

import json
from pathlib import Path

from babyllama.lineage import lineage


def record(folder: Path, parent: Path | None) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"verb": "train", "parent": parent and str(parent)}))
    return folder


def names(model: Path) -> list[tuple[str, str]]:
    return [(at.name, run.path.name) for at, run in lineage(model)]


def test_it_goes_back_to_the_run_that_began_with_nothing(tmp_path: Path) -> None:
    base = record(tmp_path / "base", None)
    sft = record(tmp_path / "sft", base / "best")
    assert names(sft / "model") == [("model", "sft"), ("best", "base")]


def test_it_ends_at_a_model_of_another_program_and_in_a_circle(tmp_path: Path) -> None:
    assert names(record(tmp_path / "tuned", tmp_path / "downloaded")) == [("tuned", "tuned")]
    assert names(tmp_path / "downloaded") == []
    one = record(tmp_path / "one", tmp_path / "two")
    record(tmp_path / "two", one)
    assert names(one) == [("one", "one"), ("two", "two")]
