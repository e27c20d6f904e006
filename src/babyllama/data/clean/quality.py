"""A quality score: how much a text is like good examples rather than bad ones, told by its runs of characters.

fastText's classifier (arXiv 1607.01759) in its linear form: every run of 1 to 3 characters has one weight, the score
is the logistic function of their mean. Runs are hashed to 2¹⁸ places, so the model is a file of a megabyte. It judges
style and subject, not truth, and only what the examples show it.

Not here: the verb that trains it (commands/quality.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from pydantic import Field

from babyllama.atomic import replace_file
from babyllama.data.clean.filters import Measured
from babyllama.data.clean.measures import BLANK, classes, codes_of, rolling
from babyllama.errors import InputError

PLACES = 1 << 18
_RUNS = (1, 2, 3)
_LONGEST = 4000  # characters looked at


def places(text: str) -> np.ndarray:
    """int64: the place of each run of 1 to 3 characters that are no blanks."""
    text = text[:_LONGEST]
    codes = codes_of(text)[classes(text) != BLANK]
    return np.concatenate([(rolling(codes, size) % np.uint64(PLACES)).astype(np.int64) for size in _RUNS])


def trained(good: Sequence[str], bad: Sequence[str], epochs: int, rate: float, seed: int) -> np.ndarray:
    """float32, PLACES + 1: weights and, last, the bias. AdaGrad, one text at a time, both kinds weighing alike."""
    features = [places(text) for text in (*good, *bad)]
    wanted = np.concatenate([np.ones(len(good)), np.zeros(len(bad))])
    weight = np.where(wanted == 1, 0.5 / max(len(good), 1), 0.5 / max(len(bad), 1)) * len(wanted)
    weights, squares = np.zeros(PLACES + 1, np.float64), np.full(PLACES + 1, 1e-8)
    order = np.random.default_rng(seed)
    for _ in range(epochs):
        for i in order.permutation(len(features)).tolist():
            if not len(features[i]):
                continue
            slope = weight[i] * (score(weights, features[i]) - wanted[i])
            where, counts = np.unique(features[i], return_counts=True)
            where, slopes = np.append(where, PLACES), np.append(slope * counts / len(features[i]), slope)
            squares[where] += slopes**2
            weights[where] -= rate * slopes / np.sqrt(squares[where])
    return weights.astype(np.float32)


def score(weights: np.ndarray, where: np.ndarray) -> float:
    """0 to 1; of a text without characters 0."""
    if not len(where):
        return 0.0
    return float(1 / (1 + np.exp(-(weights[where].mean() + weights[-1]))))


def save(path: Path, weights: np.ndarray, about: dict[str, Any]) -> None:
    """One safetensors file; what there is to say of it is one entry, since several have no order."""
    from safetensors.numpy import save_file

    replace_file(path, lambda partial: save_file({"weights": weights}, partial, {"babyllama": json.dumps(about)}))


@lru_cache(maxsize=2)
def _weights(path: Path, stamp: float) -> np.ndarray:
    from safetensors.numpy import load_file

    try:
        found = load_file(path)["weights"]
    except Exception as error:
        raise InputError(f"{path}: no quality model ({error}); make one with: babyllama quality") from None
    if found.shape != (PLACES + 1,):
        raise InputError(f"{path}: a quality model of {len(found)} weights, not {PLACES + 1}; train it again")
    return found


class Quality(Measured):
    """How likely a text is one of the good examples that a model of ``babyllama quality`` was trained on."""

    kind: Literal["quality"] = "quality"
    model: Path = Field(description="a file that babyllama quality made")
    at_least: float | None = Field(default=0.5, description="leave out texts below")

    def measure(self, text: str) -> float:
        return score(_weights(self.model, self.model.stat().st_mtime), places(text))

    def check(self) -> None:
        """Raise InputError where the file is not there or no such model."""
        if not self.model.is_file():
            raise InputError(f"{self.model}: no such file; make a quality model with: babyllama quality")
        _weights(self.model, self.model.stat().st_mtime)

    def fingerprint(self) -> str:
        return xxhash.xxh3_128_hexdigest(self.model.read_bytes())
