"""quickstart: every step on the embedded corpus, each an ordinary verb with a bundled recipe.

The CPU's recipes take about ten minutes on two cores; with a GPU a larger model is trained by the same steps. A step
that is finished is not done again, one that was interrupted continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from babyllama.commands.table import table_of
from babyllama.errors import needs_extra
from babyllama.recipe import Recipe, load_recipe


class QuickstartRecipe(Recipe):
    """Where to write, and which of the two sets of recipes to use."""

    out: Path = Path("runs/quickstart")
    size: Literal["auto", "cpu", "gpu"] = "auto"
    overrides: tuple[str, ...] = ()  # "stage:key=value", for trying things out


@dataclass(frozen=True)
class Stage:
    """One verb with one bundled recipe; `paths` are its keys that name folders under ``out``."""

    name: str
    verb: str
    recipe: str
    paths: dict[str, str]
    title: str


STAGES = (
    Stage("tokenizer", "tokenizer", "TokenizerRecipe", {"out": "tokenizer"}, "learn a vocabulary"),
    Stage("corpus", "prepare", "PrepareRecipe", {"out": "corpus", "tokenizer": "tokenizer"}, "texts → tokens"),
    Stage("general-chats", "prepare", "PrepareRecipe", {"out": "general-chats", "tokenizer": "tokenizer"},
          "questions and answers → tokens"),
    Stage("medical-chats", "prepare", "PrepareRecipe", {"out": "medical-chats", "tokenizer": "tokenizer"},
          "medical questions and answers → tokens"),
    Stage("base", "train", "TrainRecipe", {"out": "base", "data.path": "corpus"}, "pretrain from nothing"),
    Stage("general", "train", "TrainRecipe", {"out": "general", "data.path": "general-chats", "init.path": "base"},
          "teach it to answer"),
    Stage("medical", "train", "TrainRecipe", {"out": "medical", "data.path": "medical-chats", "init.path": "general"},
          "teach it medicine"),
    Stage("evaluate-base", "evaluate", "EvaluateRecipe", {"model": "base", "data": "corpus"}, "bits per byte"),
    *(
        Stage(f"evaluate-{name}{new}", "evaluate", "EvaluateRecipe", {"model": name, "data": f"{name}-chats"}, title)
        for name in ("general", "medical")
        for new, title in (("", "ask what it was trained on"), ("-new", "ask what it has never seen"))
    ),
)  # fmt: skip


def main(recipe: QuickstartRecipe) -> None:
    """Run the stages in order, then the report, then say how to chat."""
    console = Console()
    size = _size() if recipe.size == "auto" else recipe.size
    took: dict[str, float] = {}
    for number, stage in enumerate(STAGES, 1):
        console.rule(f"{number}/{len(STAGES) + 1}  {stage.name}: {stage.title}", align="left")
        started = time.perf_counter()
        _run(stage, recipe, size)
        took[stage.name] = time.perf_counter() - started
    console.rule(f"{len(STAGES) + 1}/{len(STAGES) + 1}  report", align="left")
    if find_spec("matplotlib"):
        page = str(_report(recipe.out))
    else:
        page = f"{needs_extra('matplotlib', 'report')}, then the same command once more"
    _closing_words(console, recipe.out, page, took)


def _size() -> str:
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def _run(stage: Stage, recipe: QuickstartRecipe, size: str) -> None:
    command = import_module(f"babyllama.commands.{stage.verb}")
    kind: type[Recipe] = getattr(command, stage.recipe)
    own = [o.removeprefix(f"{stage.name}:") for o in recipe.overrides if o.startswith(f"{stage.name}:")]
    paths = [f"{key}={recipe.out / folder}" for key, folder in stage.paths.items()]
    verb_main: Callable[[Recipe], None] = command.main
    verb_main(load_recipe(kind, f"quickstart/{size}/{stage.name}", [*paths, *own]))


def _report(out: Path) -> Path:
    from babyllama.commands.report import ReportRecipe
    from babyllama.commands.report import main as report

    page = out / "report.html"
    names = [s.paths["out"] for s in STAGES if "out" in s.paths]
    report(ReportRecipe(runs=tuple(out / name for name in names), out=page, title="babyllama quickstart"))
    return page


def _closing_words(console: Console, out: Path, page: str, took: dict[str, float]) -> None:
    table = table_of(["step"], ["seconds"], title="where the time went")
    for name, seconds in took.items():
        table.add_row(name, f"{seconds:.0f}")
    table.add_row("all", f"{sum(took.values()):.0f}")
    console.print(table)
    console.print("Curves and answers:", Text(page, "bold"), soft_wrap=True)
    console.print(
        f"Talk to it:  [bold]babyllama chat {out / 'medical'}[/]  (in a fresh shell: . .venv/bin/activate)",
        soft_wrap=True,
    )
    console.print("It is very small and answers what it was trained on; it is no doctor.")
