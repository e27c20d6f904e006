"""report: one HTML page about a pipeline of runs; it opens offline, in light and dark, on a phone too.

A summary comes first, then all runs side by side, then each of them. Every piece that a run lacks is left out. How the
page looks is in report.html, what a run has to tell in report_story.py, pictures of the last model at work in
report_inside.py. Not here: measuring anything.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment
from pydantic import Field

from babyllama.amounts import duration, short, size
from babyllama.atomic import check_writable, read_json, write_atomic
from babyllama.commands.report_inside import Inside, look
from babyllama.commands.report_story import Json, Story, limits, side_by_side, spread, tell
from babyllama.commands.report_words import Language, Speaker
from babyllama.errors import InputError, pasted
from babyllama.evals.published import PUBLISHED
from babyllama.evals.statistics import LEVEL, p_words
from babyllama.export.card import card, history
from babyllama.lineage import lineage
from babyllama.recipe import Recipe
from babyllama.run import Run

TEMPLATE = Path(__file__).with_name("report.html")
DEPTH = 4  # folders below a folder in which trainings are looked for
QUESTIONS = 6  # shown of each evaluated corpus


class ReportRecipe(Recipe):
    """Which runs to tell about, in order, and where to write the page."""

    runs: tuple[Path, ...] = Field(min_length=1, description="the runs, in order; or a folder: all trainings below it",
                                   examples=["runs=[runs/base]"])  # fmt: skip
    out: Path = Field(default=Path("report.html"), description="the page to write")
    title: str = Field(default="babyllama", description="the page's heading")
    language: Language = Field(default="en", description="of the page: English or Chinese")
    sentence: str = Field(default="北京是中国的首都，上海", description="what the last model is shown reading; "
                          "\"\": no pictures of it")  # fmt: skip
    card: Path | None = Field(default=None, description="also write the last model's card here, as Markdown")


def main(recipe: ReportRecipe) -> None:
    """Read the runs, write the page."""
    say = Speaker(recipe.language)
    for made in filter(None, (recipe.out, recipe.card)):
        check_writable(made)
    runs = [run for path in recipe.runs for run in runs_at(path)]
    text = _card(runs) if recipe.card is not None else ""
    last = _last(runs)
    names = names_of([run.path for run in runs])
    seen = None if last is None or not recipe.sentence else (names[runs.index(last)], look(last.path, recipe.sentence))
    stories = [replace(tell(run, say), name=name) for run, name in zip(runs, names, strict=True)]
    write_atomic(recipe.out, render(stories, recipe.title, say, seen))
    if recipe.card is not None:
        write_atomic(recipe.card, text)
        print(f"{recipe.card} is ready")
    print(f"{recipe.out} is ready; open it in a browser")


def runs_at(path: Path) -> list[Run]:
    """The run there; of a folder that is none, all trainings below it, those that began first first.

    Raises InputError: neither.
    """
    if path.is_dir() and not (path / "run.json").is_file():
        files = [file for depth in range(1, DEPTH + 1) for file in path.glob("*/" * depth + "run.json")]
        places = [
            file.parent for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        if found := [run for run in map(Run.open, sorted(places)) if run.info.get("verb") == "train"]:
            return sorted(found, key=lambda run: run.info.get("created") or "")
    return [Run.open(path)]


def names_of(paths: list[Path]) -> list[str]:
    """What to call them: the folder's name, with as many of those above as tell it from the others."""
    parts = [path.resolve().parts for path in paths]

    def needed(own: tuple[str, ...]) -> int:
        alone = (n for n in range(1, len(own)) if sum(other[-n:] == own[-n:] for other in parts) == 1)
        return next(alone, 1)  # 1: the same run twice

    return ["/".join(own[-needed(own) :]) for own in parts]


def _card(runs: list[Run]) -> str:
    run = _last(runs)
    if run is None:
        raise InputError("card: none of the runs has a model; leave card out, or name a training")
    return card(read_json(run.model / "config.json"), history(run.path), run.path.resolve().name)


def _last(runs: list[Run]) -> Run | None:
    """The last run that has a model."""
    return next((run for run in reversed(runs) if (run.model / "config.json").is_file()), None)


def render(stories: list[Story], title: str, say: Speaker, seen: tuple[str, Inside | None] | None = None) -> str:
    """The page. Everything that came out of a run is escaped.

    Args:
        seen: a run's name and what its model computes on a sentence.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"count": short, "duration": duration, "size": size, "figure": figure, "spread": spread,
                            "percent": lambda share: f"{100 * share:.2f}", "test_name": say.test,
                            "verdict": lambda test: verdict(test, say)}  # fmt: skip
    timed = [story for story in stories if story.seconds]
    total = sum(story.seconds or 0 for story in timed)
    trained = [story for story in stories if story.info.get("verb") == "train"]
    line = {run.path.resolve() for _, run in lineage(trained[-1].path)} if trained else set()
    apart = [story for story in trained if story.path.resolve() not in line]  # from which the last one has nothing
    mine = [story for story in trained if story not in apart]
    tokens = sum(story.summary.get("tokens") or 0 for story in mine)
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        title=title, language=say.language, _=say, stories=stories, timed=timed, total=total, trained=trained,
        chain=[story for story in stories if story not in apart],
        questions=QUESTIONS, tokens=tokens, lead=lead(mine, tokens, say), table=side_by_side(stories),
        tested=[story for story in stories if story.tests], published=PUBLISHED, seen=seen, limits=limits(stories),
        commands=[line for story in stories for line in commands(story)])  # fmt: skip


def lead(trained: list[Story], tokens: int, say: Speaker) -> list[str]:
    """The first sentences: what the last model is, what it was made from, what it can."""
    if not trained or trained[-1].shape is None:
        return []
    last, shape = trained[-1], trained[-1].shape
    said = [say("“{name}” is a Chinese LLaMA of {parameters} parameters "
                "({layers} layers, {width} wide, a vocabulary of {vocabulary}).",
                name=last.name, parameters=short(last.summary["parameters"]), layers=shape.num_hidden_layers,
                width=shape.hidden_size, vocabulary=short(shape.vocab_size))]  # fmt: skip
    seconds = sum(story.seconds or 0 for story in trained)
    if tokens and seconds and last.summary.get("device"):
        said.append(say("It was trained on {tokens} tokens in {time} on {device}.", tokens=short(tokens),
                        time=duration(seconds), device=last.summary["device"]))  # fmt: skip
    if isinstance(last.summary.get("bits_per_byte"), float):
        said.append(say("It needs {bits} bits for a byte of text that was held out from its training.",
                        bits=figure(last.summary["bits_per_byte"], 2)))  # fmt: skip
    rows = [row for found in last.evals if found.get("documents") == "held out"
            for row in (found.get("answers") or {}).values() if row.get("asked")]  # fmt: skip
    said += [say("Of {n} questions that were held out it answers {exact} % word for word; "
                 "{f1} % of the characters are shared.",
                 n=row["asked"], exact=figure(100 * row["exact"], 0), f1=figure(100 * row["f1"], 0))
             for row in rows]  # fmt: skip
    if last.above:
        names = ("、" if say.language == "zh" else ", ").join(map(say.test, last.above))
        said.append(say("Of {n} tests it is above chance in {k}: {names}. "
                        "In the others it cannot be told from guessing.",
                        n=len(last.tests), k=len(last.above), names=names))  # fmt: skip
    elif last.tests:
        said.append(say("In none of {n} tests can it be told from guessing.", n=len(last.tests)))
    return said


def commands(story: Story) -> list[str]:
    """What repeats a run, and what was measured of it."""
    keys = "data", "split", "suite", "task_data"
    asked = [one["recipe"] for one in story.evals if isinstance(one.get("recipe"), dict)]
    given = [" ".join(f"{key}={one[key]}" for key in keys if one.get(key)) for one in asked]
    made = [f"babyllama {story.info.get('verb')} {story.path}/recipe.yaml"] if story.recipe else []
    return made + [f"babyllama evaluate {pasted(story.path)} {words}" for words in given if words]


# ── words for numbers ──────────────────────────────────────────────────────────────────────────────────────────────
def verdict(test: Json, say: Speaker) -> str:
    """Of a score, in words."""
    if test["p"] >= LEVEL:
        return say("not distinguishable from chance")
    return f"{say('above chance')}, {p_words(test['p'])}"


def figure(value: Any, digits: int = 3) -> str:
    """A number with fixed decimals, or a dash."""
    return f"{value:.{digits}f}" if isinstance(value, int | float) and not isinstance(value, bool) else "–"
