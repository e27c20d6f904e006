"""What ``data stats``, ``data sample`` and ``data show`` look at, and how a document is shown on a terminal.

A prepared folder; a run, whose recipe names one; or corpus files, whose first documents are encoded in a temporary
folder. Not here: the figures (data/shards/statistics.py), which documents (data/shards/samples.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator
from rich.console import Console
from rich.text import Text

from babyllama.data.shards.encode import Plan, encode_corpora, write_manifest
from babyllama.data.shards.samples import Piece, Selection
from babyllama.data.shards.shards import SPLITS, Prepared
from babyllama.data.sources.corpora import CorpusChoice
from babyllama.errors import InputError, at_home
from babyllama.moved import beside
from babyllama.plain_yaml import parse_yaml
from babyllama.recipe import Recipe
from babyllama.tokenizer.tokenizer import Tokenizer

LEARNED, REST = "green", "dim"


class Looked(Recipe):
    """What all three verbs have in common."""

    data: str = Field(description="a prepared folder, a run, or corpus files: a file, a folder or a pattern",
                      examples=["data=runs/corpus"])  # fmt: skip
    tokenizer: Path | None = Field(None, description="for corpus files: a tokenizer run, a folder or tokenizer.model")
    documents: int = Field(10_000, ge=1, description="of corpus files that are not prepared: how many are read")
    corpora: tuple[str, ...] | None = Field(None, min_length=1, description="their labels; default: all")

    @field_validator("corpora", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        """A single label needs no brackets."""
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class Chosen(Looked):
    """Which documents are shown."""

    split: Literal["train", "val"] | None = Field(None, description="default: both")
    least: int = Field(0, ge=0, description="only documents of so many tokens or more")
    most: int | None = Field(None, ge=1, description="only documents of so many tokens or fewer")

    def selection(self, looking: Looking) -> Selection:
        """Raises InputError for none."""
        splits = SPLITS if self.split is None else (self.split,)
        return Selection(looking.prepared, looking.labels, splits, self.least, self.most)


class Looking(NamedTuple):
    """Data that are open. `run`: the recipe of the run that was named, as plain data."""

    prepared: Prepared
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    run: dict[str, Any] | None


@contextmanager
def looking_at(recipe: Looked) -> Iterator[Looking]:
    """Raises InputError: nothing there, nothing prepared, files without a tokenizer, an unknown label."""
    path, run = at_home(recipe.data), None
    with TemporaryDirectory(prefix="babyllama-") as folder:
        if (path / "manifest.json").is_file() or (path / "shards").is_dir():
            prepared = Prepared.open(path)
        elif (path / "run.json").is_file():
            run = parse_yaml((path / "recipe.yaml").read_text("utf-8"), str(path / "recipe.yaml")) or {}
            prepared = Prepared.open(data_of(path, run))
        else:
            prepared = _encoded(recipe, Path(folder))
        labels = recipe.corpora or _read(run, prepared)
        for label in labels:
            prepared.store(label, "train")
        tokenizer = Tokenizer.load(prepared.path)  # every prepared folder has its own
        yield Looking(prepared, tokenizer.with_template(prepared.manifest["chat_template"]), labels, run)


def _read(run: dict[str, Any] | None, prepared: Prepared) -> tuple[str, ...]:
    """The corpora that a run reads; all where none is named."""
    data = (run or {}).get("data")
    weights = data.get("weights") if isinstance(data, dict) else None
    return tuple(label for label, weight in weights.items() if weight) if weights else tuple(prepared.corpora)


def data_of(path: Path, recipe: dict[str, Any]) -> Path:
    """The prepared folder that a run's recipe names. Raises InputError where it names none."""
    given = recipe.get("data")
    given = given.get("path") if isinstance(given, dict) else given
    if not isinstance(given, str):
        raise InputError(f"{path}: a run whose recipe names no prepared data; give the prepared folder itself")
    return at_home(beside(given, str(recipe.get("out")), path))


def _encoded(recipe: Looked, folder: Path) -> Prepared:
    """The first documents of corpus files, encoded as `prepare` does."""
    choice = CorpusChoice.model_validate({"path": recipe.data, "max_documents": recipe.documents, "encoding": "auto"})
    source = choice.open()
    if recipe.tokenizer is None:
        raise InputError(f"{recipe.data}: corpus files that are not prepared; give tokenizer=… to look at the first "
                         f"{recipe.documents:,} documents, or prepare them")  # fmt: skip
    tokenizer = Tokenizer.load(recipe.tokenizer)
    tokenizer.save(folder)
    plan = Plan(folder, tokenizer.chat_template, tokenizer.hash, 0.0)
    write_manifest(folder, [source], list(encode_corpora([source], folder, plan, workers=1)), plan)
    return Prepared.open(folder)


# ── shown ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def say(console: Console, text: str) -> None:
    """One line as it is."""
    console.print(text, markup=False, soft_wrap=True)


def coloured(found: Sequence[Piece], console: Console) -> Text:
    """What the loss covers in colour and the rest dim; without colours, it stands in [[ ]]."""
    text = Text()
    plain = console.color_system is None
    for piece in found:
        shown = f"[[{piece.text}]]" if plain and piece.learned else piece.text
        text.append(shown, LEARNED if piece.learned else REST)
    return text


def legend(console: Console) -> None:
    """How to read what follows."""
    if console.color_system is None:
        say(console, "in [[ ]]: what the loss covers")
    else:
        console.print(Text.assemble(("what the loss covers", LEARNED), ", ", ("what it does not", REST)))
