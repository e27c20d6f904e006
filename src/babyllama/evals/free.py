"""Tests with free answers: the model writes, greedily, and what it wrote is compared with the references.

    number   the last number of the answer is the reference's
    span     the answer is one of the references, but for punctuation and white space; F1 as CMRC 2018 counts it

Of a text that is continued its first line is the answer, of a chat all. What no knowledge would give is measured too:
the model's own answers, shuffled over the questions. Not here: which tests there are (tasks.py), other answers of
chats (answers.py).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from babyllama.atomic import json_text, write_atomic
from babyllama.evals.choices import Form
from babyllama.evals.items import Item, Items
from babyllama.evals.statistics import normal_tail, verdict, wilson
from babyllama.evals.suites import PORTION, Subject, kept_marks
from babyllama.marking import last_number
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Free:
    """How free answers are marked, and how many tokens one may have. Of an item `options` are the references."""

    mark: Literal["number", "span"]
    tokens: int

    def right(self, said: str, references: Sequence[str]) -> bool:
        return self.plain(said) in {self.plain(reference) for reference in references} - {""}

    def plain(self, text: str) -> str:
        """What of an answer is compared."""
        if self.mark == "number":
            return last_number(text)
        return "".join(c for c in unicodedata.normalize("NFKC", text).lower() if c.isalnum())


class Prompt(NamedTuple):
    """One item as tokens. `cut`: its beginning is missing."""

    item: Item
    tokens: list[int]
    cut: bool


def prompts_of(tokenizer: Tokenizer, context: int, form: Form, free: Free, items: Items, names: dict[str, str]
               ) -> list[Prompt]:  # fmt: skip
    """A prompt that leaves no room for an answer loses its beginning."""
    found, room = [], context - min(free.tokens, context // 2)
    for item in items.asked:
        text = form.prompt(item, items.examples.get(item.group, ()), names.get(item.group, item.group))
        if form.chat:
            tokens = render_chat(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True).tokens
        else:
            tokens = [*tokenizer.start_ids, *tokenizer.encode(text)]
        start = tokenizer.start_ids if len(tokens) > room else []
        found.append(Prompt(item, [*start, *tokens[len(start) - room :]], len(tokens) > room))
    return found


def written(subject: Subject, form: Form, free: Free, items: Items, prompts: Sequence[Prompt], folder: Path,
            advance: Callable[[int], None] = lambda _: None) -> list[str]:  # fmt: skip
    """The answer to every prompt, from the cache in `folder` as far as that goes."""
    from babyllama.infer.engine import Engine  # late, as PyTorch is: prepare's recipe names tests too
    from babyllama.infer.sampling import Sampling

    path, tokenizer = folder / f"{subject.key(form, items)}-{free.mark}-{free.tokens}.json", subject.tokenizer
    kept, engine, most = kept_marks(path), None, min(free.tokens, subject.context // 2)
    for start in range(0, len(prompts), PORTION):
        part = prompts[start : start + PORTION]
        if not all(one.item.id in kept for one in part):
            engine = engine or Engine(subject.model, tokenizer.vocab_size)
            found = engine.generate([one.tokens for one in part], Sampling(temperature=0.0), most, tokenizer.stop_ids)
            for one, tokens in zip(part, found, strict=True):
                text = tokenizer.decode(tokens) if form.chat else tokenizer.continuation(one.tokens, tokens)
                kept[one.item.id] = text if form.chat else text.strip().partition("\n")[0]
            write_atomic(path, json_text(kept))
        advance(len(part))
    return [kept[one.item.id] for one in prompts]


def free_result(free: Free, prompts: Sequence[Prompt], answers: Sequence[str], clean: frozenset[str] | None = None
                ) -> dict[str, Any]:  # fmt: skip
    """Figures of one test, named as those of a choice (suites.result)."""
    pairs = [(free.plain(said), one.item.options) for said, one in zip(answers, prompts, strict=True)]
    rights = [free.right(said, options) for said, options in pairs]
    figures = {**_share(free, pairs), "cut": sum(one.cut for one in prompts), "left_out": 0}
    if free.mark == "span":
        scores = [max(span_f1(said, reference) for reference in one.item.options)
                  for said, one in zip(answers, prompts, strict=True)]  # fmt: skip
        figures["f1"] = sum(scores) / len(scores)
    if clean is not None:
        held = [pair for pair, one in zip(pairs, prompts, strict=True) if one.item.id in clean]
        figures |= {"contaminated": len(pairs) - len(held), "clean": _share(free, held) if held else None}
    figures["answers"] = [{"id": one.item.id, "said": said, "reference": one.item.options[0], "right": right,
                           "block": one.item.block}
                          for one, said, right in zip(prompts, answers, rights, strict=True)]  # fmt: skip
    return figures


def _share(free: Free, pairs: Sequence[tuple[str, Sequence[str]]]) -> dict[str, Any]:
    rights = sum(free.right(said, references) for said, references in pairs)
    chance, p = shuffled([said for said, _ in pairs], [{free.plain(r) for r in references} for _, references in pairs])
    return {"items": len(pairs), "right": rights, "accuracy": rights / len(pairs),
            "interval": wilson(rights, len(pairs)), "interval_kind": "Wilson, 95 %", "chance": chance, "p": p,
            "verdict": verdict(p)}  # fmt: skip


def shuffled(answers: Sequence[str], references: Sequence[set[str]]) -> tuple[float, float]:
    """(share that is right, p of as many right ones) when the answers are shuffled over the questions.

    Mean and variance are exact (Hoeffding 1951), their sum is taken for normal, with a correction of half an answer.
    """
    n, said, wanted = len(answers), Counter(answers), Counter(word for held in references for word in held if word)
    hits = sum(bool(answer) and answer in held for answer, held in zip(answers, references, strict=True))
    rows = sum(count * wanted[answer] ** 2 for answer, count in said.items() if answer)
    columns = sum(sum(said[word] for word in held if word) ** 2 for held in references)
    total = sum(count * wanted[answer] for answer, count in said.items() if answer)
    variance = (total - (rows + columns) / n + total**2 / n**2) / max(1, n - 1)
    p = normal_tail((hits - total / n - 0.5) / math.sqrt(variance)) if variance > 1e-9 else 1.0
    return total / n**2, p


def span_f1(said: str, reference: str) -> float:
    """By the longest run of characters (of Latin: words) that both have. Source: CMRC 2018's evaluation script."""
    mine, theirs = _pieces(said), _pieces(reference)
    longest, row = 0, [0] * (len(theirs) + 1)
    for piece in mine:
        row = [0, *(row[i] + 1 if piece == other else 0 for i, other in enumerate(theirs))]
        longest = max(longest, *row)
    return 2 * longest / (len(mine) + len(theirs)) if longest else 0.0


def _pieces(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).lower()
    return re.findall(r"[a-z0-9]+|[^\W_a-z0-9]", text)
