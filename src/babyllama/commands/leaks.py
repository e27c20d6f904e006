"""Which evaluation items prepare looks for in its corpora: those of tests that evaluate knows, and of own files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import xxhash
from pydantic import Field, model_validator

from babyllama.atomic import write_atomic
from babyllama.data.clean.leaks import HeldItems, grams
from babyllama.data.sources.corpora import CorpusChoice, read_texts
from babyllama.evals.overlap import grams_of
from babyllama.evals.tasks import TaskChoice
from babyllama.recipe import Recipe, validate


class Leaks(Recipe):
    """Items of tests. A document that has 13 characters in a row of one is counted, or left out."""

    tasks: tuple[TaskChoice, ...] = Field(default=(), description="tests that evaluate knows, such as ceval")
    task_data: Path | None = Field(default=None, description="a folder with the tests' files; default: the hub")
    files: tuple[str, ...] = Field(default=(), description="files, folders or globs of which each text is an item")
    action: Literal["report", "drop"] = Field(default="drop", description="count such documents, or leave them out")

    @model_validator(mode="after")
    def _something(self) -> Leaks:
        if not self.tasks and not self.files:
            raise ValueError("give tasks or files: what must not be in the corpora")
        return self

    def hashes(self) -> Hashes:
        """Of every item.

        Raises:
            InputError: a test's files are not there, or hold what is no item.
        """
        texts = read_texts(validate(CorpusChoice, {"path": path, "kind": "text"}, "leaks.files") for path in self.files)
        found = [grams_of(item) for choice in self.tasks for item in choice.items(self.task_data).asked]
        return Hashes(np.unique(np.concatenate([np.zeros(0, np.uint64), *found, *map(grams, texts)])), self.action)


class Hashes(NamedTuple):
    """What no document may hold: `sorted`, (N,) uint64."""

    sorted: np.ndarray
    action: Literal["report", "drop"]

    def kept(self, folder: Path) -> HeldItems:
        """The filter, whose hashes are written to ``leaks.u64`` in `folder`."""
        write_atomic(folder / "leaks.u64", self.sorted.tobytes())
        digest = xxhash.xxh3_128_hexdigest(self.sorted.tobytes())
        return HeldItems(items=folder / "leaks.u64", digest=digest, action=self.action)
