"""The reference's sums: how likely the model that a preference training starts from finds each answer of its data.

Computed once, before anything is learned, and kept beside the data in ``references/``, under a name that holds the hash
of the data and of all that decides the numbers; so another model's, or another data's, are never taken for them. Not
here: the sums of a batch (losses/answers.py), who the reference is (commands/teacher.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from babyllama.atomic import disk_errors, json_text, write_atomic
from babyllama.data.shards.shards import SPLITS, Prepared, TokenStore
from babyllama.data.streams.answers import Room, answers
from babyllama.data.streams.batches import collated
from babyllama.data.streams.mismatches import Mismatches
from babyllama.data.streams.rows import Row
from babyllama.errors import InputError
from babyllama.model.roles import exact
from babyllama.model.transformer import Transformer
from babyllama.train.engines.world import World
from babyllama.train.losses.answers import sums

FOLDER, MISMATCHED = "references", " mismatched"
_ROWS = 8  # of a batch

Sums = Mapping[tuple[str, str], np.ndarray]
"""(label, split, or split + MISMATCHED) → of each answer the sum of log-probabilities in nats, (documents,) float32;
NaN where it has more tokens than the model has positions."""


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

    def read(self, names: Sequence[tuple[str, str]]) -> Sums | None:
        """What is kept; None where that is not all of it."""
        try:
            found = load_file(self.file)
        except (OSError, SafetensorError):
            return None
        known = {name: found["/".join(name)] for name in names if "/".join(name) in found}
        return known if len(known) == len(names) else None

    def write(self, found: Sums) -> None:
        """Keep them, beside what is kept of other corpora, and remove those of data that are here no more."""
        try:
            before = load_file(self.file)
        except (OSError, SafetensorError):
            before = {}
        with disk_errors(self.file):
            self.file.parent.mkdir(exist_ok=True)
        write_atomic(self.file, save(before | {"/".join(name): array for name, array in found.items()}))
        for other in self.file.parent.glob("*.safetensors"):
            if not other.name.startswith(self.prepared.hash[:16]):
                other.unlink(missing_ok=True)


def reference_sums(reference: Reference, model: Transformer, labels: Sequence[str], world: World, device: torch.device,
                   dtype: torch.dtype, console: Console, mismatched: bool = False) -> Sums:  # fmt: skip
    """The sums by a model as it is now, on every rank: read, or computed by all ranks together and kept.

    Args:
        mismatched: of prompts with the answer to another, too.
    """
    names = [(label, part + tail) for label in labels for part in SPLITS for tail in ("", MISMATCHED)[: 1 + mismatched]]
    found = world.agree(reference.read(names) if world.first else None)
    if found is not None:
        return found
    model = _reader(model, device, dtype)
    work = [(name, *part) for name in names for part in _work(reference.prepared, *name, model)]
    mine = track(work[world.rank :: world.size], "reference", console=console, disable=not console.is_terminal)
    parts = [(name, documents, _sums(model, rows, device)) for name, documents, rows in mine]
    found = {name: np.full(_store(reference.prepared, *name).documents, np.nan, np.float32) for name in names}
    for name, documents, values in (part for parts in world.gather(parts) for part in parts):
        found[name][documents] = values
    if world.first:
        try:
            reference.write(found)
        except InputError as error:  # the data may be somebody else's
            console.print(f"the reference's sums are not kept: {error}", markup=False, soft_wrap=True)
    return found


def _store(prepared: Prepared, label: str, part: str) -> TokenStore:
    return prepared.store(label, part.removesuffix(MISMATCHED))


def _work(prepared: Prepared, label: str, part: str, model: Transformer
          ) -> Iterator[tuple[np.ndarray, Callable[[], list[Row]]]]:  # fmt: skip
    """Some rows after the other: (their documents, what makes them), without what the model has no positions for."""
    store, most = _store(prepared, label, part), model.config.max_position_embeddings
    if part.endswith(MISMATCHED):
        other = Mismatches(store, prepared.eos)
        context = _longest(other.inputs, most)
        packed = other.packed(context, most)

        def made(row: int) -> Row:
            return other.row(packed[row].tolist(), context)
    else:
        rows = answers(store, Room(_longest(np.diff(store.document_offsets) - 1, most), most), prepared.eos, 0,
                       single=True)  # fmt: skip
        packed, made = [rows.documents(number) for number in range(rows.rows)], rows.row
    for first in range(0, len(packed), _ROWS):
        numbers = range(first, min(first + _ROWS, len(packed)))
        yield np.concatenate([packed[n] for n in numbers]), lambda numbers=numbers: [made(n) for n in numbers]


def _reader(model: Transformer, device: torch.device, dtype: torch.dtype) -> Transformer:
    """A copy that computes as the training will."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    for name, parameter in copied.named_parameters():
        if not exact(name):
            parameter.data = parameter.data.to(dtype)
    return copied.to(device)


def _longest(inputs: np.ndarray, most: int) -> int:
    """The longest that has no more than `most`."""
    return int(inputs[inputs <= most].max(initial=1))


@torch.no_grad()
def _sums(model: Transformer, rows: Callable[[], list[Row]], device: torch.device) -> np.ndarray:
    """Of all answers of some rows, in order."""
    batch = collated(rows()).to(device)
    return sums(model, batch)[0][batch.extras["label"] != 0].float().cpu().numpy()


def of_split(found: Sums, labels: Iterable[str], split: str) -> dict[str, np.ndarray]:
    """The sums of one split, by label."""
    return {label: found[label, split] for label in labels if (label, split) in found}
