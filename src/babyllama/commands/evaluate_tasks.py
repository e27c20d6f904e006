"""The tests of `evaluate`: which ones can be had, all of them asked, one table, one comparable JSON object.

Not here: the recipe (evaluate.py), scores (evals/suites.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from babyllama.amounts import amount, short
from babyllama.atomic import read_json, write_json
from babyllama.commands.evaluate_against import check_against, compared_tests
from babyllama.commands.table import table_of
from babyllama.data.shards.shards import Prepared
from babyllama.errors import InputError
from babyllama.evals.choices import Asked
from babyllama.evals.free import Prompt, free_result, prompts_of, written
from babyllama.evals.items import Items
from babyllama.evals.overlap import clean_ids, texts_of
from babyllama.evals.provenance import Provenance
from babyllama.evals.suites import Subject, asked_of, fingerprint, marks, result, submission
from babyllama.evals.tasks import TaskChoice
from babyllama.load import Loaded, model_folder
from babyllama.model.adapters import base_link, is_adapter

LOOKED = 50_000_000  # tokens of training data that are searched unasked


class Wanted(Protocol):
    """What of the verb's recipe is about tests."""

    @property
    def chosen(self) -> tuple[TaskChoice, ...]: ...
    @property
    def tasks(self) -> tuple[TaskChoice, ...]: ...
    @property
    def suite(self) -> str | None: ...
    @property
    def task_data(self) -> Path | None: ...
    @property
    def download(self) -> bool: ...
    @property
    def against(self) -> Path | None: ...
    @property
    def contamination(self) -> bool | None: ...
    @property
    def data(self) -> Path | None: ...
    @property
    def split(self) -> str: ...
    @property
    def rope(self) -> Any: ...
    @property
    def file(self) -> Path: ...


class Ready(NamedTuple):
    """A test whose items are in tokens."""

    choice: TaskChoice
    items: Items
    asked: list[Asked] | list[Prompt]


def read_tests(recipe: Wanted) -> list[Items | None]:
    """The items of each test of `recipe.chosen`, without any model; None for those of a suite whose files are not here.

    Raises:
        InputError: tests that were asked for by name have no files, or files with a fault: all of them, a line each.
    """
    labels = [choice.called for choice in recipe.chosen]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise InputError(f"tasks: {twice!r} is there twice; give one of them another label")
    check_against(recipe, labels)
    suited, found, faults = len(recipe.chosen) - len(recipe.tasks), list[Items | None](), list[str]()
    for place, choice in enumerate(recipe.chosen):
        at_hand = choice.task.read is None or choice.found(recipe.task_data) or (recipe.download and choice.task.hub)
        try:
            found.append(choice.items(recipe.task_data) if place >= suited or at_hand else None)
        except InputError as fault:
            faults.append(str(fault))
    if faults:
        raise InputError("\n".join([*faults, *_together(faults)]))
    return found


def _together(said: Iterable[str]) -> list[str]:
    """A line for who has to get files."""
    wanted = any("get it from" in line for line in said)
    return ["such files may lie together, called as the tests are: task_data=FOLDER"] if wanted else []


def run_tasks(recipe: Wanted, tests: list[Items | None], loaded: Loaded, context: int, history: Provenance,
              console: Console) -> dict[str, Any]:  # fmt: skip
    """Results by test, and what could not be had; shown as a table.

    Args:
        tests: as `read_tests` found them.

    Raises:
        InputError: a test that was asked for by name needs a chat template, and there is none.
    """
    folders = _folders(loaded.folder)
    suited, template = len(recipe.chosen) - len(recipe.tasks), any(map(_has_template, folders))
    wants = next((choice for choice in recipe.chosen[suited:] if choice.form.chat and not template), None)
    if wants is not None:
        what = "leave chat=true out" if wants.chat else f"leave {wants.name} out"
        raise InputError(f"{loaded.folder}: has no chat template; {what}, or add one to its tokenizer")
    dtype = loaded.model.embed_tokens.weight.dtype
    hash = f"{fingerprint(folders)} {dtype} {recipe.rope!r}"
    subject, missing = Subject(loaded.model, loaded.tokenizer, context, hash), {}
    ready: list[Ready] = []
    for place, (choice, items) in enumerate(zip(recipe.chosen, tests, strict=True)):
        if place < suited and choice.form.chat and not template:
            missing[choice.called] = "the model has no chat template"
            continue
        if items is None:
            missing[choice.called] = choice.how
            continue
        names = choice.task.subjects or {}
        free = choice.task.free
        ready.append(Ready(choice, items,
                           asked_of(loaded.tokenizer, context, choice.form, items, names, choice.called) if free is None
                           else prompts_of(loaded.tokenizer, context, choice.form, free, items, names)))  # fmt: skip
    clean = _clean(recipe, loaded, history, ready, console)
    results = _results(recipe, subject, ready, clean, console)
    if results:
        console.print(_table(results, context))
    _remarks(results, missing, console)
    found = {"model": fingerprint(folders), "suite": recipe.suite, "tasks": results, "missing": missing}
    return {**found, "against": compared_tests(recipe, results, console)} if recipe.against else found


def _folders(folder: Path) -> list[Path]:
    """A model's folder and, of an adapter, its base's."""
    return [folder, *_folders(model_folder(base_link(folder).folder))] if is_adapter(folder) else [folder]


def _has_template(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (
        config.is_file() and bool(read_json(config).get("chat_template"))
    )


def _clean(recipe: Wanted, loaded: Loaded, history: Provenance, ready: list[Ready], console: Console
           ) -> dict[str, frozenset[str]]:  # fmt: skip
    """Test → ids of its items that no training of the model has read; empty when nobody looked."""
    if recipe.contamination is False or not history.folders:
        return {}
    data = [Prepared.open(folder) for folder in sorted(history.folders)]
    tokens = sum(len(prepared.store(label, "train")) for prepared in data for label in prepared.corpora)
    if recipe.contamination is None and tokens > LOOKED:
        console.print(f"not looked for the tests' text in {short(tokens)} tokens of training data; contamination=true "
                      "does", soft_wrap=True)  # fmt: skip
        return {}
    for prepared in data:
        prepared.check_tokenizer(loaded.tokenizer.hash)
    held = {f"{at}\n{item.id}": (at, item) for at, one in enumerate(ready) for item in one.items.asked}
    renamed = [type(item)(key, item.question, item.options, item.answer) for key, (_, item) in held.items()]
    clean = clean_ids(renamed, texts_of(data, loaded.tokenizer))
    return {one.choice.called: frozenset(item.id for key, (place, item) in held.items() if place == at and key in clean)
            for at, one in enumerate(ready)}  # fmt: skip


def _results(recipe: Wanted, subject: Subject, ready: list[Ready], clean: dict[str, frozenset[str]],
             console: Console) -> dict[str, Any]:  # fmt: skip
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    found: dict[str, Any] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=sum(len(one.asked) for one in ready))
        for one in ready:
            progress.update(bar, description=one.choice.called)
            found[one.choice.called] = {
                "about": one.choice.task.about, "licence": one.choice.task.licence,
                "choice": one.choice.model_dump(mode="json"), "context": subject.context,
                **_figures(recipe, subject, one, clean.get(one.choice.called), lambda n: progress.advance(bar, n)),
            }  # fmt: skip
            answers = found[one.choice.called]["answers"]
            if any(answer.get("answer", 0) is None for answer in answers):
                path = recipe.file.with_name(f"{recipe.file.stem}-{one.choice.called}-submission.json")
                write_json(path, submission(answers))
                console.print(f"{one.choice.called}: answers that are not published are in {path}", soft_wrap=True)
    return found


def _figures(recipe: Wanted, subject: Subject, ready: Ready, clean: frozenset[str] | None,
             advance: Callable[[int], None]) -> dict[str, Any]:  # fmt: skip
    """What one test says: of options that were chosen, or of answers that were written."""
    choice, items, asked = ready
    folder, form, free = recipe.file.parent / "cache", choice.form, choice.task.free
    if free is not None:
        prompts = [one for one in asked if isinstance(one, Prompt)]
        answers = written(subject, form, free, items, prompts, folder, advance)
        return {"scoring": free.mark, "normalise": None, **free_result(free, prompts, answers, clean)}
    normalise = choice.normalise or choice.task.normalise
    done = marks(subject, form, items, [one for one in asked if isinstance(one, Asked)], folder, advance)
    left_out = len(items.asked) - len(asked)
    return {"scoring": form.scoring, "normalise": normalise, **result(done, normalise, left_out, clean)}


def _table(results: dict[str, Any], context: int) -> Table:
    table = table_of(["test"], ["items", "right", "95 %", "chance"], "verdict", title=f"tests, context {context}")
    for label, figures in results.items():
        if figures["items"]:
            low, high = figures["interval"]
            table.add_row(label, f"{figures['items']:,}", f"{figures['accuracy']:.1%}", f"{low:.0%}–{high:.0%}",
                          f"{figures['chance']:.0%}", figures["verdict"])  # fmt: skip
    return table


def _remarks(results: dict[str, Any], missing: dict[str, str], console: Console) -> None:
    """What a reader must know beside the figures."""
    for label, figures in results.items():
        said = []
        if figures["cut"]:
            said.append(f"the beginning of {amount(figures['cut'], 'prompt')} was cut off to fit the context")
        if figures["left_out"]:
            said.append(f"{amount(figures['left_out'], 'item')} too long, left out")
        if figures.get("contaminated"):
            clean = figures["clean"]
            rest = f"; the others: {clean['accuracy']:.1%} of {clean['items']}, {clean['verdict']}" if clean else ""
            said.append(f"{amount(figures['contaminated'], 'item')} in the training data{rest}")
        if said:
            console.print(f"{label}: {'; '.join(said)}", markup=False, soft_wrap=True)
    for label, how in missing.items():
        console.print(f"{label}: not asked; {how}", markup=False, soft_wrap=True)
    for line in _together(missing.values()):
        console.print(line, markup=False, soft_wrap=True)
