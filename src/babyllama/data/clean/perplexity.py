"""How well a small model of one's own expects a text, in bits per byte: CCNet's filter (arXiv 1911.00359) with a LLaMA.

A model that was trained on good texts (an encyclopedia, books) is surprised by what is written otherwise. Too low is
suspicious, too: lists and templates that repeat. The figure judges style, not truth; a text in another language or of
another subject is rarer, not worse.

The model is read in each worker once, and computes on one thread in float32, whatever the machine is asked for, so that
the number of workers changes nothing. Not here: adapters and packed models, which are merged first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import xxhash
from pydantic import Field, model_validator

from babyllama.data.clean.filters import Measured
from babyllama.errors import InputError

if TYPE_CHECKING:
    from babyllama.model.transformer import Transformer
    from babyllama.tokenizer.tokenizer import Tokenizer

_ROWS = 32  # of one pass
_LOGITS = 1 << 22  # of one pass through the head: 16 MB
_MARKS = ("*.safetensors", "config.json", "tokenizer.json")


class Perplexity(Measured):
    """Bits per byte of a text by a model of this program, or of a Hugging Face LLaMA folder; lower is more expected.

    With `quantiles` the limits are those of the first texts, as the filters before leave them.
    """

    kind: Literal["perplexity"] = "perplexity"
    top: ClassVar[float] = 4.0
    together: ClassVar[int] = 256
    model: Path = Field(description="a run or a Hugging Face LLaMA folder; small is fast")
    characters: int = Field(1000, ge=20, description="so many of each text are read")
    quantiles: tuple[float, float] | None = Field(
        None, description="keep the texts between these shares of all, the most expected first, such as [0, 0.66]"
    )
    sample: int = Field(500, ge=10, description="texts whose bits per byte give the limits of quantiles")

    @model_validator(mode="after")
    def _limits(self) -> Self:
        if self.quantiles is not None:
            if self.at_least is not None or self.at_most is not None:
                raise ValueError("quantiles: set the limits by themselves; leave at_least and at_most out")
            low, high = self.quantiles
            if not 0 <= low < high <= 1:
                raise ValueError(f"quantiles: must be two shares in order, such as [0, 0.66], got [{low:g}, {high:g}]")
        return self

    def measure(self, text: str) -> float:
        return self.measures([text])[0]

    def measures(self, texts: Sequence[str]) -> list[float]:
        scorer = _scorer(self.model, _stamp(self.model))
        return scorer.bits_per_byte([text[: self.characters] for text in texts])

    def settled(self, texts: Callable[[], Iterable[str]]) -> Perplexity:
        """With limits instead of quantiles. Raises InputError where there is no text to find them by."""
        if self.quantiles is None:
            return self
        found = self.measures(list(islice(texts(), self.sample)))
        if not found:
            raise InputError("clean: perplexity: quantiles need texts, and there are none; give at_most instead")
        low, high = (round(float(np.quantile(found, share)), 4) for share in self.quantiles)
        first, last = self.quantiles
        limits = {"at_least": low if first > 0 else None, "at_most": high if last < 1 else None}
        return self.model_copy(update={**limits, "quantiles": None})

    def check(self) -> None:
        """Raise InputError where there is no model that can be read, or none that writes."""
        _scorer(self.model, _stamp(self.model))

    def fingerprint(self) -> str:
        return _digest(self.model, _stamp(self.model))


def _folder(path: Path) -> Path:
    """The one with config.json: `path` or, of a run, its ``model/``."""
    found = next((folder for folder in (path / "model", path) if (folder / "config.json").is_file()), None)
    if found is None:
        if any((folder / "adapter_config.json").is_file() for folder in (path / "model", path)):
            raise InputError(f"{path}: an adapter; merge it first with: babyllama merge")
        raise InputError(f"{path}: no run with a model and no Hugging Face LLaMA folder; train one, or give another")
    return found


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Which files they are, so that others at the same path are read anew."""
    files = sorted(file for mark in _MARKS for file in _folder(path).glob(mark))
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@lru_cache(maxsize=4)
def _digest(path: Path, stamp: object) -> str:
    from babyllama.model.adapters import weights_hash

    folder = _folder(path)
    rest = b"".join((folder / name).read_bytes() for name in _MARKS[1:] if (folder / name).is_file())
    return xxhash.xxh3_128_hexdigest(weights_hash(folder).encode() + rest)


@lru_cache(maxsize=1)
def _scorer(path: Path, stamp: object) -> Scorer:
    from babyllama.model.checkpoint import load_model
    from babyllama.tokenizer.tokenizer import Tokenizer

    folder = _folder(path)
    model = load_model(folder).float().eval().requires_grad_(False)
    if model.config.reward:
        raise InputError(f"{path}: a reward model, which expects no text; give one that writes")
    return Scorer(model, Tokenizer.load(folder))


@dataclass(frozen=True, eq=False)
class Scorer:
    """A model that is ready, and its tokenizer."""

    model: Transformer
    tokenizer: Tokenizer

    def bits_per_byte(self, texts: Sequence[str]) -> list[float]:
        """Of each text, by itself; one longer than the context in pieces, each of which begins anew."""
        context = self.model.config.max_position_embeddings
        start, rows = self.tokenizer.start_ids[-1], list[tuple[int, list[int]]]()
        for number, ids in enumerate(self.tokenizer.encode_batch(texts)):
            rows += [(number, ids[first : first + context]) for first in range(0, len(ids), context)]
        rows.sort(key=lambda row: len(row[1]))  # alike ones together; the sort is stable
        nats = [0.0] * len(texts)
        with _one_thread():
            for first in range(0, len(rows), _ROWS):
                part = rows[first : first + _ROWS]
                for (number, _), found in zip(part, self._nats([ids for _, ids in part], start), strict=True):
                    nats[number] += found
        sizes = (max(len(text.encode()), 1) for text in texts)
        return [found / math.log(2) / size for found, size in zip(nats, sizes, strict=True)]

    def _nats(self, rows: list[list[int]], start: int) -> list[float]:
        """Of each row, its tokens' negative log-probabilities added up."""
        import torch
        from torch.nn.functional import cross_entropy

        longest = max(map(len, rows))
        inputs = torch.tensor([[start, *ids[:-1], *[start] * (longest - len(ids))] for ids in rows])
        targets = torch.tensor([ids + [-100] * (longest - len(ids)) for ids in rows])
        with torch.inference_mode():
            hidden = self.model.hidden(inputs).flatten(0, 1)
            size = max(1, _LOGITS // self.model.config.vocab_size)
            losses = [
                cross_entropy(self.model.lm_head(hidden[i : i + size]), part, ignore_index=-100, reduction="none")
                for i, part in zip(range(0, len(hidden), size), targets.flatten().split(size), strict=True)
            ]
        return torch.cat(losses).view(targets.shape).double().sum(1).tolist()


@contextmanager
def _one_thread() -> Iterator[None]:
    """The order of additions, and so the last bits, hang on the number of threads."""
    import torch

    before: Any = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
