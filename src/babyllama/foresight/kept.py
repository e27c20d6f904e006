"""Weights on disk, looked at: whole numbers, checksums, and whether a saved model is still as good as recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import Rows
from babyllama.evals.bits import measure
from babyllama.foresight.evidence import Apart, Kept, Line, SavedWeights
from babyllama.model.transformer import Transformer
from babyllama.run import Run, damage
from babyllama.train.plan import Plan
from babyllama.train.state import read_shards, sharded
from babyllama.train.validation import LossSums, evaluate_loss

MOST = 16_384  # tokens of each corpus that a saved model is measured on
ROUNDING = 2.0**-7  # one step of bf16's seven bits
EMBEDDING = "embed_tokens.weight"


# ── tensors ────────────────────────────────────────────────────────────────────────────────────────────────────────
def masters(run: Run, used: np.ndarray | None = None) -> tuple[SavedWeights, ...]:
    """The float32 masters of every checkpoint that can be read."""
    found = []
    for step, folder in run.states():
        named = ((n, t) for n, t in _state(folder) if n.startswith("master."))
        found.append(weights(named, str(folder), used, damage(folder) or "") if step else None)
    return tuple(state for state in found if state is not None)


def _state(folder: Path) -> Iterable[tuple[str, Tensor]]:
    return read_shards(folder).items() if sharded(folder) else stored([folder / "state.safetensors"])


def _shown(folder: Path) -> dict[str, Tensor]:
    """Name → what was validated and saved at a checkpoint: the mean of the last weights where there is one, else the
    masters."""
    found: dict[str, Tensor] = {}
    for key, tensor in _state(folder):
        kind, _, name = key.partition(".")
        if kind == "average" or (kind == "master" and name not in found):
            found[name] = tensor
    return found


def stored(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of safetensors files, one at a time; nothing more where a file is damaged."""
    with suppress(OSError, SafetensorError):
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                yield from ((name, tensors.get_tensor(name)) for name in tensors.keys())  # noqa: SIM118  (not a dict)


def folder_weights(folder: Path, used: np.ndarray | None = None) -> SavedWeights | None:
    """Of a model folder."""
    return weights(stored(sorted(folder.glob("*.safetensors"))), str(folder), used)


def weights(named: Iterable[tuple[str, Tensor]], where: str, used: np.ndarray | None = None,
            changed: str = "") -> SavedWeights | None:  # fmt: skip
    """Of all matrices of real numbers in `named`; None when there are none.

    Args:
        used: ids that the data hold, to look for embedding rows that are all zeros.
        changed: what the folder's checksums say.
    """
    exact, entries, dead = {"bf16": 0, "fp16": 0}, 0, 0
    broken, zero = list[str](), list[str]()
    for name, tensor in named:
        if not tensor.is_floating_point():
            continue
        tensor = tensor.float()
        if not bool(tensor.isfinite().all()):
            broken.append(name)
        if tensor.ndim < 2:
            continue
        entries += tensor.numel()
        if not bool(tensor.any()):
            zero.append(name)
        elif name.endswith(EMBEDDING) and used is not None:
            rows = torch.from_numpy(used[used < len(tensor)].astype(np.int64))
            dead = int((~tensor[rows].any(1)).sum())
        for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
            exact[precision] += int((tensor.to(dtype).float() == tensor).sum())
    if not entries:
        return None
    precision = max(exact, key=lambda name: exact[name])
    return SavedWeights(where, exact[precision] / entries, precision, tuple(broken), tuple(zero), dead, changed)


def apart(model: Transformer, folder: Path, run: Run, steps: int) -> Apart | None:
    """A finished run's saved model beside its last step's masters; None where there is no such checkpoint."""
    states = [state for step, state in run.states() if step == steps]
    mine = dict(model.named_parameters())
    differ = total = 0
    worst, most = "", 0.0
    for name, master in _shown(states[-1]).items() if states else ():
        saved = mine.get(name)
        if saved is None or saved.shape != master.shape:
            continue
        gap = (saved.detach().float().cpu() - master.float()).abs()
        wrong = int((~(gap <= ROUNDING * master.float().abs() + 1e-7)).sum())
        differ, total = differ + wrong, total + master.numel()
        if wrong / master.numel() > most:
            worst, most = name, wrong / master.numel()
    return Apart(str(folder), str(states[-1]), differ / total, worst) if total else None


def put_masters(model: Transformer, folder: Path) -> Transformer:
    """The model with the weights in it that were shown at a checkpoint."""
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in _shown(folder).items():
            if (parameter := named.get(name)) is not None:
                parameter.copy_(tensor)
    return model


# ── as good as recorded? ───────────────────────────────────────────────────────────────────────────────────────────
def again(model: Transformer, where: str, lines: Sequence[Line], step: int, plan: Plan, context: int,
          prepared: Prepared, labels: tuple[str, ...], apart: bool, stream: Rows | None) -> Kept | None:  # fmt: skip
    """What a model saved after `step` loses on the validation that the run recorded at that step, or else on the rows
    of that step; None where the run recorded neither.

    Args:
        apart: how the training reads texts, as `DataRecipe.apart`.
        stream: the training's rows; None where its recorded loss is another one than the next token's.
    """
    held = [line for line in lines if line["kind"] == "validation" and line["step"] == step]
    if held:
        most = min(plan.validation_tokens, MOST)
        found = dict(measure(model, prepared, labels, "val", context, plan.micro_batch_size, most, apart))
        sums = sum(found.values(), LossSums())
        recorded = held[-1]["corpora"]
        if sums.tokens and all(label in recorded for label in found):
            before = sum(recorded[label]["loss"] * part.tokens for label, part in found.items()) / sums.tokens
            return Kept(where, f"validation at step {step}", before, sums.loss)
    trained = [line for line in lines if line["kind"] == "train" and line["step"] == step]
    if not trained or stream is None:
        return None
    rows = min(plan.rows, max(1, MOST // context))
    sums = evaluate_loss(model, [stream.batch((step - 1) * plan.rows, rows)])
    return Kept(where, f"the rows of step {step}", trained[-1]["loss"], sums.loss) if sums.tokens else None
