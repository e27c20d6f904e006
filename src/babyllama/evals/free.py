"""Tests with free answers: the model writes, greedily, and what it wrote is compared with the references.

    number       the last number of the answer is the reference's
    span         the answer is one of the references, but for punctuation and white space; F1 as CMRC 2018 counts it
    fact         the answer holds one of the references, so compared; no judge reads what else it says
    instruction  every check holds, the answer ended by itself and does not go round in circles
    refusal      what should be refused is, and nothing else
    call         a tool is called with the name and the arguments of the reference
    long         0 … 1, as LongBench scores the test that an item is from

Of a text that is continued its first line is the answer to the first three, of a chat all. What no knowledge would give
is measured too: the model's own answers, shuffled over the questions. Not here: which tests there are (tasks.py), other
answers of chats (answers.py).
"""

from __future__ import annotations

import json
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
from babyllama.evals.instructions import keeps, loops
from babyllama.evals.items import Item, Items
from babyllama.evals.safety import REFUSED, refuses
from babyllama.evals.statistics import bootstrap, normal_tail, verdict, wilson
from babyllama.evals.suites import PORTION, Subject, kept_marks
from babyllama.evals.texts import long_score, plain
from babyllama.marking import last_number
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Free:
    """How free answers are marked, and how many tokens one may have. Of an item `options` are the references.

    `middle`: a prompt that is too long loses its middle, not its beginning.
    """

    mark: Literal["number", "span", "fact", "instruction", "refusal", "call", "long"]
    tokens: int
    middle: bool = False

    @property
    def short(self) -> bool:
        """Whether an answer is one word or number, which is compared as a whole."""
        return self.mark in ("number", "span")

    @property
    def line(self) -> bool:
        """Whether a text that is continued answers with one line."""
        return self.short or self.mark == "fact"

    def right(self, said: str, references: Sequence[str]) -> bool:
        return self.plain(said) in {self.plain(reference) for reference in references} - {""}

    def plain(self, text: str) -> str:
        """What of an answer is compared."""
        return last_number(text) if self.mark == "number" else plain(text)

    def score(self, said: Said, item: Item) -> float:
        """0 … 1."""
        if self.mark == "fact":
            return float(any(holds(said.text, reference) for reference in item.options))
        if self.mark == "instruction":
            kept = said.ended and not loops(said.text)
            return float(kept and all(keeps(said.text, check) for check in item.options))
        if self.mark == "refusal":
            answered = bool(said.text.strip())
            return float(answered and refuses(said.text) == (item.options[0] == REFUSED))
        if self.mark == "call":
            return float(calls_of(said.text) == json.loads(item.options[0]))
        if self.mark == "long":
            return long_score(item.group, said.text, item.options, item.classes)
        return float(self.right(said.text, item.options))


class Said(NamedTuple):
    """What the model wrote, and whether it ended that by itself."""

    text: str
    ended: bool


def holds(said: str, reference: str) -> bool:
    """Whether a text says a reference, but for punctuation; a number or a Latin word only as a whole."""
    wanted = plain(reference)
    edges = ("(?<![0-9a-z])" if wanted[:1].isascii() else "", "(?![0-9a-z])" if wanted[-1:].isascii() else "")
    return bool(wanted) and re.search(edges[0] + re.escape(wanted) + edges[1], plain(said)) is not None


def calls_of(text: str) -> list[list[Any]]:
    """[name, arguments] of every JSON object in a text that has both, in whatever form a template writes calls."""
    found, at = list[list[Any]](), text.find("{")
    while at >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except ValueError:
            at = text.find("{", at + 1)
            continue
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            arguments = value.get("arguments", value.get("parameters"))
            found += [[value["name"], arguments]] if isinstance(arguments, dict) else []
        at = text.find("{", end)
    return found


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
        if free.mark == "call":
            asked = json.loads(item.question)
            tokens = render_chat(tokenizer, asked["messages"], True, asked["tools"]).tokens
        elif form.chat:
            tokens = render_chat(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True).tokens
        else:
            tokens = [*tokenizer.start_ids, *tokenizer.encode(text)]
        cut = len(tokens) > room
        if cut and free.middle:
            tokens = [*tokens[: room // 2], *tokens[room // 2 - room :]]
        elif cut:
            tokens = [*tokenizer.start_ids, *tokens[len(tokenizer.start_ids) - room :]]
        found.append(Prompt(item, tokens, cut))
    return found


def written(subject: Subject, form: Form, free: Free, items: Items, prompts: Sequence[Prompt], folder: Path,
            advance: Callable[[int], None] = lambda _: None) -> list[Said]:  # fmt: skip
    """The answer to every prompt, from the cache in `folder` as far as that goes."""
    from babyllama.infer.engine import Engine  # late, as PyTorch is: prepare's recipe names tests too
    from babyllama.infer.sampling import Sampling

    path, tokenizer = folder / f"{subject.key(form, items)}-{free.mark}-{free.tokens}.json", subject.tokenizer
    whole = form.chat or not free.line
    kept, engine, most = kept_marks(path), None, min(free.tokens, subject.context // 2)
    for start in range(0, len(prompts), PORTION):
        part = prompts[start : start + PORTION]
        if not all(one.item.id in kept for one in part):
            engine = engine or Engine(subject.model, tokenizer.vocab_size)
            found = engine.generate([one.tokens for one in part], Sampling(temperature=0.0), most, tokenizer.stop_ids)
            for one, tokens in zip(part, found, strict=True):
                text = tokenizer.decode(tokens) if form.chat else tokenizer.continuation(one.tokens, tokens)
                ended = bool(tokens) and tokens[-1] in tokenizer.stop_ids
                kept[one.item.id] = [text if whole else text.strip().partition("\n")[0], ended]
            write_atomic(path, json_text(kept))
        advance(len(part))
    return [Said(*kept[one.item.id]) for one in prompts]


def free_result(free: Free, prompts: Sequence[Prompt], answers: Sequence[Said], clean: frozenset[str] | None = None
                ) -> dict[str, Any]:  # fmt: skip
    """Figures of one test, named as those of a choice (suites.result)."""
    items = [one.item for one in prompts]
    scores = [free.score(said, item) for said, item in zip(answers, items, strict=True)]
    figures = {**_share(free, items, answers), "cut": sum(one.cut for one in prompts), "left_out": 0}
    figures["ended"] = sum(said.ended for said in answers) / len(answers)
    if free.mark == "span":
        best = [max(span_f1(said.text, reference) for reference in item.options)
                for said, item in zip(answers, items, strict=True)]  # fmt: skip
        figures["f1"] = sum(best) / len(best)
    groups = list(dict.fromkeys(item.group for item in items))
    if len(groups) > 1 and not free.short:
        figures["groups"] = {group: _share(free, *_picked(items, answers, lambda item, g=group: item.group == g))
                             for group in groups}  # fmt: skip
    if clean is not None:
        held = _picked(items, answers, lambda item: item.id in clean)
        figures |= {"contaminated": len(items) - len(held[0]), "clean": _share(free, *held) if held[0] else None}
    figures["answers"] = [{"id": item.id, "said": said.text, "reference": item.options[0],
                           "right": score == 1.0, "score": score, "block": item.block}
                          for item, said, score in zip(items, answers, scores, strict=True)]  # fmt: skip
    return figures


def _picked(items: Sequence[Item], answers: Sequence[Said], wanted: Callable[[Item], bool]
            ) -> tuple[list[Item], list[Said]]:  # fmt: skip
    kept = [(item, said) for item, said in zip(items, answers, strict=True) if wanted(item)]
    return [item for item, _ in kept], [said for _, said in kept]


def _share(free: Free, items: Sequence[Item], answers: Sequence[Said]) -> dict[str, Any]:
    count, graded = len(items), free.mark == "long"
    scores = [free.score(said, item) for said, item in zip(answers, items, strict=True)]
    if free.short:
        chance, p = shuffled([free.plain(said.text) for said in answers],
                             [{free.plain(r) for r in item.options} for item in items])  # fmt: skip
    else:
        chance, p = exchanged(scores, lambda shift: [free.score(answers[(i + shift) % count], items[i])
                                                     for i in range(count)])  # fmt: skip
    right = sum(scores)
    return {"items": count, "right": right if graded else int(right), "accuracy": right / count,
            "interval": bootstrap(scores) if graded else wilson(right, count),
            "interval_kind": "bootstrap, 95 %" if graded else "Wilson, 95 %", "chance": chance, "p": p,
            "verdict": verdict(p)}  # fmt: skip


def exchanged(scores: Sequence[float], moved: Callable[[int], Sequence[float]]) -> tuple[float, float]:
    """(mean score of others' answers, p that one's own are no better), by at most eight shifts of the answers over the
    items: a two-sample z with the variance of both together, which does not count that the items are the same.

    Args:
        moved: shift → the scores of the answers so many items further on.
    """
    count = len(scores)
    shifts = sorted({round(1 + i * (count - 1) / 8) for i in range(8)} & set(range(1, count)))
    if not shifts:
        return scores[0] if scores else 0.0, 1.0
    others = [score for shift in shifts for score in moved(shift)]
    own, chance = sum(scores) / count, sum(others) / len(others)
    squares = sum(x * x for x in scores) / count, sum(x * x for x in others) / len(others)
    variance = sum(squares) / 2 - ((own + chance) / 2) ** 2
    p = normal_tail((own - chance) / math.sqrt(2 * variance / count)) if variance > 1e-12 else 1.0
    return chance, p


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
