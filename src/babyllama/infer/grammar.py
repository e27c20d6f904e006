"""Answers of a given form: which tokens may come next by a JSON Schema, as calls of tools, or by a regular expression
(llguidance).

llguidance is imported late: it comes with the extra `serve`. Not here: what may be demanded (forms.py), how a mask is
applied (choosing.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from babyllama.errors import InputError, needs_extra
from babyllama.infer.forms import CallsForm, Form
from babyllama.tokenizer.answers import THOUGHT
from babyllama.tokenizer.tokenizer import Tokenizer

# As json.dumps writes it: where any white space may stand, a small model goes on with it for ever.
BETWEEN = "\n"  # two calls
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
        self._added = {token.content: id for id, token in tokenizer.backend.get_added_tokens_decoder().items()}

    def of(self, form: Form) -> GrammarMask:
        """Whatever the form. Raises InputError for a schema that is wrong or not supported."""
        return self.calls(form) if isinstance(form, CallsForm) else self.json_schema(form.schema, form.begun)

    def json_schema(self, schema: dict[str, Any], begun: Sequence[int] = ()) -> GrammarMask:
        """JSON that a schema describes, or the rest of it after the tokens `begun`.

        Raises:
            InputError: a schema that is wrong or not supported; no such JSON begins so.
        """
        try:
            grammar = self._library.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=PLAIN)
        except ValueError as error:
            raise InputError(f"json_schema: {error}") from None
        mask = self._mask(grammar, "json_schema")
        if not all(map(mask.takes, begun)):
            raise InputError("json_schema: the answer to go on with is no beginning of such JSON as is written here, "
                             "with no line breaks and one blank after each comma and colon")  # fmt: skip
        return mask

    def calls(self, form: CallsForm) -> GrammarMask:
        """Calls of tools, and nothing else but a thought that has begun.

        Raises:
            InputError: a tool's schema is wrong or not supported; the template writes arguments before the name.
        """
        if form.form.written is None:
            raise InputError("this model's chat template writes arguments before the name; a call cannot be demanded")
        opening, middle, closing = map(self._text, form.form.written)
        thought, rest = self._thought() if form.thinks else ("", [])
        more = f" ({self._text(BETWEEN)} call){{0,{form.most - 1}}}" if form.most > 1 else ""
        rules = [f"start: {thought}call{more}",
                 f"call: {opening} ({' | '.join(f'tool{i}' for i in range(len(form.tools)))}) {closing}",
                 *(f"tool{i}: {self._text(name)} {middle} %json {json.dumps({**schema, 'x-guidance': PLAIN})}"
                   for i, (name, schema) in enumerate(form.tools.items())), *rest]  # fmt: skip
        return self._mask("\n".join(rules), "parameters")

    def _thought(self) -> tuple[str, list[str]]:
        """The rest of a thought, its end and line breaks: what stands for them in a rule, and the rules for that."""
        if THOUGHT in self._added:
            return f"THOUGHT {self._text(THOUGHT)} /\\n*/ ", [r"THOUGHT: /(.|\n)*/"]
        return "THOUGHT ", [r"THOUGHT: /([^<]|<[^\/])*<\/think>\n*/"]

    def regex(self, pattern: str) -> GrammarMask:
        """Text that a regular expression matches as a whole. Raises InputError for one that is wrong."""
        return self._mask(self._library.LLMatcher.grammar_from_regex(pattern), "regex")

    def _text(self, text: str) -> str:
        """A text in a grammar. Added tokens stand by their ids: to llguidance they have no text."""
        longest_first = sorted(self._added, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})", text)
        return " ".join(f"<[{self._added[part]}]>" if part in self._added else json.dumps(part, ensure_ascii=False)
                        for part in parts if part)  # fmt: skip

    def _mask(self, grammar: str, what: str) -> GrammarMask:
        if fault := self._library.LLMatcher.validate_grammar(grammar, self._tokens):
            why = re.search(r"^error: .*", fault, re.MULTILINE)  # of a regular expression, below a picture of it
            raise InputError(" ".join([f"{what}:", fault.splitlines()[0], *([why[0]] if why else [])]))
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

    def takes(self, token: int) -> bool:
        """Whether the text may go on with this token; it then has."""
        return self._matcher.try_consume_tokens([token]) == 1
