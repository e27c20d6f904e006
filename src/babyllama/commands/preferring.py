"""What a preference training needs beside the loop: rows with room for pairs, the reference, a validation of its own.

Not here: what is learned (train/losses/preference.py), the sums (train/reference.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console

from babyllama.commands.train_recipe import FromModel, TrainRecipe
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.answers import ANSWERS, Answers, Room, answers
from babyllama.data.streams.batches import Batch, collated
from babyllama.errors import InputError
from babyllama.load import model_folder, read_model, read_tokenizer
from babyllama.model.adapters import weights_hash
from babyllama.model.config import ModelConfig
from babyllama.model.lora import Lora
from babyllama.model.transformer import Transformer
from babyllama.train.engines.world import World
from babyllama.train.losses.preference import Preference
from babyllama.train.reference import Reference, Sums, of_split, reference_sums
from babyllama.train.tuning import OneBit
from babyllama.train.validation import PairSums, evaluate_answers


def labels_of(recipe: TrainRecipe, prepared: Prepared) -> tuple[str, ...]:
    """The corpora that a training reads."""
    weights = recipe.data.weights
    return tuple(prepared.corpora if weights is None else (label for label, weight in weights.items() if weight))


def check_kinds(recipe: TrainRecipe, prepared: Prepared) -> None:
    """Raise InputError where a corpus that is read is not of the kind that the objective learns from."""
    objective = recipe.objective
    reads = objective.reads if isinstance(objective, Preference) else frozenset({"text", "chat"})
    for label in labels_of(recipe, prepared):
        kind = prepared.store(label, "train").kind
        if kind in reads:
            continue
        remedy = f"name those of kind {' or '.join(sorted(reads))} in data.weights"
        if kind in ANSWERS and not isinstance(objective, Preference):
            remedy = ("use objective.kind=dpo, or prepare it with kind: chat" if kind == "preference" else
                      "use objective.kind=kto")  # fmt: skip
        raise InputError(f"{recipe.data.path}: {label} holds {_WORDS[kind]}, from which objective.kind="
                         f"{objective.kind} does not learn; {remedy}")  # fmt: skip


_WORDS = {"text": "plain texts", "chat": "chats", "preference": "preference pairs", "rated": "rated answers"}


def room_of(recipe: TrainRecipe, config: ModelConfig) -> Room:
    """Tokens of a row, and of an answer in it. Pairs fill two contexts, for each answer begins anew.

    Raises:
        InputError: a row is longer than the model allows.
    """
    positions = config.max_position_embeddings
    pairs = isinstance(recipe.objective, Preference) and "preference" in recipe.objective.reads
    most = 2 * positions if pairs else positions
    context = recipe.plan.context or most
    if context > most:
        what = f"twice the model's {positions}" if pairs else f"the model's {positions}"
        raise InputError(f"plan.context: {context} is above {what} positions")
    return Room(context, min(context, positions))


@dataclass(frozen=True)
class Comparison:
    """The reference of a training, found before the model is changed; `model`: None where the training's own start is.

    Attributes:
        weights: the hash of its files.
    """

    weights: str
    model: Transformer | None


def comparison(recipe: TrainRecipe, model: Transformer, tokenizer: str) -> Comparison | None:
    """The reference that the objective compares with. Raises InputError: it cannot be read, has another tokenizer."""
    objective, init = recipe.objective, recipe.init
    if not (isinstance(objective, Preference) and objective.compares and isinstance(init, FromModel)):
        return None
    if (given := getattr(objective, "reference", None)) is None:
        return Comparison(weights_hash(model_folder(init.path)), None)
    folder = model_folder(given)
    if read_tokenizer(folder).hash != tokenizer:
        raise InputError(f"objective.reference: {given} has another tokenizer; give one with init's")
    return Comparison(weights_hash(folder), read_model(folder).float())


def sums_of(recipe: TrainRecipe, prepared: Prepared, compared: Comparison, model: Transformer, world: World,
            device: torch.device, dtype: torch.dtype, console: Console) -> Sums:  # fmt: skip
    """The reference's sums for all that the training reads."""
    own = compared.model is None
    rope = recipe.init.rope if own and isinstance(recipe.init, FromModel) else None
    adapter = recipe.adapter  # some begin as another model than the one that was loaded
    other = isinstance(adapter, OneBit) or (isinstance(adapter, Lora) and adapter.base != "dense")
    start = adapter.model_dump_json() if own and other else ""
    decides = (compared.weights, "" if rope is None else rope.model_dump_json(), start, str(dtype))
    reader = model if compared.model is None else compared.model
    return reference_sums(Reference(prepared, decides), reader, labels_of(recipe, prepared), world, device, dtype,
                          console)  # fmt: skip


def pair_validator(recipe: TrainRecipe, prepared: Prepared, room: Room, objective: Preference, found: Sums | None
                   ) -> Callable[[Transformer], Mapping[str, PairSums]]:  # fmt: skip
    """What measures a model on held-out answers by the training's own objective."""
    plan = recipe.plan
    known = of_split(found or {}, labels_of(recipe, prepared), "val")
    rows = {label: held_out(prepared, label, "val", room, plan.validation_tokens, known.get(label))
            for label in labels_of(recipe, prepared)}  # fmt: skip

    def validate(model: Transformer) -> dict[str, PairSums]:
        measured = {label: evaluate_answers(model, objective, batches(part, plan.micro_batch_size))
                    for label, part in rows.items()}  # fmt: skip
        return {label: sums for label, sums in measured.items() if sums.count}

    return validate


def held_out(prepared: Prepared, label: str, split: str, room: Room, tokens: int | None, reference: np.ndarray | None
             ) -> Answers:  # fmt: skip
    """The first answers of a split, some `tokens` of them, at least one pair."""
    store = prepared.store(label, split)
    documents = store.documents
    if tokens is not None:
        documents = max(2, int(np.searchsorted(store.document_offsets, tokens, "right")) - 1)
    return answers(store, room, prepared.eos, 0, reference, min(documents, store.documents))


def batches(rows: Answers, size: int) -> Iterator[Batch]:
    """All rows in order, `size` at a time."""
    for first in range(0, rows.rows, size):
        yield collated([rows.row(number) for number in range(first, min(first + size, rows.rows))])
