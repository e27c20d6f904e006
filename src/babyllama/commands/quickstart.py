"""quickstart: every step on the embedded corpus, each an ordinary verb with a bundled recipe.

The CPU's recipes take about ten minutes on two cores; with a GPU a larger model is trained by the same steps. A step
that is finished is not done again, one that was interrupted continues.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field
from rich.console import Console
from rich.table import Table
from rich.text import Text

from babyllama.amounts import size as byte_size
from babyllama.commands.table import table_of
from babyllama.data.sources.known import SKILLS
from babyllama.errors import InputError, needs_extra, pasted
from babyllama.evals.statistics import wilson
from babyllama.recipe import Recipe, load_recipe


class QuickstartRecipe(Recipe):
    """Where to write, and which of the two sets of recipes to use."""

    out: Path = Field(default=Path("runs/quickstart"), description="the folder for all its runs and the report")
    size: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="cpu: for two cores in ten minutes; gpu: a larger model; auto: gpu where one is"
    )
    live: bool = Field(default=True, description="a page that shows the runs while they train, with the extra serve")
    overrides: tuple[str, ...] = Field(
        default=(), description="STAGE:KEY=VALUE, each a key of one stage's own recipe, to try things out")  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One verb with one bundled recipe; `paths` are its keys that name folders under ``out``; `why` is told first."""

    name: str
    verb: str
    recipe: str
    paths: dict[str, str]
    why: str


class Cost(NamedTuple):
    """Of a stage. `memory`: bytes of the machine's, all processes together; 0 where the system does not say."""

    seconds: float
    memory: int


def _prepare(name: str, why: str) -> Stage:
    return Stage(name, "prepare", "PrepareRecipe", {"out": name, "tokenizer": "tokenizer"}, why)


def _train(name: str, data: str, parent: str | None, why: str) -> Stage:
    start = {"init.path": parent} if parent else {}
    return Stage(name, "train", "TrainRecipe", {"out": name, "data.path": data, **start}, why)


def _evaluate(name: str, model: str, data: str, why: str) -> Stage:
    return Stage(name, "evaluate", "EvaluateRecipe", {"model": model, "data": data}, why)


STAGES = (
    Stage("tokenizer", "tokenizer", "TokenizerRecipe", {"out": "tokenizer"},
          "learn a vocabulary: a model reads numbers, and these are the pieces of text that they stand for"),
    _prepare("corpus", "texts → tokens, packed in files that training can read at any place"),
    _prepare("general-chats", "questions and answers → tokens; some combinations are kept from training, to ask later"),
    _prepare("medical-chats", "the same with medical questions"),
    _train("base", "corpus", None, "pretrain from nothing: guess the next token, millions of times"),
    _train("general", "general-chats", "base", "teach it to answer: only the answers count, and where they end"),
    _train("medical", "medical-chats", "general", "teach it some medicine without forgetting the rest"),
    _evaluate("evaluate-base", "base", "corpus", "how well it guesses texts that it never saw, in bits per byte"),
    _evaluate("evaluate-trained", "medical", "medical-chats", "ask what it was trained on: what it remembers"),
    _evaluate("evaluate-unseen", "medical", "medical-chats", "ask what it never saw: what it has understood"),
)  # fmt: skip
FINAL = "medical"


def _check(overrides: tuple[str, ...]) -> None:
    names = [stage.name for stage in STAGES]
    for override in overrides:
        if override.partition(":")[0] not in names:
            raise InputError(f"overrides: {override} begins with no stage and ':'; stages: {', '.join(names)}")


def main(recipe: QuickstartRecipe) -> None:
    """Run the stages in order, then the report, then say how to chat."""
    from babyllama.hardware import memory_watched

    _check(recipe.overrides)
    if (recipe.out / "run.json").exists():
        raise InputError(f"{recipe.out}: is a run itself; give out= a folder for the runs of the quickstart")
    console = Console()
    size = _size() if recipe.size == "auto" else recipe.size
    took: dict[str, Cost] = {}
    with _page(recipe, console), memory_watched() as most_memory:
        for number, stage in enumerate(STAGES, 1):
            console.rule(f"{number}/{len(STAGES) + 1}  {stage.name}", align="left")
            console.print(stage.why, markup=False, soft_wrap=True)
            started = time.perf_counter()
            _run(stage, recipe, size)
            took[stage.name] = Cost(time.perf_counter() - started, most_memory())
        console.rule(f"{len(STAGES) + 1}/{len(STAGES) + 1}  report", align="left")
        page = str(_report(recipe.out)) if find_spec("matplotlib") else (
            f"{needs_extra('matplotlib', 'report')}, then the same command once more")  # fmt: skip
    evals = recipe.out / FINAL / "evals"
    trained, unseen = (json.loads((evals / f"medical-chats-{split}.json").read_text("utf-8"))["answers"]
                       for split in ("train", "val"))  # fmt: skip
    _closing_words(console, recipe.out, page, took, skills_table(trained, unseen))


@contextmanager
def _page(recipe: QuickstartRecipe, console: Console) -> Iterator[None]:
    """A page that shows the runs, as long as the block lasts; nothing depends on it."""
    from babyllama.serve.watching import watched

    with ExitStack() as until_the_end:
        if recipe.live and not _can_serve():
            said = f"To watch it train in a browser: {needs_extra('fastapi', 'serve')}"
        elif recipe.live:
            try:
                url = until_the_end.enter_context(watched(recipe.out))
                said = f"Watch it train in a browser on this machine, until it ends: {url}"
            except OSError as error:
                said = f"There is no page to watch it: this machine lets nobody listen ({error.strerror})"
        else:
            said = ""
        if said:
            console.print(said, markup=False, soft_wrap=True)
        yield


def _can_serve() -> bool:
    return all(find_spec(package) for package in ("fastapi", "uvicorn", "orjson"))


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


def _closing_words(console: Console, out: Path, page: str, took: dict[str, Cost], skills: Table) -> None:
    table = table_of(["step"], ["seconds", "most memory"], title="what it took")
    everything = Cost(sum(cost.seconds for cost in took.values()), max(cost.memory for cost in took.values()))
    for name, cost in [*took.items(), ("all", everything)]:
        table.add_row(name, f"{cost.seconds:.0f}", byte_size(cost.memory) if cost.memory else "–")
    console.print(table)
    console.print(skills)
    console.print("Curves and answers:", Text(page, "bold"), soft_wrap=True)
    console.print(
        f"Talk to it:  [bold]babyllama chat {pasted(out / FINAL)}[/]  (in a fresh shell: . .venv/bin/activate)",
        soft_wrap=True,
    )
    if _can_serve():
        console.print(f"or in a browser:  [bold]babyllama serve {pasted(out / FINAL)}[/]", soft_wrap=True)
    console.print("It is very small: it knows a small world and what it recites of medicine; it is no doctor.")


def skills_table(trained: dict[str, Any], unseen: dict[str, Any]) -> Table:
    """Exact answers by skill, trained against unseen, with 95 % intervals; below, what can only be learned by heart.

    Args:
        trained, unseen: the answers by corpus of an evaluation of either split.
    """
    table = table_of(["skill", "what"], ["trained", "unseen", "by\nchance"], title="exact answers")
    rows = [(skill.name, skill.title, skill.chance) for skill in SKILLS]
    rows += [("everyday", "chats; unseen: other wordings", 0), ("medical_qa", "recited: nothing to infer", 0)]
    for label, what, chance in rows:
        table.add_row(label, what, _share(trained.get(label)), _share(unseen.get(label)), f"{chance:.0%}")
    return table


def _share(figures: dict[str, Any] | None) -> str:
    """Such as ``97% (91–99)``."""
    if not figures or not figures["asked"]:
        return "–"
    low, high = wilson(round(figures["exact"] * figures["asked"]), figures["asked"])
    return f"{figures['exact']:.0%} ({low * 100:.0f}–{high * 100:.0f})"
