"""evaluate: loss, bits per byte and answers of a model, shown as tables and kept in its ``evals/``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import track
from rich.table import Table

from babyllama.atomic import write_json
from babyllama.data.shards.shards import Prepared
from babyllama.data.sources.corpora import CorpusChoice
from babyllama.errors import InputError
from babyllama.evals.answers import Answer, AnswerSums, Question, ask, chat_questions, corpus_questions, score
from babyllama.evals.bits import measure
from babyllama.infer.engine import Engine
from babyllama.load import Loaded, load, pick_device, pick_precision
from babyllama.model.laws import RopeConfig
from babyllama.recipe import Recipe


class EvaluateRecipe(Recipe):
    """The verb's recipe. Of `data`, every corpus is measured and every chat corpus asked, on held-out documents."""

    model: Path = Field(description="a run or a Hugging Face LLaMA folder")
    data: Path | None = Field(default=None, description="a prepared folder")
    split: Literal["val", "train"] = "val"
    corpora: tuple[str, ...] = Field(default=(), description="labels of the prepared folder; all when empty")
    questions_from: tuple[CorpusChoice, ...] = Field(default=(), description="more chats to ask")
    questions: int = Field(default=50, ge=0, description="asked of each chat corpus; 0 asks nothing")
    answer_tokens: int = Field(default=256, ge=1, description="the longest answer")
    loss_tokens: int | None = Field(default=200_000, ge=1, description="measured of each corpus; null takes all")
    context: int | None = Field(default=None, ge=2, description="tokens of a row; the model's when absent")
    rows: int = Field(default=16, ge=1, description="rows of a batch")
    name: str | None = Field(default=None, pattern=r"^[\w-][\w.-]*$", description="of the file in evals/")
    rope: RopeConfig | None = Field(default=None, description="another law, for a longer context")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"

    @model_validator(mode="after")
    def _something(self) -> EvaluateRecipe:
        if self.data is None and not self.questions_from:
            raise ValueError("give data (a prepared folder), or questions_from (chat corpora), or both")
        labels = [choice.stored_as for choice in self.questions_from]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"questions_from: the label {twice[0]!r} is there twice; give one of them another label")
        return self

    @property
    def file(self) -> Path:
        """Where the result goes."""
        default = f"{self.data.resolve().name}-{self.split}" if self.data else "questions"
        return self.model / "evals" / f"{self.name or default}.json"


def main(recipe: EvaluateRecipe) -> None:
    """Measure, ask, show, and write one JSON file."""
    console = Console(highlight=False)
    device = pick_device(recipe.device)
    loaded = load(recipe.model, device, pick_precision(recipe.precision, device), recipe.rope)
    prepared = None
    if recipe.data is not None:
        prepared = Prepared.open(recipe.data)
        prepared.check_tokenizer(loaded.tokenizer.hash)
        loaded = Loaded(loaded.model, loaded.tokenizer.with_template(prepared.manifest["chat_template"]), loaded.folder)
    losses = dict(_losses(recipe, loaded, prepared, console)) if prepared else {}
    answers = {label: _answers(recipe, loaded, label, questions, console)
               for label, questions in _questions(recipe, loaded, prepared)}  # fmt: skip
    if losses:
        console.print(_loss_table(losses, recipe.split))
    if answers:
        console.print(_answer_table(answers))
        _show_samples(answers, console)
    for label in recipe.corpora or tuple(prepared.corpora if prepared else ()):
        if prepared and not prepared.store(label, recipe.split).documents:
            fault = f"{label}: no document in the {recipe.split} split, so nothing of it was measured; "
            console.print(fault + "prepare it with a larger validation=…, or take split=train", markup=False,
                          soft_wrap=True)  # fmt: skip
    result = {"recipe": recipe.model_dump(mode="json"), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
              "loss": losses, "answers": answers}  # fmt: skip
    write_json(recipe.file, result)
    console.print(f"written to {recipe.file}", markup=False, soft_wrap=True)


def _losses(recipe: EvaluateRecipe, loaded: Loaded, prepared: Prepared,
            console: Console) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
    most = loaded.model.config.max_position_embeddings
    context = recipe.context or most
    if context > most:
        raise InputError(f"context: {context} is above the model's {most} positions")
    labels = recipe.corpora or tuple(prepared.corpora)
    found = measure(loaded.model, prepared, labels, recipe.split, context, recipe.rows, recipe.loss_tokens)
    for label, sums in track(found, "measuring", len(labels), console=console, disable=not console.is_terminal):
        yield label, sums.figures


def _questions(recipe: EvaluateRecipe, loaded: Loaded,
               prepared: Prepared | None) -> Iterator[tuple[str, list[Question]]]:  # fmt: skip
    if not recipe.questions:
        return
    if prepared is not None:
        labels = recipe.corpora or tuple(prepared.corpora)
        yield from chat_questions(prepared, labels, recipe.split, recipe.questions, loaded.tokenizer)
    for choice in recipe.questions_from:
        yield f"{choice.stored_as} (corpus)", corpus_questions(choice, recipe.questions, loaded.tokenizer)


def _answers(recipe: EvaluateRecipe, loaded: Loaded, label: str, questions: list[Question],
             console: Console) -> dict[str, Any]:  # fmt: skip
    engine = Engine(loaded.model, loaded.tokenizer.vocab_size)
    given = ask(engine, loaded.tokenizer, questions, recipe.answer_tokens, recipe.rows)
    answers: list[Answer] = list(track(given, f"asking {label}", len(questions), console=console,
                                       disable=not console.is_terminal))  # fmt: skip
    sums = sum(map(score, answers), AnswerSums())
    return {**(sums.figures if answers else {"asked": 0}), "too_long": len(questions) - len(answers),
            "answers": [{**asdict(answer), "f1": score(answer).f1} for answer in answers]}  # fmt: skip


def _loss_table(losses: dict[str, dict[str, Any]], split: str) -> Table:
    table = Table("corpus", "tokens", "loss (nats)", "perplexity", "bits/byte", "accuracy", title=f"loss, {split}")
    for label, figures in losses.items():
        bits = figures["bits_per_byte"]
        table.add_row(label, f"{figures['tokens']:,}", f"{figures['loss']:.4f}", f"{figures['perplexity']:.2f}",
                      "–" if bits is None else f"{bits:.4f}", f"{figures['accuracy']:.1%}")  # fmt: skip
    return table


def _answer_table(answers: dict[str, dict[str, Any]]) -> Table:
    table = Table("corpus", "asked", "exact", "character F1", "ended", "characters (reference)",
                  title="answers, greedy")  # fmt: skip
    for label, figures in answers.items():
        if figures["asked"]:
            length = f"{figures['characters']:.0f} ({figures['reference_characters']:.0f})"
            table.add_row(label, str(figures["asked"]), f"{figures['exact']:.1%}", f"{figures['f1']:.1%}",
                          f"{figures['ended']:.1%}", length)  # fmt: skip
    return table


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
