"""What the verb serve finds out before it loads a model."""

from __future__ import annotations

import json

import pytest
from small_run import save_taught

from babyllama.commands.serve import ServeRecipe, _hints, _named
from babyllama.recipe import load_recipe


@pytest.mark.parametrize(("turns", "seen"), [(1, {"run": 0}), (3, {"run": 2}), (0, {}), (None, {})])
def test_the_web_app_shows_a_model_as_many_turns_as_its_training_had(tmp_path, turns, seen):
    run = tmp_path / "run"
    save_taught(run / "model")
    save_taught(tmp_path / "folder")
    (run / "recipe.yaml").write_text("{}", "utf-8")
    (run / "run.json").write_text(json.dumps({"verb": "train", "summary": {} if turns is None else {"turns": turns}}))
    named = _named(load_recipe(ServeRecipe, None, [f"models=[{run}, {tmp_path / 'folder'}]"]))
    known = {name: hints.memory for name, hints in _hints(named).items() if hints.memory is not None}
    assert list(named) == ["run", "folder"] and known == seen
