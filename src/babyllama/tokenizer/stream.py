"""Tokens → text as they come."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import tokenizers

CONTEXT = 4  # tokens of the text before that a decoder may look at; up to twice as many are kept


class Decoder(Protocol):
    """What a stream needs of a tokenizer."""

    @property
    def backend(self) -> tokenizers.Tokenizer: ...
    @property
    def text_ids(self) -> frozenset[int]: ...


@lru_cache(maxsize=16)
def byte_ids(tokenizer: Decoder) -> frozenset[int]:
    """SentencePiece's tokens of single bytes, <0x00> … <0xFF>."""
    names = (form.format(byte) for byte in range(256) for form in ("<0x{:02X}>", "<0x{:02x}>"))
    return frozenset(found for name in names if (found := tokenizer.backend.token_to_id(name)) is not None)


class TextStream:
    """Tokens → text as they come: the pushes and the flush together are `decode` of all the tokens.

    Text is held back while the next token could still change it: an unfinished character, or a run of SentencePiece
    byte tokens, which stands or falls as a whole. Tokens already given out stay as context, since a decoder may treat
    the very first blank specially: `after` are those of the text that is continued.
    """

    def __init__(self, tokenizer: Decoder, after: Sequence[int] = ()) -> None:
        self._backend, self._bytes, self._texts = tokenizer.backend, byte_ids(tokenizer), tokenizer.text_ids
        self._pending: list[int] = []
        self._context = self._kept(after)
        self._before = self._text(self._context)  # the context's text
        self._shorten()

    def push(self, *tokens: int) -> str:
        """The text that became certain with some more tokens; often empty."""
        new = self._kept(tokens)
        self._pending += new
        for end in range(len(self._pending), len(self._pending) - len(new), -1):
            if self._pending[end - 1] in self._bytes:
                continue
            known = self._context + self._pending[:end]
            whole, start = self._text(known), len(self._before)
            if len(whole) > start and not whole.endswith("\ufffd"):
                self._context, self._before, self._pending = known, whole, self._pending[end:]
                if len(known) > 2 * CONTEXT:
                    self._shorten()
                return whole[start:]
        return ""

    def flush(self) -> str:
        """What is left, unfinished bytes as U+FFFD; the stream starts anew after it."""
        text = self._text(self._context + self._pending)[len(self._before) :]
        self._context, self._before, self._pending = [], "", []
        return text

    def _shorten(self) -> None:
        """A few last tokens of the context are enough where their text ends as its does."""
        few = self._context[-CONTEXT:]
        before = self._text(few)
        if before and self._before.endswith(before):
            self._context, self._before = few, before

    def _kept(self, tokens: Sequence[int]) -> list[int]:
        """Those that are text."""
        return [token for token in map(int, tokens) if token in self._texts]

    def _text(self, tokens: list[int]) -> str:
        return self._backend.decode(tokens, skip_special_tokens=False)
