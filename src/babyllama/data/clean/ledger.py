"""What every filter did: documents and characters in and out, why, how its numbers are spread, and a few samples.

A ledger is plain data that is added up: over the documents of a blob, then over blobs, always to the same, whoever
made the parts. The samples are those with the smallest hash of their text, so they do not depend on the order either.
Not here: filters, and how it is shown (commands/audit.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import xxhash

from babyllama.data.clean.personal import Personal

SAMPLES = 4  # kept of each filter: so many that it dropped, and so many that it changed
EXCERPT = 160  # characters of a sample
_MARGIN = 80
BINS = 20  # of a histogram from 0 to a filter's `top`; the last one has all beyond
_MASK = Personal()
Json = dict[str, Any]


@dataclass
class Entry:
    """One filter's line. `characters` came in, `dropped_characters` went out with documents that were dropped."""

    filter: str
    documents: int = 0
    characters: int = 0
    dropped: int = 0
    dropped_characters: int = 0
    changed: int = 0
    characters_out: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    top: float | None = None
    bins: list[int] = field(default_factory=list)
    samples: dict[str, list[Json]] = field(default_factory=lambda: {"dropped": [], "changed": [], "noticed": []})

    def saw(self, before: str, after: str | None, reason: str = "") -> None:
        """One document came in as `before` and went out as `after`, or was dropped."""
        self.documents += 1
        self.characters += len(before)
        if after is None:
            self.dropped += 1
            self.dropped_characters += len(before)
            self.reasons[reason] += 1
            self._sample("dropped", before, None, reason)
        else:
            self.characters_out += len(after)
            if reason:  # it stays, but is to be seen
                self.reasons[reason] += 1
                self._sample("noticed", before, None, reason)
            if after is not before and after != before:
                self.changed += 1
                self._sample("changed", before, after, reason)

    def measured(self, value: float, top: float) -> None:
        """Count a number in the histogram; one with a `top` above 1,000 by its logarithm."""
        self.top, self.bins = top, self.bins or [0] * BINS
        share = math.log2(max(value, 1)) / math.log2(top) if top > 1000 else value / top
        self.bins[min(max(int(share * BINS), 0), BINS - 1)] += 1

    def _sample(self, what: str, before: str, after: str | None, reason: str) -> None:
        kept = self.samples[what]
        rank = xxhash.xxh3_64_intdigest(before.encode("utf-8", "surrogatepass"))
        if len(kept) < SAMPLES or rank < int(kept[-1]["rank"], 16):
            start = 0 if after is None else _differ(before, after)
            found = {"rank": f"{rank:016x}", "reason": reason, "before": excerpt(before, start)}
            found |= {} if after is None else {"after": excerpt(after, start)}
            self.samples[what] = _smallest([*kept, found])

    def json(self) -> Json:
        """As the manifest holds it."""
        measured = {"top": self.top, "bins": self.bins} if self.bins else {}
        return {"filter": self.filter, "documents": self.documents, "characters": self.characters,
                "dropped": self.dropped, "dropped_characters": self.dropped_characters, "changed": self.changed,
                "characters_out": self.characters_out, "reasons": dict(sorted(self.reasons.items())), **measured,
                "samples": self.samples}  # fmt: skip


def added(ledgers: Iterable[list[Json]]) -> list[Json]:
    """Ledgers of parts → that of the whole, entry by entry. All have the same entries in the same order."""
    whole: list[Json] = []
    for ledger in ledgers:
        if not whole:
            whole = [{**entry, "samples": {**entry["samples"]}} for entry in ledger]
            continue
        for entry, more in zip(whole, ledger, strict=True):
            for key in ("documents", "characters", "dropped", "dropped_characters", "changed", "characters_out"):
                entry[key] += more[key]
            reasons = Counter(entry["reasons"]) + Counter(more["reasons"])
            entry["reasons"] = dict(sorted(reasons.items()))
            if more.get("bins"):
                pairs = zip(entry.get("bins") or [0] * BINS, more["bins"], strict=True)
                entry |= {"top": more["top"], "bins": [a + b for a, b in pairs]}
            for what, samples in more["samples"].items():
                entry["samples"][what] = _smallest([*entry["samples"][what], *samples])
    return [_ordered(entry) for entry in whole]


def _ordered(entry: Json) -> Json:
    """Samples last, also where the first part had no histogram: the order must not tell which part came first."""
    return {**{key: value for key, value in entry.items() if key != "samples"}, "samples": entry["samples"]}


def _smallest(samples: list[Json]) -> list[Json]:
    """The first by rank, none twice."""
    distinct = {(sample["rank"], sample["reason"]): sample for sample in samples}
    return [distinct[key] for key in sorted(distinct)[:SAMPLES]]


def _differ(before: str, after: str) -> int:
    """A few characters before the place where they part."""
    low, high = 0, min(len(before), len(after))
    while low < high:  # the longest common beginning
        middle = (low + high + 1) // 2
        low, high = (middle, high) if before[:middle] == after[:middle] else (low, middle - 1)
    return max(low - 20, 0)


def excerpt(text: str, start: int) -> str:
    """A stretch of a text, masked before it is cut, and cut well inside: half a number would not be recognised."""
    first, last = max(start - _MARGIN, 0), start + EXCERPT + _MARGIN
    masked = _MASK(text[first:last])
    assert isinstance(masked, str)
    left, right = (_MARGIN // 2 if first else 0), (_MARGIN // 2 if last < len(text) else 0)
    cut = masked[left : max(len(masked) - right, left)][:EXCERPT]
    return ("…" if first else "") + cut + ("…" if start + EXCERPT < len(text) else "")
