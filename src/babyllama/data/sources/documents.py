"""A document: what one record of a corpus is, each kind knowing its text, what is learned of it and its tokens.

`Document` is the sum of all kinds. A new kind is a frozen class here and its recognition in records.py. `held_out` is
what the record itself says of it; None leaves that to `prepare`. Not here: records and files, shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import xxhash

from babyllama.tokenizer.answers import answer_text
from babyllama.tokenizer.chat import Message, render_chat
from babyllama.tokenizer.tokenizer import Tokenizer

Kind = Literal["text", "chat", "preference", "rated"]
GOOD, BAD = 1, 2  # in the mask of a rated answer: that it is learned, and what people found of it


class Rendered(NamedTuple):
    """A document's tokens; `mask` is as long and not 0 where the loss counts, None where it counts everywhere."""

    tokens: list[int] | np.ndarray
    mask: list[bool] | list[int] | None


@dataclass(frozen=True)
class Text:
    """Plain text, all of it learned, with the end token after it."""

    kind: ClassVar[Kind] = "text"
    text: str
    held_out: bool | None = None

    @property
    def learned(self) -> tuple[str, ...]:
        """The stretches of text that the model is to learn."""
        return (self.text,)

    @property
    def size(self) -> int:
        """Characters of the longest stretch to learn; 0 where there is nothing to learn."""
        return len(self.text) if self.text.strip() else 0

    def render(self, tokenizer: Tokenizer) -> Rendered:
        """Its tokens."""
        return Rendered([*tokenizer.encode(self.text), tokenizer.eos_id], None)


@dataclass(frozen=True)
class Chat:
    """Messages in an order that every template can render, and the tools that its answers may call. Learned are the
    answers, but for those marked otherwise."""

    kind: ClassVar[Kind] = "chat"
    messages: tuple[Message, ...]
    held_out: bool | None = None
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """The text of its messages, joined by line breaks."""
        return "\n".join(map(answer_text, self.messages))

    @property
    def learned(self) -> tuple[str, ...]:
        """As of `Text`."""
        return tuple(answer_text(m) for m in self.messages if m["role"] == "assistant" and m.get("learned", True))

    @property
    def size(self) -> int:
        """As of `Text`."""
        return max((len(answer.strip()) for answer in self.learned), default=0)

    @property
    def last_answer(self) -> int:
        """The index of the last message of the assistant."""
        return max(i for i, message in enumerate(self.messages) if message["role"] == "assistant")

    def render(self, tokenizer: Tokenizer) -> Rendered:
        """Its tokens by the tokenizer's template. Raises InputError as `render_chat`."""
        found = render_chat(tokenizer, self.messages, tools=self.tools)
        return Rendered(found.tokens, found.mask)


@dataclass(frozen=True)
class Rated:
    """An answer to a prompt, and whether people found it good. Only the answer is in the loss."""

    kind: ClassVar[Kind] = "rated"
    prompt: tuple[Message, ...]
    answer: tuple[Message, ...]
    good: bool
    held_out: bool | None = None
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def chat(self) -> Chat:
        """Prompt and answer, of which the answer alone is learned."""
        asked = [{**m, "learned": False} if m["role"] == "assistant" else m for m in self.prompt]
        messages = (*asked, *({**m, "learned": True} for m in self.answer))
        return Chat(messages, tools=self.tools)  # type: ignore[arg-type]

    @property
    def text(self) -> str:
        """As of `Text`: of prompt and answer."""
        return self.chat.text

    @property
    def learned(self) -> tuple[str, ...]:
        """As of `Text`: the answer."""
        return self.chat.learned

    @property
    def size(self) -> int:
        """As of `Text`."""
        return self.chat.size

    def render(self, tokenizer: Tokenizer) -> Rendered:
        """As of `Chat`; the mask tells good from bad."""
        tokens, mask = self.chat.render(tokenizer)
        return Rendered(tokens, [learned * (GOOD if self.good else BAD) for learned in mask or ()])


@dataclass(frozen=True)
class Preference:
    """Two continuations of one prompt, of which people like `chosen` better."""

    kind: ClassVar[Kind] = "preference"
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    held_out: bool | None = None
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def preferred(self) -> Chat:
        """The chat with the better continuation."""
        return Chat(self.prompt + self.chosen, tools=self.tools)

    @property
    def answers(self) -> tuple[Rated, Rated]:
        """The better one and the other."""
        better, other = self.chosen, self.rejected
        return Rated(self.prompt, better, True, tools=self.tools), Rated(self.prompt, other, False, tools=self.tools)

    @property
    def text(self) -> str:
        """The text of the better chat."""
        return self.preferred.text

    @property
    def size(self) -> int:
        """As of `Text`, of the longer answer; 0 where one of them is empty, or both are the same."""
        better, other = (answer.size for answer in self.answers)
        return max(better, other) if better and other and self.chosen != self.rejected else 0


Stored = Text | Chat | Rated
Document = Stored | Preference


def stored(document: Document) -> tuple[Stored, ...]:
    """What is written of it to shards: of a pair both answers, the better one first."""
    return document.answers if isinstance(document, Preference) else (document,)


def held_out(document: Document, share: float) -> bool:
    """Whether it is kept from training: as its record says, else by its text alone, for `share` of all texts.

    So a document is held out in every corpus and in any order, or in none; all answers to one prompt alike.
    """
    if document.held_out is not None:
        return document.held_out
    text = Chat(document.prompt).text if isinstance(document, Rated | Preference) else document.text
    return xxhash.xxh3_64_intdigest(text.encode()) < share * 2.0**64


def render_all(documents: Sequence[Stored], tokenizer: Tokenizer) -> Iterator[Rendered]:
    """As `render` of each; plain texts are encoded together, which is faster."""
    texts = iter(tokenizer.encode_much([document.text for document in documents if isinstance(document, Text)]))
    for document in documents:
        if isinstance(document, Text):
            yield Rendered(np.append(next(texts), np.uint32(tokenizer.eos_id)), None)
        else:
            yield document.render(tokenizer)
