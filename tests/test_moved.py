"""Runs that were moved, or that are seen from another folder, still find what lies beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from babyllama.commands.looking import data_of
from babyllama.commands.train_recipe import TrainRecipe
from babyllama.export.card import history
from babyllama.moved import beside, leads
from babyllama.plain_yaml import dump_yaml
from babyllama.recipe import load_recipe
from babyllama.serve.runs import Runs

RECIPE = {"out": "runs/base", "data": {"path": "runs/corpus"}, "plan": {"epochs": 1},
          "init": {"kind": "from", "path": "runs/older"}, "samples": {"prompts": ["../corpus"]}}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with its data beside it, made as runs/base and now elsewhere."""
    there = tmp_path / "那边 的" / "跑"
    for name in ("base", "corpus", "older"):
        (there / name).mkdir(parents=True)
    (there / "base" / "run.json").write_text(json.dumps({"verb": "train"}))
    (there / "base" / "recipe.yaml").write_text(dump_yaml(RECIPE), "utf-8")
    monkeypatch.chdir(tmp_path)
    return there / "base"


def read(run: Path, *overrides: str) -> TrainRecipe:
    return load_recipe(TrainRecipe, str(run / "recipe.yaml"), [f"out={run}", *overrides])


def test_what_lies_beside_a_run_is_found(run: Path) -> None:
    found = read(run)
    assert (found.out, found.data.path, found.init.path) == (run, run.parent / "corpus", run.parent / "older")  # type: ignore[union-attr]
    assert found.samples is not None and found.samples.prompts == ("../corpus",)  # no path
    assert data_of(run, RECIPE) == run.parent / "corpus"


def test_another_persons_run_keeps_its_own_data(run: Path, tmp_path: Path) -> None:
    """Both followed the same recipes, so that what is here has the same names."""
    mine = tmp_path / "runs"
    shutil.copytree(run.parent, mine)
    assert read(run).data.path == run.parent / "corpus" == data_of(run, RECIPE)
    assert read(run, "data.path=own").data.path == Path("own")
    assert read(mine / "base").data.path == Path("runs/corpus")  # as the recipe has it
    shutil.rmtree(run.parent / "corpus")  # it was moved alone
    assert read(run).data.path == Path("runs/corpus")


def test_what_is_nowhere_keeps_its_name(run: Path) -> None:
    shutil.rmtree(run.parent / "corpus")
    assert read(run).data.path == Path("runs/corpus")


def test_its_history_is_found_too(run: Path) -> None:
    """What it was made from and with what licences, which its card says; the page shows the same."""
    older = {"verb": "train", "parent": None, "summary": {"tokens": 7}}
    (run.parent / "older" / "run.json").write_text(json.dumps(older))
    (run.parent / "older" / "recipe.yaml").write_text(dump_yaml({"out": "runs/older", "data": {"path": "runs/corpus"}}))
    (run / "run.json").write_text(json.dumps({"verb": "train", "parent": "runs/older", "summary": {"tokens": 9}}))
    assert leads(run, "runs/older") == run.parent / "older" and leads(run, "runs/none") == Path("runs/none")
    assert [step.summary["tokens"] for step in history(run)] == [7, 9]
    cards = {card["id"]: card["from"] for card in Runs(run.parent.parent).all()}
    assert cards["跑/base"]["parent"] == "跑/older"
    shutil.copytree(run.parent, run.parent.parent / "runs")  # mine, of the same names
    cards = {card["id"]: card["from"] for card in Runs(run.parent.parent).all()}
    assert cards["跑/base"]["parent"] == "跑/older" and cards["runs/base"]["parent"] == "runs/older"


def test_a_recipe_that_is_no_runs_is_taken_as_it_stands(run: Path) -> None:
    (run / "run.json").unlink()
    assert read(run).data.path == Path("runs/corpus")


def test_whole_paths(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    run = tmp_path / "base"
    assert beside("/old/place/corpus", "/old/place/base", run) == str(tmp_path / "corpus")
    assert beside("/old/place/corpus", "runs/base", run) == "/old/place/corpus"
    assert beside("runs/corpus", "/old/place/base", run) == "runs/corpus"
    assert beside("~nobody-is-called-so/corpus", "runs/base", run) == "~nobody-is-called-so/corpus"
