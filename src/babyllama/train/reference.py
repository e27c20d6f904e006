"""The reference's sums: how likely the model that a preference training starts from finds each answer of its data.

Computed once, before anything is learned, and kept beside the data in ``references/``, under a name that holds the hash
of the data and of all that decides the numbers; so another model's, or another data's, are never taken for them. Not
here: the sums of a batch (losses/answers.py), who the reference is (commands/teacher.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from babyllama.atomic import json_text, write_atomic
from babyllama.data.shards.shards import SPLITS, Prepared
from babyllama.data.streams.answers import Answers, Room, answers
from babyllama.data.streams.batches import collated
from babyllama.errors import InputError
from babyllama.model.roles import exact
from babyllama.model.transformer import Transformer
from babyllama.train.engines.world import World
from babyllama.train.losses.answers import sums

FOLDER = "references"
_ROWS = 8  # of a batch

Sums = Mapping[tuple[str, str], np.ndarray]
"""(label, split) → of each answer the sum of log-probabilities in nats, (documents,) float32; NaN where it has more
tokens than the model has positions."""


@dataclass(frozen=True)
class Reference:
    """Where the sums of one model on one prepared folder are kept.

    `decides` is all but the data that decides them: the weights' hash, the RoPE, the precision.
    """

    prepared: Prepared
    decides: tuple[str, ...]

    @property
    def file(self) -> Path:
        """Its name holds both hashes."""
        model = xxhash.xxh3_64_hexdigest(json_text(self.decides).encode())
        return self.prepared.path / FOLDER / f"{self.prepared.hash[:16]}-{model}.safetensors"

    def read(self, labels: Sequence[str]) -> Sums | None:
        """What is kept; None where that is not all of it."""
        try:
            found = load_file(self.file)
        except (OSError, SafetensorError):
            return None
        names = [(label, split) for label in labels for split in SPLITS]
        if any(f"{label}/{split}" not in found for label, split in names):
            return None
        return {(label, split): found[f"{label}/{split}"] for label, split in names}

    def write(self, found: Sums) -> None:
        """Keep them, beside what is kept of other corpora, and remove those of data that are here no more."""
        try:
            before = load_file(self.file)
        except (OSError, SafetensorError):
            before = {}
        self.file.parent.mkdir(exist_ok=True)
        write_atomic(self.file, save(before | {"/".join(name): array for name, array in found.items()}))
        for other in self.file.parent.glob("*.safetensors"):
            if not other.name.startswith(self.prepared.hash[:16]):
                other.unlink(missing_ok=True)


def reference_sums(reference: Reference, model: Transformer, labels: Sequence[str], world: World, device: torch.device,
                   dtype: torch.dtype, console: Console) -> Sums:  # fmt: skip
    """The sums by a model as it is now, on every rank: read, or computed by all ranks together and kept."""
    found = world.agree(reference.read(labels) if world.first else None)
    if found is not None:
        return found
    model = _reader(model, device, dtype)
    rows = {
        (label, split): answers(store, Room(_longest(store.document_offsets, model), _positions(model)),
                                reference.prepared.eos, 0, single=True)
        for label in labels for split, store in reference.prepared.corpora[label].items()
    }  # fmt: skip
    work = [(name, first) for name, part in rows.items() for first in range(0, part.rows, _ROWS)]
    mine = track(work[world.rank :: world.size], "reference", console=console, disable=not console.is_terminal)
    parts = [(name, *_of_rows(model, rows[name], first, device)) for name, first in mine]
    found = {name: np.full(part.store.documents, np.nan, np.float32) for name, part in rows.items()}
    for name, documents, values in (part for parts in world.gather(parts) for part in parts):
        found[name][documents] = values
    if world.first:
        try:
            reference.write(found)
        except InputError as error:  # the data may be somebody else's
            console.print(f"the reference's sums are not kept: {error}", markup=False, soft_wrap=True)
    return found


def _reader(model: Transformer, device: torch.device, dtype: torch.dtype) -> Transformer:
    """A copy that computes as the training will."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    for name, parameter in copied.named_parameters():
        if not exact(name):
            parameter.data = parameter.data.to(dtype)
    return copied.to(device)


def _positions(model: Transformer) -> int:
    return model.config.max_position_embeddings


def _longest(offsets: np.ndarray, model: Transformer) -> int:
    """Inputs of the longest answer that the model has positions for."""
    inputs = np.diff(offsets) - 1
    return int(inputs[inputs <= _positions(model)].max(initial=1))


@torch.no_grad()
def _of_rows(model: Transformer, rows: Answers, first: int, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """(which documents, their sums) of some rows."""
    numbers = range(first, min(first + _ROWS, rows.rows))
    batch = collated([rows.row(number) for number in numbers]).to(device)
    there = batch.extras["label"] != 0
    documents = np.concatenate([rows.documents(number) for number in numbers])
    return documents, sums(model, batch)[0][there].float().cpu().numpy()


def of_split(found: Sums, labels: Iterable[str], split: str) -> dict[str, np.ndarray]:
    """The sums of one split, by label."""
    return {label: found[label, split] for label in labels if (label, split) in found}
