"""Two texts compared by their characters: BLEU, ROUGE, and the scores of LongBench's Chinese tests. Pure functions.

White space never counts. LongBench cuts words with jieba; characters need no dictionary and order models alike, but the
figures are not the published ones. Not here: which answers (answers.py, free.py).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

ORDERS = 4  # BLEU-4
NUMBERS = 2 * ORDERS + 2  # that `matches` gives


def plain(text: str) -> str:
    """Lower case, without punctuation, signs and white space."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).lower() if c.isalnum())


def _runs(text: str, size: int) -> Counter[str]:
    return Counter(text[i : i + size] for i in range(len(text) - size + 1))


def matches(said: str, reference: str) -> tuple[int, ...]:
    """Runs of 1 … 4 characters that both have, then how many `said` has, then both lengths: what BLEU adds up."""
    said, reference = ("".join(text.split()) for text in (said, reference))
    shared = [(_runs(said, n) & _runs(reference, n)).total() for n in range(1, ORDERS + 1)]
    return *shared, *(max(0, len(said) - n) for n in range(ORDERS)), len(said), len(reference)


def bleu(sums: Sequence[int]) -> float:
    """Of the sums of `matches` over a corpus, 0 … 1; orders without a match are smoothed as sacrebleu does ("exp").

    Source: Papineni 2002; sacrebleu 2.6 with its tokenizer "char".
    """
    shared, possible, (length, wanted) = sums[:ORDERS], sums[ORDERS : 2 * ORDERS], sums[2 * ORDERS :]
    if not all(possible):
        return 0.0
    total, halves = 0.0, 1.0
    for hit, count in zip(shared, possible, strict=True):
        if not hit:
            halves *= 2
        total += math.log((hit or 1 / halves) / count)
    if not any(shared):
        return 0.0
    return math.exp(total / ORDERS + min(0.0, 1 - wanted / length))


def rouge(said: str, reference: str, size: int) -> float:
    """ROUGE-N's F1 by runs of `size` characters. Source: Lin 2004."""
    mine, theirs = (_runs("".join(text.split()), size) for text in (said, reference))
    total = mine.total() + theirs.total()
    return 2 * (mine & theirs).total() / total if total else 0.0


def rouge_l(said: str, reference: str) -> float:
    """F1 of the longest row of characters that both have in this order."""
    mine, theirs = ("".join(text.split()) for text in (said, reference))
    row = [0] * (len(theirs) + 1)
    for one in mine:
        diagonal = 0
        for i, other in enumerate(theirs, start=1):
            diagonal, row[i] = row[i], diagonal + 1 if one == other else max(row[i], row[i - 1])
    return 2 * row[-1] / (len(mine) + len(theirs)) if row[-1] else 0.0


def character_f1(answer: str, reference: str) -> float:
    """2·|A ∩ R| / (|A| + |R|) over the multisets of characters that are not white space; two empty texts give 1.

    Order does not count: it measures whether the right characters are there, as often as they should be.
    """
    return rouge(answer, reference, 1) if "".join((answer + reference).split()) else 1.0


# ── LongBench ──────────────────────────────────────────────────────────────────────────────────────────────────────
def long_score(group: str, said: str, references: Sequence[str], classes: Sequence[str] = ()) -> float:
    """As the benchmark scores its test `group` (its eval.py and metrics.py): the best of the references, 0 … 1."""
    if group == "lsht":
        said = said.strip().partition("\n")[0]
        named = [name for name in classes if name in said]
        return max((1 / len(named) if right in named else 0.0) for right in references)
    if group == "passage_retrieval_zh":
        numbers = re.findall(r"\d+", unicodedata.normalize("NFKC", said))
        wanted = {found[0] for right in references if (found := re.findall(r"\d+", right))}
        return sum(number in wanted for number in numbers) / len(numbers) if numbers else 0.0
    if group in ("dureader", "vcsum"):
        return max(rouge_l(said, right) for right in references)
    return max(rouge(plain(said), plain(right), 1) for right in references)
