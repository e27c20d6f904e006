"""Tokens → text as they come."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import tokenizers

CONTEXT = 8  # tokens of the text before that a decoder may look at


class Decoder(Protocol):
    """What a stream needs of a tokenizer."""

    @property
    def backend(self) -> tokenizers.Tokenizer: ...
    @property
    def text_ids(self) -> frozenset[int]: ...
    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str: ...


class TextStream:
    """Tokens → text as they come: the pushes and the flush together are `decode` of all the tokens.

    Text is held back while the next token could still change it: an unfinished character, or a run of SentencePiece
    byte tokens, which stands or falls as a whole. Tokens already given out stay as context, since a decoder may treat
    the very first blank specially: `after` are those of the text that is continued.
    """

    def __init__(self, tokenizer: Decoder, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._before = ""  # the context's text
        self._pending: list[int] = []
        self._remember(self._kept(after))

    def push(self, *tokens: int) -> str:
        """The text that became certain with some more tokens; often empty."""
        new = self._kept(tokens)
        self._pending += new
        for end in range(len(self._pending), len(self._pending) - len(new), -1):
            text = self._text(end)
            if text and not text.endswith("\ufffd") and not self._is_byte(self._pending[end - 1]):
                told, self._pending = self._pending[:end], self._pending[end:]
                self._remember(told)
                return text
        return ""

    def flush(self) -> str:
        """What is left, unfinished bytes as U+FFFD; the stream starts anew after it."""
        text = self._text(len(self._pending))
        self._pending = []
        self._remember([])
        return text

    def _remember(self, told: list[int]) -> None:
        """Text that was given out becomes the context: a few tokens of it where they end as it does."""
        whole = self._tokenizer.decode(told, skip_special=False)
        few = told[-CONTEXT:]
        before = self._tokenizer.decode(few, skip_special=False)
        short = bool(before) and whole.endswith(before)
        self._context, self._before = (few, before) if short else (told, whole)

    def _kept(self, tokens: Sequence[int]) -> list[int]:
        """Those that are text."""
        text = self._tokenizer.text_ids
        return [token for token in map(int, tokens) if token in text]

    def _is_byte(self, token: int) -> bool:
        return re.fullmatch("<0x[0-9A-Fa-f]{2}>", self._tokenizer.backend.id_to_token(token) or "") is not None

    def _text(self, end: int) -> str:
        """Of so many tokens after the context."""
        return self._tokenizer.decode(self._context + self._pending[:end], skip_special=False)[len(self._before) :]
