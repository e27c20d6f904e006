"""quality: train the classifier of prepare's filter `quality` on texts that are good and texts that are not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import xxhash
from pydantic import Field

from babyllama.atomic import check_writable
from babyllama.data.clean.quality import places, save, score, trained
from babyllama.data.sources.corpora import CorpusChoice, read_texts
from babyllama.errors import InputError
from babyllama.recipe import Recipe

HELD_OUT = 0.1  # of the texts, by their hash


class QualityRecipe(Recipe):
    """Two piles of texts, and where to write the model."""

    good: tuple[CorpusChoice, ...] = Field(
        min_length=1, description="texts as you want them", examples=["'good=[{path: books/}]'"]
    )
    bad: tuple[CorpusChoice, ...] = Field(
        min_length=1, description="texts as they come, such as unfiltered pages", examples=["'bad=[{path: crawl/}]'"]
    )
    out: Path = Field(default=Path("quality.safetensors"), description="the file to write")
    texts: int = Field(default=20_000, ge=10, description="the most that are read of each pile")
    epochs: int = Field(default=3, ge=1)
    rate: float = Field(default=0.5, gt=0, description="AdaGrad's learning rate")
    seed: int = 0


def main(recipe: QualityRecipe) -> None:
    """Train, tell how well it tells held-out texts apart, write the file."""
    check_writable(recipe.out)
    good, bad = (list(islice(read_texts(pile), recipe.texts)) for pile in (recipe.good, recipe.bad))
    (good, good_held), (bad, bad_held) = _parted(good), _parted(bad)
    if min(map(len, (good, bad, good_held, bad_held))) == 0:
        raise InputError("good and bad need some ten texts each, or more; give larger files")
    weights = trained(good, bad, recipe.epochs, recipe.rate, recipe.seed)
    likes, others = ([score(weights, places(text)) for text in held] for held in (good_held, bad_held))
    right = (sum(x >= 0.5 for x in likes) / len(likes) + sum(x < 0.5 for x in others) / len(others)) / 2
    figures = {"accuracy": round(right, 4), "area": round(area(likes, others), 4), "good": len(good), "bad": len(bad)}
    save(recipe.out, weights, figures)
    print(f"of {len(likes) + len(others):,} held-out texts {right:.1%} are told right (both kinds weighing alike), "
          f"area under the curve {figures['area']}")  # fmt: skip
    print(f"{recipe.out} is ready; use it with: 'clean=[…, {{kind: quality, model: {recipe.out}, at_least: 0.5}}]'")


def _parted(texts: list[str]) -> tuple[list[str], list[str]]:
    held = [xxhash.xxh3_64_intdigest(text.encode()) < HELD_OUT * 2.0**64 for text in texts]
    return ([t for t, h in zip(texts, held, strict=True) if not h], [t for t, h in zip(texts, held, strict=True) if h])


def area(likes: Sequence[float], others: Sequence[float]) -> float:
    """The chance that a good text scores above a bad one; ties count half."""
    scores = np.sort(np.asarray(others))
    below, equal = np.searchsorted(scores, likes, "left"), np.searchsorted(scores, likes, "right")
    return float(((below + equal) / 2).mean() / len(scores))
