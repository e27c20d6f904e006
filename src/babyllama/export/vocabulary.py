"""A tokenizer as GGUF has it: tokens with their kinds, and merges or scores, so that llama.cpp gives the same ids.

Byte-level BPE becomes llama.cpp's model ``gpt2`` with the name by which it knows the way text is cut; SentencePiece BPE
becomes its model ``llama`` with the scores of SentencePiece. What llama.cpp would cut otherwise is refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple

import sentencepiece
from gguf import TokenType

from babyllama.errors import InputError
from babyllama.tokenizer.chat import template_of
from babyllama.tokenizer.cuts import NAMES, SPLITS
from babyllama.tokenizer.from_sentencepiece import SPACE
from babyllama.tokenizer.tokenizer import Tokenizer

Json = dict[str, Any]
GENERATION = re.compile(r"{%-?\s*(?:end)?generation\s*-?%}")  # a mark for those who train; llama.cpp knows no such tag


class Vocabulary(NamedTuple):
    """What `tokenizer.ggml.…` holds. merges: of gpt2. scores: of llama, one a token. pre: how text is cut first."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]


def vocabulary_of(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    """With unused tokens for what the model has rows beyond the vocabulary.

    Raises:
        InputError: a tokenizer that is neither of the two kinds, cut otherwise than llama.cpp knows, or without scores.
    """
    content = json.loads(tokenizer.backend.to_str())
    if content["model"]["type"] != "BPE":
        raise InputError(
            f"tokenizer.json: a model of type {content['model']['type']} has no form in GGUF here; BPE has"
        )
    tokens, types = _tokens(tokenizer, content["model"], rows)
    if (pre := _byte_level(content)) is not None:
        merges = [" ".join(pair) for pair in content["model"]["merges"]]
        return Vocabulary("gpt2", pre, tokens, types, merges, [])
    if _is_sentencepiece(content):
        return Vocabulary("llama", "default", tokens, types, [], _scores(tokenizer, content["model"], tokens))
    raise InputError("tokenizer.json: cuts text in a way that has no name in llama.cpp, which would give other ids; "
                     "vocabularies that go into GGUF: our own BPE, GPT-2's, and SentencePiece BPE")  # fmt: skip


def _tokens(tokenizer: Tokenizer, model: Json, rows: int) -> tuple[list[str], list[int]]:
    by_id = {i: (token, TokenType.NORMAL) for token, i in model["vocab"].items()}
    if model["byte_fallback"]:
        by_id |= {i: (t, TokenType.BYTE) for i, (t, _) in by_id.items() if re.fullmatch(r"<0x[0-9A-F]{2}>", t)}
    for i, token in tokenizer.backend.get_added_tokens_decoder().items():
        by_id[i] = token.content, TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        if token.content == model["unk_token"]:
            by_id[i] = token.content, TokenType.UNKNOWN
    found = [by_id.get(i, (f"[PAD{i}]", TokenType.UNUSED)) for i in range(rows)]
    return [token for token, _ in found], [int(kind) for _, kind in found]


def _byte_level(content: Json) -> str | None:
    """The name by which llama.cpp knows how this byte-level BPE cuts text; None for what it has no name for."""
    split, model = content["pre_tokenizer"] or {}, content["model"]
    if content["normalizer"] is not None or model["byte_fallback"] or model["ignore_merges"]:
        return None
    steps = split["pretokenizers"] if split.get("type") == "Sequence" else [split]
    if steps[-1].get("type") != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    cuts = [step.get("pattern", {}).get("Regex") for step in steps[:-1]]
    kept = all(step["behavior"] == "Isolated" and not step["invert"] for step in steps[:-1])
    if steps[-1]["use_regex"]:
        return "gpt-2" if not cuts else None
    return next((NAMES[digits] for digits, own in SPLITS.items() if kept and tuple(cuts) == own), None)


def _is_sentencepiece(content: Json) -> bool:
    first = {"type": "Prepend", "prepend": SPACE}
    then = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    same = content["normalizer"] == {"type": "Sequence", "normalizers": [first, then]}
    return same and content["pre_tokenizer"] is None and content["model"]["byte_fallback"]


def _scores(tokenizer: Tokenizer, model: Json, tokens: list[str]) -> list[float]:
    """SentencePiece's own, or by the rank of a piece's merges; 0 for what no merge makes.

    Raises:
        InputError: merges that no scores say: llama.cpp joins by the score of the whole, whatever its two parts.
    """
    if tokenizer.sentencepiece_model is not None:
        source = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.sentencepiece_model)
        return [source.get_score(i) if i < len(source) else 0.0 for i in range(len(tokens))]
    made = ["".join(pair) for pair in model["merges"]]
    order = list(dict.fromkeys(made))
    vocab, plain = model["vocab"], set(order)
    known = {piece for piece in vocab if piece in plain or len(piece) == 1}
    splits = {piece: sum(piece[:k] in known and piece[k:] in known for k in range(1, len(piece))) for piece in order}
    runs = sum(a != b for a, b in pairwise(made)) + 1
    if runs != len(order) or splits != dict(Counter(made)):
        raise InputError("tokenizer.json: its merges go by their parts, so the vocabulary has no scores, which "
                         "llama.cpp needs; put its tokenizer.model beside it")  # fmt: skip
    rank = {piece: -float(k) for k, piece in enumerate(order)}
    return [rank.get(token, 0.0) for token in tokens]


def template_text(tokenizer: Tokenizer) -> str:
    """The chat template's Jinja, without the marks that only transformers reads."""
    return GENERATION.sub("", template_of(tokenizer.chat_template).jinja_for(tokenizer.bos_token))
