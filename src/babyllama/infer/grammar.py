"""Answers of a given form: which tokens may come next by a JSON Schema or a regular expression (llguidance).

llguidance is imported late: it comes with the extra `serve`. Not here: how a mask is applied (choosing.py).
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from babyllama.errors import InputError, needs_extra
from babyllama.tokenizer.tokenizer import Tokenizer

# As json.dumps writes it: where any white space may stand, a small model goes on with it for ever.
PLAIN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammars:
    """Makes masks for one tokenizer, whose tokens are looked through once, in about a second.

    Raises:
        InputError: llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        try:
            import llguidance
        except ImportError:
            raise needs_extra("llguidance", "serve") from None
        self._library: Any = llguidance
        size = tokenizer.vocab_size
        self._tokens = llguidance.LLTokenizer(tokenizer.backend.to_str(), n_vocab=size, eos_token=tokenizer.eos_id)

    def json_schema(self, schema: dict[str, Any]) -> GrammarMask:
        """JSON that a schema describes. Raises InputError for a schema that is wrong or not supported."""
        try:
            grammar = self._library.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=PLAIN)
        except ValueError as error:
            raise InputError(f"json_schema: {error}") from None
        return self._mask(grammar, "json_schema")

    def regex(self, pattern: str) -> GrammarMask:
        """Text that a regular expression matches as a whole. Raises InputError for one that is wrong."""
        return self._mask(self._library.LLMatcher.grammar_from_regex(pattern), "regex")

    def _mask(self, grammar: str, what: str) -> GrammarMask:
        if fault := self._library.LLMatcher.validate_grammar(grammar, self._tokens):
            raise InputError(f"{what}: {fault.splitlines()[0]}")
        return GrammarMask(self._library.LLMatcher(self._tokens, grammar, log_level=0))


class GrammarMask:
    """The state of one answer, a `TokenMask`. The tokenizer's end token is allowed where the text may end: it must be
    among the request's stop ids. One mask serves one request."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def fill(self, words: Tensor) -> None:
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.int32)
        words.copy_(bits[: len(words)])

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
