"""A document: what one record of a corpus is, each kind knowing its text, what is learned of it and its tokens.

`Document` is the sum of all kinds. A new kind is a frozen class here and its recognition in records.py. `held_out` is
what the record itself says of it; None leaves that to `prepare`. Not here: records and files, shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import xxhash

from babyllama.tokenizer.chat import Message, render_chat
from babyllama.tokenizer.tokenizer import Tokenizer

Kind = Literal["text", "chat", "preference"]


class Rendered(NamedTuple):
    """A document's tokens; `mask` is as long and True where the loss counts, None where it counts everywhere."""

    tokens: list[int]
    mask: list[bool] | None


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
    """Messages in an order that every template can render. Learned are the answers, but for those marked otherwise."""

    kind: ClassVar[Kind] = "chat"
    messages: tuple[Message, ...]
    held_out: bool | None = None

    @property
    def text(self) -> str:
        """The content of its messages, joined by line breaks."""
        return "\n".join(message["content"] for message in self.messages)

    @property
    def learned(self) -> tuple[str, ...]:
        """As of `Text`."""
        return tuple(m["content"] for m in self.messages if m["role"] == "assistant" and m.get("learned", True))

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
        found = render_chat(tokenizer, self.messages)
        return Rendered(found.tokens, found.mask)


@dataclass(frozen=True)
class Preference:
    """Two continuations of one prompt, of which people like `chosen` better."""

    kind: ClassVar[Kind] = "preference"
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    held_out: bool | None = None

    @property
    def preferred(self) -> Chat:
        """The chat with the better continuation."""
        return Chat(self.prompt + self.chosen)

    @property
    def other(self) -> Chat:
        """The chat with the worse one."""
        return Chat(self.prompt + self.rejected)

    @property
    def text(self) -> str:
        """The text of the better chat."""
        return self.preferred.text

    @property
    def learned(self) -> tuple[str, ...]:
        """As of `Text`: the answers of the better continuation."""
        return Chat(self.chosen).learned

    @property
    def size(self) -> int:
        """As of `Text`."""
        return Chat(self.chosen).size

    def render(self, tokenizer: Tokenizer) -> Rendered:
        """The better chat; a preference objective renders both of its chats."""
        return self.preferred.render(tokenizer)


Document = Text | Chat | Preference


def held_out(document: Document, share: float) -> bool:
    """Whether it is kept from training: as its record says, else by its text alone, for `share` of all texts.

    So a document is held out in every corpus and in any order, or in none.
    """
    if document.held_out is not None:
        return document.held_out
    return xxhash.xxh3_64_intdigest(document.text.encode()) < share * 2.0**64


def render_all(documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[Rendered]:
    """As `render` of each; plain texts are encoded together, which is faster."""
    texts = iter(tokenizer.encode_batch([document.text for document in documents if isinstance(document, Text)]))
    for document in documents:
        if isinstance(document, Text):
            yield Rendered([*next(texts), tokenizer.eos_id], None)
        else:
            yield document.render(tokenizer)
