"""data show: one document by its number, or one row of a training exactly as it is read; as text or token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
from pydantic import Field, model_validator
from rich.console import Console

from babyllama.amounts import amount
from babyllama.commands.looking import LEARNED, REST, Chosen, Looking, coloured, legend, looking_at, say
from babyllama.commands.table import table_of
from babyllama.data.shards.samples import pieces
from babyllama.errors import InputError, at_home
from babyllama.tokenizer.token_bytes import visible
from babyllama.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from babyllama.commands.train_recipe import TrainRecipe
    from babyllama.data.streams.reading import Stretch

_LABELS = {1: "a good answer", -1: "a bad answer", 0: ""}


class DataShowRecipe(Chosen):
    """Which document or row."""

    document: int | None = Field(None, ge=0, description="its number among those that are chosen by corpora, split, "
                                 "least and most; default: 0")  # fmt: skip
    row: int | None = Field(None, ge=0, le=10**15, description="of a train run: this row in the order of training, "
                            "packed as it is read")  # fmt: skip
    tokens: bool = Field(False, description="token by token, with ids and positions")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.row is not None:
            given = [
                name for name in ("document", "split", "least", "most", "corpora") if name in self.model_fields_set
            ]
            if given:
                raise InputError(f"{given[0]}: says which document; with row=… leave it out")
        return self


def main(recipe: DataShowRecipe) -> None:
    """Find and show."""
    console = Console(highlight=False)
    with looking_at(recipe) as looking:
        if recipe.row is None:
            _document(recipe, looking, console)
        else:
            _row(recipe, looking, console)


def _document(recipe: DataShowRecipe, looking: Looking, console: Console) -> None:
    shown = recipe.selection(looking)[recipe.document or 0]
    legend(console)
    said = f"{shown.corpus}, {shown.split}, document {shown.document:,}: {amount(shown.tokens, 'token')}"
    say(console, f"{said}, {shown.kind}")
    for part in shown.parts:
        if part.title:
            say(console, f"── {part.title}, {amount(len(part.tokens), 'token')}")
        _tokens(part.tokens, part.learned, np.arange(len(part.tokens)), looking.tokenizer, recipe.tokens, console)


def _row(recipe: DataShowRecipe, looking: Looking, console: Console) -> None:
    from babyllama.commands.continuing import continued
    from babyllama.commands.starting import shape_of

    path = at_home(recipe.data)
    if looking.run is None or "plan" not in looking.run:
        raise InputError(f"row: {recipe.data} is no train run, whose recipe says how rows are made; give one, or "
                         "document=…")  # fmt: skip
    train = continued(path)
    tokenizer = looking.tokenizer
    context, origin, found = _read(train, recipe.row or 0, looking, shape_of(train, tokenizer))
    learned = sum(int(stretch.learned.sum()) for stretch in found)
    places = sum(len(stretch.tokens) for stretch in found if not stretch.padding)
    legend(console)
    say(console, f"row {recipe.row:,} of {recipe.data}: {origin}, {context:,} places, {learned:,} of "
                 f"{amount(places, 'token')} in the loss")  # fmt: skip
    for number, stretch in enumerate(found, start=1):
        if stretch.padding:
            say(console, f"── {amount(len(stretch.tokens), 'place')} of padding")
            continue
        titled = f", {_LABELS[stretch.label]}" if stretch.label else ""
        say(console, f"── {number}{titled}, {amount(len(stretch.tokens), 'token')}")
        _tokens(stretch.tokens, stretch.learned, stretch.positions, tokenizer, recipe.tokens, console)


def _read(train: TrainRecipe, row: int, looking: Looking, config: object) -> tuple[int, str, list[Stretch]]:
    """How long a row is, where it comes from, and what it holds; where a model writes its rows itself, the prompt."""
    from babyllama.commands.preferring import room_of
    from babyllama.commands.reading import stream_of, stretched
    from babyllama.commands.reinforcing import prompts_of
    from babyllama.data.streams.reading import Stretch, stretches
    from babyllama.data.streams.replay import Mixed

    room = room_of(train, config)  # type: ignore[arg-type]
    if train.rollouts is not None:
        (prompt,) = prompts_of(train, looking.prepared, "train", looking.tokenizer, room.context).taken(row, 1)
        ids, count = np.array([*prompt.tokens, *prompt.answer]), len(prompt.tokens)
        return room.context, "a prompt; its answers the model writes itself, here is the data's", [
            Stretch(ids, np.arange(len(ids)) >= count, np.arange(len(ids)))]  # fmt: skip
    stream = stream_of(train, looking.prepared, room, looking.tokenizer)
    if isinstance(stream, Mixed):
        ((new, number),) = stream.places(row, 1)
        origin, inner = ("new, ", stream.new) if new else ("replay, ", stream.replay)
    else:
        origin, inner, number = "", stream, row
    ((corpus, place),) = inner.places(number, 1)
    batch = stretched(train, config, stream, room.context).batch(row, 1)  # type: ignore[arg-type]
    where = f"{origin}{inner.labels[corpus]}, row {place:,} of {inner.corpora[corpus].rows:,}"
    return room.context, where, stretches(batch, 0, looking.prepared.eos)


def _tokens(tokens: np.ndarray, learned: np.ndarray, positions: np.ndarray, tokenizer: Tokenizer, each: bool,
            console: Console) -> None:  # fmt: skip
    if not each:
        console.print(coloured(pieces(tokens.tolist(), learned.tolist(), tokenizer), console), soft_wrap=True)
        return
    table = table_of(["token"], ["id", "position"], "in the loss")
    for token, kept, position in zip(tokens.tolist(), learned.tolist(), positions.tolist(), strict=True):
        table.add_row(visible(tokenizer, token), str(token), str(position), "yes" if kept else "",
                      style=LEARNED if kept else REST)  # fmt: skip
    console.print(table, markup=False)
