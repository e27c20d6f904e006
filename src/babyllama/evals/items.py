"""Items of a task as data: what is asked, the options, which one is right. And the faults that a file of them can have.

Not here: where items come from (sources.py, made.py), how they are put to a model (choices.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from babyllama.errors import InputError

LETTERS = "ABCDEFGHIJKLMNOP"


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: no other item of the task has it.
        question: what stands before the options; empty where whole texts are compared.
        options: at least two, none empty. Of a test with free answers: what is right, one or several.
        answer: index of the right one; None where it is not published.
        group: the subject.
        block: items that one preference would answer alike, so they are one observation (statistics.py). Their options
            play the same parts in the same order. Empty: an item alone.
        classes: of a free answer that names one of some classes.
    """

    id: str
    question: str
    options: tuple[str, ...]
    answer: int | None
    group: str = ""
    block: str = ""
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Items:
    """What is asked, and the worked examples that may stand before it, by group."""

    asked: tuple[Item, ...]
    examples: Mapping[str, tuple[Item, ...]]

    @property
    def chance(self) -> float:
        """The share that guessing gets right."""
        return sum(1 / len(item.options) for item in self.asked) / len(self.asked)


def checked(items: Iterable[tuple[str, Item]], least: int = 2) -> tuple[Item, ...]:
    """(where it stands, item) → the items. Raises InputError for the first that is none.

    Args:
        least: number of options.
    """
    found: list[Item] = []
    seen: dict[str, str] = {}
    for where, item in items:
        empty = [LETTERS[i] for i, option in enumerate(item.options) if not option.strip()]
        if empty:
            raise InputError(f"{where}: option {empty[0]} is empty; mend it, or take the item out")
        if not item.options:
            raise InputError(f"{where}: has no answer; mend it, or take the item out")
        if len(item.options) < least:
            raise InputError(f"{where}: has {len(item.options)} option; a choice needs at least two")
        if item.id in seen:
            raise InputError(f"{where}: the id {item.id!r} is there already ({seen[item.id]}); ids must differ")
        seen[item.id] = where
        found.append(item)
    return tuple(found)


def column(record: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    """The value under the first of `names` that the record has. Raises InputError: none of them."""
    for name in names:
        if name in record:
            return record[name]
    has = ", ".join(map(str, record)) or "nothing"
    raise InputError(f"{where}: the column {names[0]!r} is missing; it has {has}")


def answer_index(answer: Any, options: Sequence[str], where: str) -> int | None:
    """A letter, or the text of an option → its index; an empty answer is one that is not published.

    Raises:
        InputError: it is neither.
    """
    said = str(answer if answer is not None else "").strip()
    if not said:
        return None
    letter = LETTERS.find(said.upper()) if len(said) == 1 else -1
    if said in options:
        return list(options).index(said)
    if 0 <= letter < len(options):
        return letter
    raise InputError(
        f"{where}: the answer {said!r} is not among the options {', '.join(LETTERS[: len(options)])}; mend it"
    )
