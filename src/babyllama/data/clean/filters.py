"""What a filter is: a frozen, typed value that takes a text and gives the new text, or why the text is left out.

    Filter      changes texts (normalise.py, markup.py, personal.py)
    Measured    leaves out texts of which one number is outside its limits (measures.py, quality.py)

A filter of texts sees the whole of a `Text`. Of a chat or a preference pair it sees each message by itself, and only
those filters do that are right for a message (`chats`): what repairs characters and what masks personal data. One that
judges documents (length, ratios, boilerplate) would judge a short answer wrongly, so it passes chats on.

Not here: which filters there are (presets.py), counting (ledger.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from pydantic import Field

from babyllama.data.sources.documents import Document, Text
from babyllama.recipe import Recipe

_WRITTEN = ("content", "reasoning_content")  # of a message: what a filter sees


@dataclass(frozen=True)
class Drop:
    """The text is left out, for this reason; or it `stays`, and is only counted."""

    reason: str
    stays: bool = False


class Filter(Recipe):
    """``filter(text)`` is the new text, or a `Drop`. Pure: the same text always gives the same."""

    chats: ClassVar[bool] = False  # whether it also sees the messages of chats

    @property
    def name(self) -> str:
        """Its `kind`, which every filter has."""
        return type(self).model_fields["kind"].default

    def __call__(self, text: str) -> str | Drop:
        raise NotImplementedError

    def check(self) -> None:
        """Raise InputError now for what would fail in the middle: a package or a file that is not there."""

    def settled(self, texts: Callable[[], Iterable[str]]) -> Filter:
        """The filter with all its limits, where some hang on the texts that it will see; these are the first ones."""
        return self

    def fingerprint(self) -> str:
        """Of what decides its answers beside its fields: the content of files; empty where there are none."""
        return ""


class Measured(Filter):
    """Leaves out a text of which `measure` is below `at_least` or above `at_most`."""

    top: ClassVar[float] = 1.0  # where the axis of a histogram ends
    whole: ClassVar[bool] = False  # whether it also judges a chat, by all that it says
    together: ClassVar[int] = 1  # texts that are best measured at a time
    at_least: float | None = Field(default=None, description="leave out texts below")
    at_most: float | None = Field(default=None, description="leave out texts above")

    def measure(self, text: str) -> float:
        raise NotImplementedError

    def measures(self, texts: Sequence[str]) -> list[float]:
        """Of several texts."""
        return [self.measure(text) for text in texts]

    def judge(self, value: float) -> Drop | None:
        """What follows from a measured value."""
        if self.at_least is not None and value < self.at_least:
            return Drop(f"below {self.at_least:g}")
        if self.at_most is not None and value > self.at_most:
            return Drop(f"above {self.at_most:g}")
        return None

    def __call__(self, text: str) -> str | Drop:
        return self.judge(self.measure(text)) or text


def filtered(filter: Filter, document: Document) -> Document | Drop:
    """The document as the filter leaves it; one that has nothing left to learn is dropped."""
    if isinstance(document, Text):
        found = filter(document.text)
        if isinstance(found, Drop) or found is document.text:
            return found if isinstance(found, Drop) else document
        changed: Document = replace(document, text=found)
    elif not filter.chats:
        return document
    else:
        new: dict[str, Any] = {}
        for field in fields(document):
            value = getattr(document, field.name)
            if isinstance(value, tuple):  # of messages
                new[field.name] = messages = _messages(filter, value)
                if isinstance(messages, Drop):
                    return messages
        changed = replace(document, **new)
    return changed if changed.size else Drop("nothing left")


def _messages(filter: Filter, messages: tuple[Any, ...]) -> tuple[Any, ...] | Drop:
    found = []
    for message in messages:
        for key in _WRITTEN:
            if isinstance(message.get(key), str):
                text = filter(message[key])
                if isinstance(text, Drop):
                    return text
                message = {**message, key: text}
        found.append(message)
    return tuple(found)
