"""Evaluation items in the texts: 13 characters in a row that occur in an item.

Only letters, digits and hanzi count; an item that has fewer than 13 of them cannot be told. The one rule for training
data as it is prepared, and for a trained model's corpora (evals/overlap.py). Not here: which items there are.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from babyllama.data.clean.filters import Drop, Measured
from babyllama.data.clean.measures import among, codes_of, rolling

GRAM = 13


@lru_cache(maxsize=1)
def _counted() -> np.ndarray:
    """bool, 1,114,112: whether a character is a letter, a digit or a hanzi."""
    return np.fromiter((chr(code).isalnum() for code in range(0x110000)), bool, 0x110000)


def grams(text: str) -> np.ndarray:
    """Hashes (uint64) of every run of 13 characters."""
    codes = codes_of(text)
    return rolling(codes[_counted()[codes]], GRAM)


class HeldItems(Measured):
    """The share of a document's runs of 13 characters that evaluation items have, too; of a chat, of all it says.

    `items` is a file of the items' hashes, sorted, as uint64; `digest` names its content.
    """

    kind: Literal["leaks"] = "leaks"
    chats: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    items: Path
    digest: str
    action: Literal["report", "drop"] = Field(default="drop", description="count such documents, or leave them out")

    def measure(self, text: str) -> float:
        found = grams(text)
        known = _items(self.items, self.digest)
        return float(among(found, known).mean()) if len(found) and len(known) else 0.0

    def judge(self, value: float) -> Drop | None:
        return Drop("holds an evaluation item", stays=self.action == "report") if value > 0 else None


@lru_cache(maxsize=1)
def _items(path: Path, digest: str) -> np.ndarray:
    return np.fromfile(path, "<u8")
