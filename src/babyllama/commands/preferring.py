"""What a preference training needs beside the loop: rows with room for pairs, the reference, a validation of its own.

Not here: what is learned (train/losses/preference.py), the sums (train/reference.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console

from babyllama.commands.starting import check_head
from babyllama.commands.train_recipe import FromModel, TrainRecipe
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.answers import ANSWERS, Answers, Room, answers
from babyllama.data.streams.batches import Batch, Rows, Stream, collated
from babyllama.data.streams.mismatches import Mismatches
from babyllama.errors import InputError
from babyllama.load import DTYPES, model_folder, read_model, read_tokenizer
from babyllama.model.adapters import weights_hash
from babyllama.model.config import ModelConfig
from babyllama.model.lora import Lora
from babyllama.model.transformer import Transformer
from babyllama.train.drift import DriftRows, drift_of, with_drift
from babyllama.train.engines.world import World
from babyllama.train.losses.kto import Kto
from babyllama.train.losses.preference import Preference
from babyllama.train.losses.reward import RewardModel
from babyllama.train.reference import MISMATCHED, Reference, Sums, of_split, reference_sums
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


def comparison(recipe: TrainRecipe, model: Transformer, tokenizer: str, longest: int = 0) -> Comparison | None:
    """The reference that the objective compares with. `longest`: tokens that an answer may have with its prompt.

    Raises:
        InputError: it cannot be read, has another tokenizer or fewer positions.
    """
    objective, init = recipe.objective, recipe.init
    if not (isinstance(objective, Preference) and objective.compares and isinstance(init, FromModel)):
        return None
    if (given := getattr(objective, "reference", None)) is None:
        return Comparison(weights_hash(model_folder(init.path)), None)
    folder = model_folder(given)
    if read_tokenizer(folder).hash != tokenizer:
        raise InputError(f"objective.reference: {given} has another tokenizer; give one with init's")
    found = read_model(folder).float()
    check_head(found, "objective.reference", given)
    if found.config.max_position_embeddings < longest:
        positions = found.config.max_position_embeddings
        raise InputError(f"objective.reference: {given} has {positions:,} positions, and answers here may have "
                         f"{longest:,} tokens with their prompt; give plan.context={positions}, or another reference"
                         )  # fmt: skip
    return Comparison(weights_hash(folder), found)


def sums_of(recipe: TrainRecipe, prepared: Prepared, compared: Comparison, model: Transformer, world: World,
            device: torch.device, dtype: torch.dtype, console: Console) -> Sums:  # fmt: skip
    """The reference's sums for all that the training reads."""
    reader = model if compared.model is None else compared.model
    return reference_sums(Reference(prepared, _decides(recipe, compared.weights, dtype)), reader,
                          labels_of(recipe, prepared), world, device, dtype, console,
                          isinstance(recipe.objective, Kto))  # fmt: skip


def kept_sums(recipe: TrainRecipe, prepared: Prepared, label: str, split: str, precision: str) -> np.ndarray | None:
    """What the reference of a training finds of one split; None where that was not kept. Raises InputError."""
    if not (isinstance(recipe.objective, Preference) and recipe.objective.compares and precision in DTYPES):
        return None
    assert isinstance(recipe.init, FromModel)
    weights = weights_hash(model_folder(getattr(recipe.objective, "reference", None) or recipe.init.path))
    found = Reference(prepared, _decides(recipe, weights, DTYPES[precision])).read([(label, split)])
    return None if found is None else found[label, split]


def _decides(recipe: TrainRecipe, weights: str, dtype: torch.dtype) -> tuple[str, ...]:
    """All but the data that decides a reference's sums."""
    own = getattr(recipe.objective, "reference", None) is None
    rope = recipe.init.rope if own and isinstance(recipe.init, FromModel) else None
    adapter = recipe.adapter  # some begin as another model than the one that was loaded
    other = isinstance(adapter, OneBit) or (isinstance(adapter, Lora) and adapter.base != "dense")
    start = adapter.model_dump_json() if own and other else ""
    return weights, "" if rope is None else rope.model_dump_json(), start, str(dtype)


def rows_of(recipe: TrainRecipe, prepared: Prepared, stream: Stream, found: Sums) -> Rows:
    """The stream with what the reference finds of its answers; for KTO also with z."""
    compared = stream.compared(of_split(found, stream.labels, "train"))
    if not isinstance(recipe.objective, Kto):
        return compared
    known = of_split(found, stream.labels, "train" + MISMATCHED)
    apart = [Mismatches(prepared.store(label, "train"), prepared.eos, known[label]) for label in stream.labels]
    return DriftRows(compared, apart, recipe.objective.beta, recipe.plan.rows, recipe.plan.micro_batch_size)


def pair_validator(recipe: TrainRecipe, prepared: Prepared, room: Room, objective: Preference, found: Sums | None
                   ) -> Callable[[Transformer], Mapping[str, PairSums]]:  # fmt: skip
    """What measures a model on held-out answers by the training's own objective."""
    plan = recipe.plan
    known = of_split(found or {}, labels_of(recipe, prepared), "val")
    apart = of_split(found or {}, known, "val" + MISMATCHED)
    whole = isinstance(objective, RewardModel)
    rows = {label: held_out(prepared, label, "val", room, plan.validation_tokens, known.get(label), whole)
            for label in labels_of(recipe, prepared)}  # fmt: skip

    def validate(model: Transformer) -> dict[str, PairSums]:
        measured = {}
        for label, part in rows.items():
            given = batches(part, plan.micro_batch_size)
            if isinstance(objective, Kto):
                z = drift_of(model, part, Mismatches(part.store, part.eos, apart[label]), objective.beta)
                given = (with_drift(batch, z) for batch in given)
            measured[label] = evaluate_answers(model, objective, given)
        return {label: sums for label, sums in measured.items() if sums.count}

    return validate


def held_out(prepared: Prepared, label: str, split: str, room: Room, tokens: int | None,
             reference: np.ndarray | None, whole: bool = False) -> Answers:  # fmt: skip
    """The first answers of a split, some `tokens` of them, at least one pair."""
    store = prepared.store(label, split)
    documents = store.documents
    if tokens is not None:
        documents = max(2, int(np.searchsorted(store.document_offsets, tokens, "right")) - 1)
    return answers(store, room, prepared.eos, 0, reference, min(documents, store.documents), whole=whole)


def batches(rows: Answers, size: int) -> Iterator[Batch]:
    """All rows in order, `size` at a time."""
    for first in range(0, rows.rows, size):
        yield collated([rows.row(number) for number in range(first, min(first + size, rows.rows))])
