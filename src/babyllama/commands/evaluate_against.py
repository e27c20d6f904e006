"""What `against` of evaluate says: this model's tests and answers beside another's, which were measured before.

Not here: measuring (evaluate.py, evaluate_tasks.py), the statistics (evals/statistics.py).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from babyllama.atomic import read_json
from babyllama.errors import InputError, pasted
from babyllama.evals.answers import exact
from babyllama.evals.statistics import LEVEL, Difference, mcnemar, p_words
from babyllama.evals.suites import difference

Json = dict[str, Any]


class Beside(Protocol):
    """What of the verb's recipe is about the other."""

    @property
    def against(self) -> Path | None: ...
    @property
    def data(self) -> Path | None: ...
    @property
    def split(self) -> str: ...
    @property
    def suite(self) -> str | None: ...
    @property
    def chosen(self) -> Collection[Any]: ...
    @property
    def file(self) -> Path: ...


def check_against(recipe: Beside, tests: Collection[str]) -> None:
    """Before anything is measured.

    Raises:
        InputError: no result there, or one without any of these `tests` and, where there is data, without answers.
    """
    if recipe.against is None:
        return
    found = _theirs(recipe)
    if not found.get("tasks", {}).keys() & set(tests) and not (recipe.data and found.get("answers")):
        what = "none of these tests; evaluate it with the same suite or tasks" if tests else (
            "no answers; evaluate it with the same data")  # fmt: skip
        raise InputError(f"{recipe.against}: has {what}")


def compared_tests(recipe: Beside, results: Json, console: Console) -> Json:
    """Every test that the other has too: the difference in points with its 95 % margin, McNemar's p."""
    theirs, found = _theirs(recipe).get("tasks", {}), {}
    for label, figures in results.items():
        if figures["items"] and label in theirs:
            compared = difference(figures, theirs[label])
            if compared is not None:
                count, apart = compared
                found[label] = {"items": count, **apart._asdict()}
                console.print(f"{label}: {_in_words(apart, recipe)} on {count} items", markup=False, soft_wrap=True)
    if not found:
        console.print(f"{recipe.against}: was asked none of these items", markup=False, soft_wrap=True)
    return found


def compared_answers(recipe: Beside, answers: Json, console: Console) -> Json:
    """The same of the answers that are right word for word, of each corpus and of all of them, on questions that both
    were asked."""
    theirs, found = _theirs(recipe).get("answers", {}), {}
    mine_all: list[bool] = []
    their_all: list[bool] = []
    for label, figures in answers.items():
        other = {(one["question"], one["reference"]): one for one in theirs.get(label, {}).get("answers", [])}
        both = [
            (one, other[asked]) for one in figures["answers"] if (asked := (one["question"], one["reference"])) in other
        ]
        if both:
            mine, their = ([exact(pair[side]["answer"], pair[side]["reference"]) for pair in both] for side in (0, 1))
            found[label] = _told(label, mine, their, recipe, console)
            mine_all += mine
            their_all += their
    if len(found) > 1:
        found["all"] = _told("all", mine_all, their_all, recipe, console)
    if not found:
        console.print(f"{recipe.against}: was asked none of these questions", markup=False, soft_wrap=True)
    return found


def _told(label: str, mine: list[bool], their: list[bool], recipe: Beside, console: Console) -> Json:
    apart, count = mcnemar(mine, their), len(mine)
    console.print(
        f"{label}, word for word: {_in_words(apart, recipe)} on {count} questions", markup=False, soft_wrap=True
    )
    return {"items": count, **apart._asdict()}


def _theirs(recipe: Beside) -> Json:
    """The result that `against` names. Raises InputError: there is none."""
    assert recipe.against is not None
    other = recipe.against
    path = other if other.is_file() else other / "evals" / recipe.file.name
    same = [f"data={pasted(recipe.data)} split={recipe.split}"] if recipe.data else []
    same += [f"suite={recipe.suite}"] if recipe.suite else ["'tasks=[…]'"] if recipe.chosen else []
    return read_json(path, f"evaluate it in the same way first: babyllama evaluate {pasted(other)} {' '.join(same)}")


def _in_words(apart: Difference, recipe: Beside) -> str:
    """Such as ``2.1 ± 1.3 points better (p = 0.002) than runs/other``."""
    margin = f"± {100 * apart.margin:.1f} points"
    if not apart.value:
        return f"as good as {recipe.against} ({margin})"
    better = "better" if apart.value > 0 else "worse"
    clear = "" if apart.p < LEVEL else ", which may be chance"
    return f"{100 * abs(apart.value):.1f} {margin} {better} ({p_words(apart.p)}{clear}) than {recipe.against}"
