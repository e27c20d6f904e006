"""Runs as the web app shows them: what they are, where they came from, curves that grow, nothing outside the folder."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from babyllama.serve import runs as module
from babyllama.serve.faults import Refused
from babyllama.serve.runs import Runs, thinned


@pytest.fixture
def mine(runs, tmp_path, monkeypatch):
    """A copy that a test may change; elsewhere than the working directory."""
    shutil.copytree(runs, tmp_path / "work" / "runs", copy_function=shutil.copy)  # as old as this test
    monkeypatch.chdir(tmp_path)
    return Runs(tmp_path / "work" / "runs")


def append(mine, *lines, run="base"):
    with (mine.root / run / "metrics.jsonl").open("a") as handle:
        handle.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)


def test_every_run_with_where_it_came_from(mine):
    cards = {card["id"]: card for card in mine.all()}
    assert list(cards) == ["sft", "base", "small/corpus", "small/tok"]
    assert cards["sft"]["from"] == {"parent": "base", "data.path": "small/corpus", "init.path": "base"}
    assert cards["small/corpus"]["from"] == {"tokenizer": "small/tok"} and cards["small/tok"]["from"] == {}
    assert cards["base"]["steps"] == 40 and cards["sft"]["figures"] == {"loss": 1.5}
    assert [card["status"] for card in cards.values()] == ["finished", "running", "finished", "finished"]
    for name in ("metrics.jsonl", "run.json"):
        os.utime(mine.root / "base" / name, (1, 1))
    assert mine.one("base")["status"] == "stopped"


def test_one_run(mine):
    found = mine.one("sft")
    assert found["evals"] == {"exam": {"corpora": {"qa": {"exact": 0.5}}}} and found["env"] == {"torch": "2.11"}
    assert "runs/base/model" in found["recipe"] and found["config"] == {}


def test_curves_grow_line_by_line(mine):
    first = mine.metrics("base")
    assert first["curves"]["train/loss"] == [list(range(1, 11)), [4 - step / 10 for step in range(1, 11)]]
    assert first["samples"] == [{"step": 10, "kind": "sample", "prompt": "春", "text": "天<b>来了"}]
    assert not first["reset"] and not first["more"]
    assert mine.metrics("base", first["cursor"])["curves"] == {}
    append(mine, {"step": 11, "kind": "train", "loss": 1.0}, '{"step": 12, "kind": "tr')
    second = mine.metrics("base", first["cursor"])
    assert second["curves"] == {"train/loss": [[11], [1.0]]}
    append(mine, 'ain", "loss": 0.5}\n', {"step": 13, "kind": "train", "loss": None})  # a loss that was NaN
    assert mine.metrics("base", second["cursor"])["curves"] == {"train/loss": [[12], [0.5]]}


def test_a_resumed_training_starts_its_curves_anew(mine):
    cursor = mine.metrics("base")["cursor"]
    path = mine.root / "base" / "metrics.jsonl"
    path.with_suffix(".new").write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    path.with_suffix(".new").replace(path)  # as Run.rewind_metrics does
    found = mine.metrics("base", cursor)
    assert found["reset"] and found["curves"]["train/loss"][0] == [1, 2, 3]
    for nonsense in ("x", "-5", "1-", "1-99999999", "²-²"):
        assert mine.metrics("base", nonsense)["curves"]["train/loss"][0] == [1, 2, 3]


def test_long_logs_come_in_pieces_and_thinned(mine, monkeypatch):
    monkeypatch.setattr(module, "MOST", 300)
    steps, cursor = [], ""
    while True:
        found = mine.metrics("base", cursor)
        steps += found["curves"].get("train/loss", [[]])[0]
        cursor = found["cursor"]
        if not found["more"]:
            break
    assert steps == list(range(1, 11))
    monkeypatch.setattr(module, "POINTS", 3)
    assert thinned([[1, 2, 3, 4, 5], [1.0, 3.0, 5.0, 7.0, 9.0]]) == [[2, 4, 5], [2.0, 6.0, 9.0]]


def test_nothing_outside_of_the_folder_is_read(mine):
    outside = mine.root.parent / "secret"
    shutil.copytree(mine.root / "base", outside)
    (mine.root / "link").symlink_to(outside)
    for id in ("../secret", "..", ".", "", "link", "/etc", str(outside), "base/../../secret", "no\0name", "x" * 5000):
        for ask in (mine.one, mine.metrics):
            with pytest.raises(Refused) as fault:
                ask(id)
            assert fault.value.status == 404
    assert "link" not in [card["id"] for card in mine.all()]


def test_damaged_files_are_no_fault_of_the_page(mine):
    (mine.root / "base" / "recipe.yaml").write_text("a: [")
    (mine.root / "sft" / "run.json").write_text("[]")
    (mine.root / "sft" / "evals" / "exam.json").write_bytes(b"\xff{")
    append(mine, "[]\n", "{\n", {"kind": "train"}, {"step": "x", "kind": "train", "loss": 1})
    assert len(mine.all()) == 4 and mine.one("sft")["evals"] == {"exam": {}}
    assert mine.metrics("base")["curves"]["train/loss"][0] == list(range(1, 11))
