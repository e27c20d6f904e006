"""A task put to a model: marked item by item, kept while it goes on, summed up as one result that can be compared.

What was marked lies in a cache, by what decides it: the model's files, the task's items and form, the tokenizer, the
context and the precision. So a killed evaluation goes on where it was, and the same one is not computed twice. Not
here: which tasks there are (tasks.py), tables and files of results (commands/evaluate_tasks.py).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from babyllama.atomic import json_text, write_atomic
from babyllama.errors import InputError
from babyllama.evals.choices import NORMALISATIONS, Asked, Form, Marked, Normalise, check_shots, encoded, marked
from babyllama.evals.items import LETTERS, Items
from babyllama.evals.statistics import Difference, above_chance, interval, mcnemar, paired, verdict
from babyllama.run import add_file
from babyllama.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from babyllama.model.transformer import Transformer

PORTION = 64  # items between two writes of the cache
VERSION = 3  # of the form of what is kept


def fingerprint(folders: Sequence[Path]) -> str:
    """16 hex digits of all files that make a model."""
    digest = xxhash.xxh3_128()
    for folder in folders:
        for path in sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in (".safetensors", ".json")):
            add_file(digest, path)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Subject:
    """The model that is asked: what it computes with, and the hash of its files with all that changes its scores."""

    model: Transformer
    tokenizer: Tokenizer
    context: int
    hash: str

    def key(self, form: Form, items: Items) -> str:
        """What decides the marks of a task."""
        said = json.dumps([VERSION, self.hash, self.context, self.tokenizer.hash, asdict(form),
                           self.tokenizer.chat_template if form.chat else "",
                           [asdict(item) for item in items.asked],
                           {group: [asdict(one) for one in held] for group, held in items.examples.items()}
                           if form.shots else {}], ensure_ascii=False)  # fmt: skip
        return xxhash.xxh3_64_hexdigest(said.encode())


def asked_of(tokenizer: Tokenizer, context: int, form: Form, items: Items, names: dict[str, str], task: str
             ) -> list[Asked]:  # fmt: skip
    """The items in tokens; those of which an option alone fills the context are left out.

    Raises:
        InputError: the worked examples fill the context, are too few, or no item fits.
    """
    check_shots(form, tokenizer, items, names, context, task)
    found = [encoded(form, tokenizer, item, items.examples.get(item.group, ()), names.get(item.group, item.group),
                     context) for item in items.asked]  # fmt: skip
    asked = [one for one in found if one is not None]
    if not asked:
        raise InputError(f"{task}: no item fits the model's context of {context} tokens")
    return asked


def kept_marks(path: Path) -> dict[str, Any]:
    """What a cache holds by id of item; nothing where it is damaged: it is computed again."""
    try:
        found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def marks(subject: Subject, form: Form, items: Items, asked: Sequence[Asked], folder: Path,
          advance: Callable[[int], None] = lambda _: None) -> list[Marked]:  # fmt: skip
    """Every item as the model answered it, from the cache in `folder` as far as that goes.

    Args:
        advance: is told how many more items are done.
    """
    path = folder / f"{subject.key(form, items)}.json"
    kept = kept_marks(path)
    found: list[Marked] = []
    for start in range(0, len(asked), PORTION):  # always the same portions, so that a stop changes no figure
        part = asked[start : start + PORTION]
        if not all(one.item.id in kept for one in part):
            for mark in marked(subject.model, part, subject.tokenizer.vocab_size):
                kept[mark.item.id] = [mark.nats, mark.tokens, mark.characters]
            write_atomic(path, json_text(kept))
        for one in part:
            nats, tokens, characters = (tuple(values) for values in kept[one.item.id])
            found.append(Marked(one.item, nats, tokens, characters, one.cut))
        advance(len(part))
    return found


def result(found: Sequence[Marked], normalise: Normalise, left_out: int, clean: frozenset[str] | None = None
           ) -> dict[str, Any]:  # fmt: skip
    """Figures of one task; those of items without a published answer are its picks alone.

    Args:
        clean: ids of items that do not occur in what the model was trained on; None: nobody looked.
    """
    scored = [mark for mark in found if mark.item.answer is not None]
    figures: dict[str, Any] = {"items": len(scored), "cut": sum(mark.cut for mark in found), "left_out": left_out}
    if scored:
        figures |= accuracy(scored, normalise)
        figures["by_normalisation"] = {name: accuracy(scored, name) for name in NORMALISATIONS}
        groups: dict[str, list[Marked]] = defaultdict(list)
        for mark in scored:
            groups[mark.item.group].append(mark)
        if len(groups) > 1:
            figures["groups"] = {name: accuracy(held, normalise) for name, held in sorted(groups.items())}
        if clean is not None:
            held = [mark for mark in scored if mark.item.id in clean]
            figures["contaminated"] = len(scored) - len(held)
            figures["clean"] = accuracy(held, normalise) if held else None
    figures["answers"] = [{"id": mark.item.id, "taken": mark.taken(normalise), "answer": mark.item.answer,
                           "block": mark.item.block, "nats": mark.nats, "tokens": mark.tokens}
                          for mark in found]  # fmt: skip
    return figures


def accuracy(scored: Sequence[Marked], normalise: Normalise) -> dict[str, Any]:
    """The share of right picks with its 95 % interval, chance, and whether it is more than that."""
    picks = [mark.pick(normalise) for mark in scored]
    right = sum(pick.taken == pick.right for pick in picks)
    p, chance = above_chance(picks), sum(1 / len(pick.sizes) for pick in picks) / len(picks)
    blocks = len({pick.block for pick in picks if pick.block})
    kind = f"Wilson, 95 %, over {blocks} blocks" if blocks else "Wilson, 95 %"
    return {"items": len(picks), "right": right, "accuracy": right / len(picks), "interval": interval(picks),
            "interval_kind": kind, "chance": chance, "p": p, "verdict": verdict(p)}  # fmt: skip


def submission(answers: Sequence[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """A result's answers in C-Eval's form: subject → number → letter."""
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for one in answers:
        subject, _, number = one["id"].rpartition("/")
        said[subject][number] = LETTERS[one["taken"]]
    return dict(said)


def difference(mine: dict[str, Any], theirs: dict[str, Any]) -> tuple[int, Difference] | None:
    """Two results of one task on the items that both have: how many, mine − theirs. None: no such item.

    By McNemar's test; where an answer may be right in part, by a paired bootstrap.
    """
    other = {one["id"]: one for one in theirs["answers"] if _is_right(one) is not None}
    both = [(one, other[one["id"]]) for one in mine["answers"] if one["id"] in other]
    if not both:
        return None
    graded = [[one.get("score", 0.0) for one, _ in both], [one.get("score", 0.0) for _, one in both]]
    if {*graded[0], *graded[1]} - {0.0, 1.0}:
        return len(both), paired(graded[0], graded[1])
    first, second = ([bool(_is_right(pair[side])) for pair in both] for side in (0, 1))
    return len(both), mcnemar(first, second, [one.get("block", "") for one, _ in both])


def _is_right(one: dict[str, Any]) -> bool | None:
    """Of one kept answer, chosen or free; None where the right one is not published."""
    if "right" in one:
        return one["right"]
    return None if one["answer"] is None else one["taken"] == one["answer"]
