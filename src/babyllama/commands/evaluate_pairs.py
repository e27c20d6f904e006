"""evaluate on preference pairs: which it measures, what they are compared with, the table. Not here: the accuracy
(evals/pairs.py), losses of texts and chats (evaluate.py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from babyllama.commands.preferring import held_out, kept_sums
from babyllama.commands.table import table_of
from babyllama.commands.train_recipe import TrainRecipe
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.answers import Room
from babyllama.errors import InputError
from babyllama.evals.pairs import pair_accuracy
from babyllama.load import Loaded
from babyllama.recipe import load_recipe
from babyllama.run import Run


def measured_pairs(loaded: Loaded, run: Path, prepared: Prepared, labels: tuple[str, ...], split: str, rows: int,
                   tokens: int | None) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
    """(label, figures) of each corpus of pairs that has some in the split."""
    positions = loaded.model.config.max_position_embeddings
    for label in labels:
        if prepared.store(label, split).kind != "preference":
            continue
        known = _reference(run, prepared, label, split)
        found = pair_accuracy(loaded.model, held_out(prepared, label, split, Room(2 * positions, positions), tokens,
                                                     known, loaded.model.config.reward), rows)  # fmt: skip
        if found is not None:
            yield label, found.figures


def _reference(run: Path, prepared: Prepared, label: str, split: str) -> np.ndarray | None:
    """What the reference of the run's training finds of the answers, where that was kept."""
    with suppress(InputError):
        recipe = load_recipe(TrainRecipe, str(run / "recipe.yaml"))
        return kept_sums(recipe, prepared, label, split, Run.open(run).inputs.get("precision", ""))
    return None


def pair_table(found: dict[str, dict[str, Any]], what: str) -> Table:
    """Accuracy with its interval, by either measure."""
    ways = {
        "by_mean": "right, by\nmean log p",
        "by_ratio": "right, against\nthe reference",
        "by_score": "right, by\nscore",
    }
    scored = any(figures["by_score"] for figures in found.values())
    shown = ["by_score"] if scored else ["by_mean", "by_ratio"]
    sides = "score:\nbetter" if scored else "log p a token:\nbetter"
    columns = ["pairs", *(ways[key] for key in shown), sides, "worse"]
    table = table_of(["corpus"], columns, title=f"preference pairs, {what}")
    for label, figures in found.items():
        table.add_row(label, f"{figures['pairs']:,}", *(_interval(figures[key]) for key in shown),
                      f"{figures['chosen']:.3f}", f"{figures['rejected']:.3f}")  # fmt: skip
    return table


def _interval(found: dict[str, float] | None) -> str:
    return "–" if found is None else f"{found['accuracy']:.1%} ({found['low']:.1%}–{found['high']:.1%})"
