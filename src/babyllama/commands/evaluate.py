"""evaluate: loss, bits per byte, answers and tests of a model, shown as tables and kept in its ``evals/``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import track
from rich.table import Table

from babyllama.atomic import check_writable, write_json
from babyllama.commands.evaluate_against import compared_answers
from babyllama.commands.evaluate_pairs import measured_pairs, pair_table
from babyllama.commands.evaluate_tasks import read_tests, run_tasks
from babyllama.commands.table import shortly, table_of
from babyllama.data.shards.shards import Prepared
from babyllama.data.sources.corpora import CorpusChoice
from babyllama.data.streams.answers import ANSWERS
from babyllama.errors import InputError
from babyllama.evals.answers import Answer, AnswerSums, Question, ask, chat_questions, compared, corpus_questions
from babyllama.evals.bits import measure
from babyllama.evals.provenance import Provenance, Standing, provenance
from babyllama.evals.tasks import SUITES, TaskChoice
from babyllama.hardware import DeviceChoice
from babyllama.infer.engine import Engine
from babyllama.load import Loaded, load, model_folder, pick_device, pick_precision
from babyllama.model.laws import RopeConfig
from babyllama.recipe import Recipe


class EvaluateRecipe(Recipe):
    """The verb's recipe. Of `data`, every corpus is measured and every chat corpus asked."""

    model: Path = Field(description="a run or a Hugging Face LLaMA folder")
    data: Path | None = Field(default=None, description="a prepared folder")
    split: Literal["val", "train"] = Field(
        default="val", description="val: what was held out from training; train: what was trained on"
    )
    corpora: tuple[str, ...] = Field(default=(), description="labels of the prepared folder; default: all")
    questions_from: tuple[CorpusChoice, ...] = Field(default=(), description="more chats to ask",
                                                    examples=["'questions_from=[{path: my.jsonl}]'"])  # fmt: skip
    questions: int = Field(default=50, ge=0, description="questions asked of each chat corpus; 0 asks nothing")
    answer_tokens: int = Field(default=256, ge=1, description="the longest answer")
    loss_tokens: int | None = Field(default=200_000, ge=1, description="tokens measured of each corpus; null: all")
    context: int | None = Field(default=None, ge=2, description="tokens of a row; default: as in training")
    rows: int = Field(default=16, ge=1, description="rows of a batch")
    suite: Literal["zh-small", "zh-early", "zh-chat"] | None = Field(
        default=None,
        description="a set of tests; what needs files is named; zh-early: choices that are made here; "
        "zh-chat: what a chat model keeps to",
    )
    tasks: tuple[TaskChoice, ...] = Field(default=(), description="single tests, by name or with settings")
    task_data: Path | None = Field(default=None, description="folder with files of published tests: ceval, cmmlu, …")
    download: bool = Field(default=False, description="fetch what a suite needs from the hub")
    against: Path | None = Field(default=None, description="another run, or its JSON file, to compare with")
    contamination: bool | None = Field(default=None, description="look for the tests' text in the training data; "
                                       "default: if that is below 50 million tokens")  # fmt: skip
    name: str | None = Field(default=None, pattern=r"^[\w-][\w.-]*$", description="of the file in evals/")
    out: Path | None = Field(default=None, description="the JSON file to write; default: in the model's evals/")
    rope: RopeConfig | None = Field(default=None, description="another RoPE scaling, for a longer context")
    device: DeviceChoice = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="of the model; auto: what suits the machine"
    )

    @model_validator(mode="after")
    def _something(self) -> EvaluateRecipe:
        if self.data is None and not self.questions_from and not self.chosen:
            raise ValueError("give data (a prepared folder), questions_from (chat corpora), suite or tasks")
        labels = [choice.stored_as for choice in self.questions_from]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"questions_from: the label {twice[0]!r} is there twice; give one of them another label")
        return self

    @property
    def chosen(self) -> tuple[TaskChoice, ...]:
        """All tests that are asked for."""
        return (*(SUITES[self.suite] if self.suite else ()), *self.tasks)

    @property
    def file(self) -> Path:
        """Where the result goes."""
        if self.out is not None:
            return self.out
        other = "questions" if self.questions_from else self.suite or "tasks"
        default = f"{self.data.resolve().name}-{self.split}" if self.data else other
        return self.model / "evals" / f"{self.name or default}.json"


def main(recipe: EvaluateRecipe) -> None:
    """Measure, ask, show, and write one JSON file."""
    console = Console(highlight=False)
    model_folder(recipe.model)
    check_writable(recipe.file)
    tests = read_tests(recipe)  # a file that is missing shows now, not after all the rest was measured
    device = pick_device(recipe.device)
    loaded = load(recipe.model, device, pick_precision(recipe.precision, device), recipe.rope, scores=True)
    history, prepared = provenance(recipe.model), None
    if recipe.data is not None:
        prepared = Prepared.open(recipe.data)
        prepared.check_tokenizer(loaded.tokenizer.hash)
        loaded = Loaded(loaded.model, loaded.tokenizer.with_template(prepared.manifest["chat_template"]), loaded.folder)
        _check_split(recipe, prepared, console)
    if loaded.model.config.reward:
        _check_scores(recipe, prepared)
    context, trained = _contexts(recipe, loaded, history)
    losses = dict(_losses(recipe, loaded, prepared, context, history.apart, console)) if prepared else {}
    labels = recipe.corpora or tuple(prepared.corpora) if prepared else ()
    pairs = dict(measured_pairs(loaded, recipe.model, prepared, labels, recipe.split, recipe.rows,
                                recipe.loss_tokens)) if prepared else {}  # fmt: skip
    answers = {label: {**_answers(recipe, loaded, label, questions, console), "documents": standing}
               for label, questions, standing in _questions(recipe, loaded, prepared, history)}  # fmt: skip
    tasks = run_tasks(recipe, tests, loaded, context, history, console) if recipe.chosen else {}
    documents = history.of_split(prepared, recipe.split) if prepared else None
    _show(recipe, losses, answers, documents, (context, trained), console)
    if rated := [label for label in labels if prepared and prepared.store(label, recipe.split).kind == "rated"]:
        console.print(f"{', '.join(rated)}: rated answers are not measured, only pairs, chats and texts", markup=False,
                      soft_wrap=True)  # fmt: skip
    if pairs:
        console.print(pair_table(pairs, f"{recipe.split} split, {_WORDS[documents or 'unknown']}"))
    result = {"recipe": recipe.model_dump(mode="json"), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
              "context": context, "trained_context": trained, "documents": documents,
              "loss": losses, "pairs": pairs, "answers": answers, **tasks}  # fmt: skip
    if recipe.against is not None and answers:
        result["answers_against"] = compared_answers(recipe, answers, console)
    write_json(recipe.file, result)
    console.print(f"written to {recipe.file}", markup=False, soft_wrap=True)


def _check_scores(recipe: EvaluateRecipe, prepared: Prepared | None) -> None:
    """Raise InputError for what a reward model cannot do."""
    labels = (recipe.corpora or tuple(prepared.corpora)) if prepared else ()
    other = [label for label in labels if prepared and prepared.store(label, recipe.split).kind != "preference"]
    if not labels or other or recipe.chosen or recipe.questions_from:
        what = other[0] if other else "a test or a question"
        raise InputError(f"{recipe.model}: is a reward model, which is measured on preference pairs, not on {what}; "
                         "give data=… with pairs, and name them in corpora")  # fmt: skip


def _check_split(recipe: EvaluateRecipe, prepared: Prepared, console: Console) -> None:
    """Name the corpora that have nothing in the split. Raises InputError when that is all there is to do."""
    labels = recipe.corpora or tuple(prepared.corpora)
    empty = [label for label in labels if not prepared.store(label, recipe.split).documents]
    nothing = "no document is held out" if recipe.split == "val" else "the train split is empty"
    if len(empty) == len(labels) and not (recipe.questions_from or recipe.chosen):
        raise InputError(f"{recipe.data}: {nothing}; prepare more, or with a larger validation=…, or measure what was "
                         "trained on with split=train")  # fmt: skip
    if empty:
        console.print(f"{', '.join(empty)}: {nothing}, not measured", markup=False, soft_wrap=True)


def _contexts(recipe: EvaluateRecipe, loaded: Loaded, history: Provenance) -> tuple[int, int]:
    """Tokens of a row, here and in training.

    Raises:
        InputError: more than the model has positions.
    """
    config = loaded.model.config
    most = config.max_position_embeddings
    trained = history.context or (most if recipe.rope is None else config.trained_context)
    context = recipe.context or (trained if recipe.rope is None else most)
    if context > most:
        raise InputError(f"context: {context} is above the model's {most} positions")
    return context, trained


def _losses(recipe: EvaluateRecipe, loaded: Loaded, prepared: Prepared, context: int, apart: bool,
            console: Console) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
    labels = [label for label in recipe.corpora or prepared.corpora
              if prepared.store(label, recipe.split).kind not in ANSWERS]  # fmt: skip
    found = measure(loaded.model, prepared, labels, recipe.split, context, recipe.rows, recipe.loss_tokens, apart)
    for label, sums in track(found, "measuring", len(labels), console=console, disable=not console.is_terminal):
        yield label, sums.figures


def _questions(recipe: EvaluateRecipe, loaded: Loaded, prepared: Prepared | None, history: Provenance
               ) -> Iterator[tuple[str, list[Question], dict[Standing, int]]]:  # fmt: skip
    """(corpus, what to ask, how many of these documents the model's training saw or did not)."""
    if not recipe.questions:
        return
    if prepared is not None:
        labels = recipe.corpora or tuple(prepared.corpora)
        for label, asked in chat_questions(prepared, labels, recipe.split, recipe.questions, loaded.tokenizer):
            yield label, asked, {history.of_split(prepared, recipe.split): len(asked)}
    for choice in recipe.questions_from:
        asked = corpus_questions(choice, recipe.questions, loaded.tokenizer)
        yield (
            f"{choice.stored_as} (corpus)",
            asked,
            Counter(history.of_document(q.document, choice) for q in asked if q.document),
        )


def _answers(recipe: EvaluateRecipe, loaded: Loaded, label: str, questions: list[Question],
             console: Console) -> dict[str, Any]:  # fmt: skip
    engine = Engine(loaded.model, loaded.tokenizer.vocab_size)
    given = ask(engine, loaded.tokenizer, questions, recipe.answer_tokens, recipe.rows)
    answers: list[Answer] = list(track(given, f"asking {label}", len(questions), console=console,
                                       disable=not console.is_terminal))  # fmt: skip
    sums = sum(map(compared, answers), AnswerSums())
    return {**(sums.figures if answers else {"asked": 0}), "too_long": len(questions) - len(answers),
            "answers": [{**asdict(answer), "f1": compared(answer).f1} for answer in answers]}  # fmt: skip


def _show(recipe: EvaluateRecipe, losses: dict[str, Any], answers: dict[str, Any], documents: Standing | None,
          contexts: tuple[int, int], console: Console) -> None:  # fmt: skip
    context, trained = contexts
    if losses:
        console.print(_loss_table(losses, f"{recipe.split} split, {_WORDS[documents or 'unknown']}"))
        console.print(f"rows of {context} tokens, " + ("as in training" if context == trained else
                      f"but the model was trained on rows of {trained}: figures of other rows differ"),
                      soft_wrap=True)  # fmt: skip
    if answers:
        console.print(_answer_table(answers))
        _show_samples(answers, console)


_WORDS: dict[Standing, str] = {
    "held out": "held out from all training",
    "trained on": "trained on",
    "unknown": "unknown whether trained on",
}


def _loss_table(losses: dict[str, dict[str, Any]], what: str) -> Table:
    columns = ["tokens", "loss\n(nats)", "perplexity", "bits/\nbyte", "accuracy"]
    table = table_of(["corpus"], columns, title=f"loss, {what}")
    for label, figures in losses.items():
        bits = figures["bits_per_byte"]
        table.add_row(label, f"{figures['tokens']:,}", f"{figures['loss']:.4f}", shortly(figures["perplexity"]),
                      "–" if bits is None else f"{bits:.4f}", f"{figures['accuracy']:.1%}")  # fmt: skip
    return table


def _answer_table(answers: dict[str, dict[str, Any]]) -> Table:
    columns = ["asked", "exact", "char.\nF1", "BLEU", "ROUGE\n-L", "ended", "characters\n(ref.)"]
    table = table_of(["corpus"], columns, "documents", title="answers, greedy")
    for label, figures in answers.items():
        if figures["asked"]:
            length = f"{figures['characters']:.0f} ({figures['reference_characters']:.0f})"
            scores = [f"{figures[name]:.1%}" for name in ("exact", "f1", "bleu", "rouge_l", "ended")]
            table.add_row(label, str(figures["asked"]), *scores, length, _counted(figures["documents"]))
    return table


def _counted(standing: dict[Standing, int]) -> str:
    """Such as ``held out``, or ``12 held out, 38 trained on``."""
    return ", ".join(name if len(standing) == 1 else f"{count} {name}" for name, count in standing.items())


def _show_samples(answers: dict[str, dict[str, Any]], console: Console, count: int = 3) -> None:
    """A few answers of each corpus, spread from short to long prompts."""
    for label, figures in answers.items():
        given = figures["answers"]
        for sample in given[:: max(1, -(-len(given) // count))]:
            for name, style in (("question", "bold"), ("answer", ""), ("reference", "dim")):
                console.print(f"{label} {name}: {_short(sample[name])}", style=style, markup=False, soft_wrap=True)
            console.print()


def _short(text: str, most: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + "…"
