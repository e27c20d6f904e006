"""prepare: corpora → shards of tokens, with a manifest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from babyllama.amounts import amount, duration
from babyllama.atomic import write_atomic
from babyllama.commands.leaks import Hashes, Leaks
from babyllama.commands.table import table_of
from babyllama.data.clean.cleaning import settled
from babyllama.data.clean.duplicates import DUPLICATES, AnyDuplicates
from babyllama.data.clean.presets import FILTERS, PRESETS, AnyFilter, named
from babyllama.data.shards.distinct import Read, encode_distinct, remove_marks
from babyllama.data.shards.encode import Done, Plan, encode_corpora, write_manifest
from babyllama.data.shards.shards import Prepared
from babyllama.data.shards.summary import summary
from babyllama.data.shards.workers import Part, cores
from babyllama.data.sources.corpora import CorpusChoice, Source
from babyllama.recipe import Changeable, Recipe, dump_recipe
from babyllama.run import Run
from babyllama.tokenizer.fast import missing
from babyllama.tokenizer.tokenizer import Tokenizer

T = TypeVar("T", bound=Done | Read)
EVERY = 10.0  # seconds between two lines of progress where there is no terminal


class PrepareRecipe(Recipe):
    """The verb's recipe; every key can be overridden on the command line."""

    out: Changeable[Path] = Field(
        description="the prepared folder to make or to continue", examples=["out=runs/corpus"]
    )
    tokenizer: Path = Field(description="a tokenizer run, a Hugging Face folder or a tokenizer.model",
                            examples=["tokenizer=runs/tokenizer"])  # fmt: skip
    corpora: tuple[CorpusChoice, ...] = Field(
        min_length=1,
        description="texts, chats and preferences, each by path or name",
        examples=["'corpora=[{path: my.jsonl}]'"],
    )
    clean: tuple[AnyFilter, ...] = Field(
        (), description="filters, or the names of some: zh-web, zh-books, characters; see docs/cleaning.md",
        examples=["clean=zh-web"],
    )  # fmt: skip
    leaks: Leaks | None = Field(
        None, description="evaluation items that no document may hold", examples=["leaks.tasks=[ceval]"]
    )
    dedup: tuple[AnyDuplicates, ...] = Field(
        (), description="what may be there only once: exact, near (documents), lines; see docs/cleaning.md",
        examples=["dedup=[exact, near]"],
    )  # fmt: skip
    validation: float = Field(0.01, ge=0, le=0.5, description="fraction of the documents that is held out")
    template: str | None = Field(None, description="chat template; default: the tokenizer's own")
    on_bad: Literal["stop", "skip"] = Field(
        "stop", description="what to do about a record, or the rest of a file, that cannot be read"
    )
    workers: int | None = Field(None, ge=1, description="processes; default: one for each core")
    part: str | None = Field(None, description="of several machines with one folder each does its share, the third of "
                             "eight: 3/8; without part the shares are joined", examples=["part=3/8"])  # fmt: skip

    @field_validator("clean", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return named(value, FILTERS, PRESETS)

    @field_validator("dedup", mode="before")
    @classmethod
    def _duplicates_by_name(cls, value: Any) -> Any:
        found = named(value, DUPLICATES, {})
        if isinstance(found, tuple) and len({choice.kind for choice in found}) < len(found):
            raise ValueError("each of exact, near and lines may be there once")
        return found

    @model_validator(mode="after")
    def _check(self) -> PrepareRecipe:
        if self.part is not None:
            Part.named(self.part)
        labels = [choice.stored_as for choice in self.corpora]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"corpora: the label {twice[0]!r} is there twice; give one of them another label")
        return self


def main(recipe: PrepareRecipe) -> None:
    """Prepare, or go on preparing, the folder at ``recipe.out``."""
    console = Console(highlight=False)
    kept = recipe.model_copy(update={"workers": None, "part": None})  # they decide nothing, so others may continue
    if (recipe.out / "run.json").is_file() and Run.open(recipe.out).finished:  # it needs its sources no more
        Run.create(recipe.out, "prepare", kept).unlock()
        console.print(f"{recipe.out} is finished; remove it or choose another out=…", markup=False, soft_wrap=True)
        return
    tokenizer = Tokenizer.load(recipe.tokenizer)
    if recipe.template is not None:
        tokenizer = tokenizer.with_template(recipe.template)
    for filter in recipe.clean:
        filter.check()
    sources = [choice.open(recipe.on_bad) for choice in recipe.corpora]
    leaks = None if recipe.leaks is None else recipe.leaks.hashes()  # what is missing shows before there is a folder
    run = _run(kept, shared=recipe.part is not None)
    try:
        _prepare(recipe, run, tokenizer, sources, leaks, console)
    finally:
        run.unlock()
    if recipe.part is None:
        console.print(f"{recipe.out} is ready", markup=False, soft_wrap=True)


def _prepare(recipe: PrepareRecipe, run: Run, tokenizer: Tokenizer, sources: list[Source], leaks: Hashes | None,
             console: Console) -> None:  # fmt: skip
    tokenizer.save(run.path)  # the folder is complete in itself: training needs no other
    clean = settled(recipe.clean, sources)
    if leaks is not None:
        clean = (*clean, leaks.kept(run.path))
    plan = Plan(run.path, tokenizer.chat_template, tokenizer.hash, recipe.validation, clean,
                recipe.dedup)  # fmt: skip
    if why := missing():
        console.print(
            f"note: encoding is five to thirty times slower, to the same ids: {why}", markup=False, soft_wrap=True
        )
    started = time.perf_counter()
    encode, part = encode_distinct if recipe.dedup else encode_corpora, Part.named(recipe.part) if recipe.part else None
    found = encode(sources, run.path, plan, recipe.workers or cores(), part)
    watched = _watched(found, sources, bool(recipe.dedup), console)
    done = [result for result in watched if isinstance(result, Done)]
    if part:
        console.print(_of_part(recipe, part, bool(done)), markup=False, soft_wrap=True)
        return
    manifest = write_manifest(run.path, sources, done, plan)
    seconds = time.perf_counter() - started
    splits = [split for corpus in manifest["corpora"].values() for split in corpus["splits"].values()]
    totals = {key: sum(split[key] for split in splits) for key in ("documents", "tokens")}
    _show(manifest, console)
    for line in summary(Prepared.open(run.path), sources, tokenizer):
        console.print(line, markup=False, soft_wrap=True)
    console.print(
        f"{amount(totals['documents'], 'document')}, {amount(totals['tokens'], 'token')} in {duration(seconds)}"
    )
    remove_marks(run.path)
    run.finish(seconds=round(seconds, 1), **totals)


def _of_part(recipe: PrepareRecipe, part: Part, written: bool) -> str:
    """What a part says at its end."""
    others = f"{amount(part.missing, 'piece')} of other parts {'is' if part.missing == 1 else 'are'} not there yet"
    if part.missing and recipe.dedup and not written:
        return f"part {recipe.part} is read and cleaned; {others}: when they are, run it again"
    left = f"{others}: when they are, run" if part.missing else "all parts are; run"
    return f"part {recipe.part} is written; {left} the same without part, which joins them"


def _run(recipe: PrepareRecipe, shared: bool) -> Run:
    """The new or continued run. One that was stopped goes on with what the recipe says now, such as ``on_bad: skip`` or
    the encoding that an error asked for: each piece is known by all that decides it, and those that fit are kept. The
    parts of several machines may change `on_bad` alone."""
    if (recipe.out / "run.json").is_file() and not (run := Run.open(recipe.out)).finished:
        stopped = dump_recipe(recipe.model_copy(update={"on_bad": "stop"}))
        whole = run.info["verb"] == "prepare" and not shared
        if whole or (recipe.out / "recipe.yaml").read_text("utf-8") == stopped:
            run.lock(shared)
            write_atomic(recipe.out / "recipe.yaml", dump_recipe(recipe))
            run.unlock()
    return Run.create(recipe.out, "prepare", recipe, shared=shared)


def _watched(results: Iterator[T], sources: list[Source], twice: bool, console: Console) -> Iterator[T]:
    """The results unchanged, behind a bar with documents and megabytes a second; off a terminal a line now and then."""
    size = sum(source.size or 0 for source in sources) * (2 if twice else 1)
    columns = (
        TextColumn("{task.fields[label]}"),
        BarColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    positions: dict[tuple[type, str], int] = {}
    documents, started = 0, time.perf_counter()
    told = 0.0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("prepare", total=size or None, label="", speed="")
        for done in results:
            positions[type(done), done.label] = done.position
            documents += done.documents
            seconds = max(time.perf_counter() - started, 1e-9)
            read = sum(positions.values())
            speed = f"{amount(documents, 'document')}  {documents / seconds:,.0f}/s  {read / seconds / 1e6:.1f} MB/s"
            bar.update(task, completed=read, label=done.label, speed=speed)
            if bar.disable and seconds - told >= EVERY:
                told, share = seconds, f"{min(read / size, 1):.0%}  " if size else ""
                console.print(f"prepare  {share}{done.label}  {speed}", markup=False, highlight=False, soft_wrap=True)
            yield done


def _show(manifest: dict[str, Any], console: Console) -> None:
    figures = ["documents", "held\nout", "left\nout", "tokens", "chars/\ntoken"]
    table = table_of(["corpus", "licence"], figures, title="prepared")
    for label, corpus in manifest["corpora"].items():
        train, val = corpus["splits"]["train"], corpus["splits"]["val"]
        tokens, characters = train["tokens"] + val["tokens"], train["characters"] + val["characters"]
        left_out = corpus["bad"] + corpus["dropped"] + sum(entry["dropped"] for entry in corpus.get("cleaning", ()))
        counts = (train["documents"] + val["documents"], val["documents"], left_out, tokens)
        table.add_row(label, corpus["licence"], *(f"{count:,}" for count in counts), f"{characters / tokens:.2f}")
    console.print(table)
