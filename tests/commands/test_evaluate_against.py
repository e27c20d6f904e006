"""Two models on the same questions, as `evaluate against=` tells it; oracle: counts by hand, math.comb."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from babyllama.commands.evaluate_against import check_against, compared_answers
from babyllama.errors import InputError


class Recipe(NamedTuple):
    against: Path | None
    file: Path
    data: Path | None = Path("runs/held out")
    split: str = "val"
    suite: str | None = None
    chosen: tuple[()] = ()


def answered(right: str, label: str = "q") -> dict[str, Any]:
    """Question i is answered rightly where the i-th letter is 1."""
    return {"answers": [{"question": f"{label}{i}", "reference": "是", "answer": "是 " if mark == "1" else "否"}
                        for i, mark in enumerate(right)]}  # fmt: skip


def recipe_of(folder: Path, theirs: dict[str, Any]) -> Recipe:
    (folder / "evals").mkdir()
    (folder / "evals" / "held-val.json").write_text(json.dumps(theirs), "utf-8")
    return Recipe(folder, Path("elsewhere/held-val.json"))


def test_answers_are_compared_question_by_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight of ten questions that both were asked; where they differ, six to one: p is that of a coin, both sides."""
    theirs = {"answers": {"a": answered("00000011"), "b": answered("1", "r")}}
    recipe = recipe_of(tmp_path, theirs)
    check_against(recipe, [])
    mine = {"a": answered("1111110111"), "b": answered("1", "r"), "c": answered("1", "s")}
    found = compared_answers(recipe, mine, Console(width=300))
    assert set(found) == {"a", "b", "all"} and found["a"]["items"] == 8 and found["all"]["items"] == 9
    assert found["a"]["value"] == pytest.approx(5 / 8) and found["b"]["value"] == 0
    assert found["a"]["p"] == pytest.approx(2 * (math.comb(7, 0) + math.comb(7, 1)) / 2**7)
    said = capsys.readouterr().out
    assert f"a, word for word: 62.5 ± {100 * found['a']['margin']:.1f} points better" in said
    assert "which may be chance" in said and f"b, word for word: as good as {tmp_path}" in said


def test_what_cannot_be_compared_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"evaluate it in the same way first: .* data='runs/held out' split=val"):
        check_against(Recipe(tmp_path, Path("held-val.json")), [])
    recipe = recipe_of(tmp_path, {"answers": {"a": answered("1", "other")}, "tasks": {}})
    with pytest.raises(InputError, match="has none of these tests"):
        check_against(recipe._replace(data=None), ["copying"])
    assert compared_answers(recipe, {"a": answered("1")}, Console(width=300)) == {}
    assert "was asked none of these questions" in capsys.readouterr().out
    (tmp_path / "evals" / "held-val.json").write_text("{}")
    with pytest.raises(InputError, match="has no answers; evaluate it with the same data"):
        check_against(recipe, [])
