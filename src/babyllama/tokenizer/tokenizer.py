"""Text ↔ tokens: one class for every vocabulary.

tokenizer.json is the truth. ChatGLM2's SentencePiece model is converted to it exactly and stays beside it as the fast
way to encode, with identical ids. Not here: learning a vocabulary (train.py), chats (chat.py), files of tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import xxhash

from babyllama.atomic import write_atomic, write_json
from babyllama.errors import InputError
from babyllama.tokenizer.chat import TEMPLATES
from babyllama.tokenizer.chatglm2 import convert_sentencepiece
from babyllama.tokenizer.special import BOS, EOS, ROLE_TOKENS


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary, the names of its special tokens and its chat template.

    `encode` adds nothing and never makes a special token out of text; special tokens come from the ids below.
    """

    backend: tokenizers.Tokenizer
    bos_token: str = BOS
    eos_token: str = EOS
    chat_template: str = "roles"  # a key of chat.TEMPLATES
    sentencepiece_model: bytes | None = None  # encodes faster, to the same ids

    def __post_init__(self) -> None:
        self.backend.encode_special_tokens = True  # a special token written in a text stays text
        self.backend.no_padding()
        self.backend.no_truncation()
        if self.chat_template not in TEMPLATES:
            raise InputError(f"chat template {self.chat_template!r} is unknown; choose one of {', '.join(TEMPLATES)}")
        if self.chat_template == "roles" and not self.role_ids:
            names = " ".join(ROLE_TOKENS.values())
            raise InputError(f"chat template 'roles' needs the tokens {names}, which this vocabulary lacks; use 'bos'")

    def __reduce__(self) -> tuple[Any, ...]:  # the backend forgets encode_special_tokens when pickled
        fields = (self.bos_token, self.eos_token, self.chat_template, self.sentencepiece_model)
        return type(self), (self.backend, *fields)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a run, a Hugging Face folder, or a SentencePiece BPE model (ChatGLM2's tokenizer.model).

        A folder is searched before its ``model/``. A vocabulary of no known chat template gets "roles" if it has the
        role tokens and "bos" otherwise.

        Raises:
            InputError: no tokenizer there, a damaged file, or a SentencePiece model that has no exact conversion.
        """
        path = Path(path)
        if path.is_file() and path.name != "tokenizer.json":
            return _from_sentencepiece(path)
        for folder in (path.parent,) if path.is_file() else (path, path / "model"):
            if (folder / "tokenizer.json").is_file():
                return _from_folder(folder)
            if (folder / "tokenizer.model").is_file():
                return _from_sentencepiece(folder / "tokenizer.model")
        what = "has neither tokenizer.json nor tokenizer.model" if path.exists() else "does not exist"
        raise InputError(f"{path}: {what}; make a tokenizer with: babyllama tokenizer out={path}")

    def with_template(self, name: str) -> Tokenizer:
        """The same vocabulary with another chat template. Raises InputError if it is unknown or cannot work."""
        return replace(self, chat_template=name)

    # ── facts ──────────────────────────────────────────────────────────────────────────────────────────────────
    @cached_property
    def vocab_size(self) -> int:
        """Highest id + 1."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def bos_id(self) -> int:
        return self._id(self.bos_token)

    @cached_property
    def eos_id(self) -> int:
        return self._id(self.eos_token)

    @cached_property
    def role_ids(self) -> dict[str, int]:
        """Role → id; empty when the vocabulary lacks any of the four role tokens."""
        ids = {role: self.backend.token_to_id(token) for role, token in ROLE_TOKENS.items()}
        found = {role: token for role, token in ids.items() if token is not None}
        return found if len(found) == len(ROLE_TOKENS) else {}

    def special_id(self, name: str) -> int:
        """The id of ``bos``, ``eos`` or a role."""
        return {"bos": self.bos_id, "eos": self.eos_id, **self.role_ids}[name]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def hash(self) -> str:
        """16 hex digits of all that decides text → ids. The chat template and the way back to text are not in it."""
        content = json.loads(self.backend.to_str())
        decides = {key: content[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        return xxhash.xxh3_64_hexdigest(json.dumps(decides, ensure_ascii=False, sort_keys=True).encode())

    def _id(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        if found is None:
            raise InputError(f"tokenizer_config.json names {token!r}, which is not in tokenizer.json")
        return found

    # ── text ↔ tokens ──────────────────────────────────────────────────────────────────────────────────────────
    def encode(self, text: str) -> list[int]:
        """The ids of one text; a long list of texts is faster in `encode_batch`. Raises InputError as that does."""
        try:
            if self._sentencepiece is not None:
                return self._sentencepiece.encode(text)
            return self.backend.encode(text, add_special_tokens=False).ids
        except (TypeError, RuntimeError):
            _check_unicode(text)
            raise

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """One list of ids for each text; the same ids as one at a time. Parallel work belongs in processes.

        Raises:
            InputError: a text holds half a surrogate pair, which is no character.
        """
        texts = list(texts)
        try:
            if self._sentencepiece is not None:
                return self._sentencepiece.encode(texts, num_threads=1)
            return [found.ids for found in self.backend.encode_batch_fast(texts, add_special_tokens=False)]
        except (TypeError, RuntimeError):
            for text in texts:
                _check_unicode(text)
            raise

    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str:
        """Ids outside the vocabulary are left out; bytes that make no character become U+FFFD."""
        return self.backend.decode([int(token) for token in tokens], skip_special_tokens=skip_special)

    def stream(self) -> TextStream:
        """Decode token by token, special tokens skipped."""
        return TextStream(self)

    @cached_property
    def _sentencepiece(self) -> sentencepiece.SentencePieceProcessor | None:
        if self.sentencepiece_model is None:
            return None
        return sentencepiece.SentencePieceProcessor(model_proto=self.sentencepiece_model)

    # ── files ──────────────────────────────────────────────────────────────────────────────────────────────────
    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and, when there is one, tokenizer.model."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "pad_token": self.eos_token,
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 10**30,  # transformers' way to say: ask the model
            "chat_template": TEMPLATES[self.chat_template].jinja,
        }
        write_atomic(folder / "tokenizer.json", self.backend.to_str())
        write_json(folder / "tokenizer_config.json", config, indent=2)
        if self.sentencepiece_model is not None:
            write_atomic(folder / "tokenizer.model", self.sentencepiece_model)


class TextStream:
    """Tokens → text as they come: the pushes and the flush together are `decode` of all the tokens.

    Text is held back while the next token could still change it: an unfinished character, or a run of SentencePiece
    byte tokens, which stands or falls as a whole. A few tokens already given out stay as context, since a decoder may
    treat the very first blank specially.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text that became certain; often empty."""
        token = int(token)
        name = self._tokenizer.backend.id_to_token(token)
        if name is None or token in self._tokenizer.special_ids:
            return ""
        self._pending.append(token)
        text = self._pending_text()
        if not text or text.endswith("\ufffd") or re.fullmatch("<0x[0-9A-Fa-f]{2}>", name):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """What is left, unfinished bytes as U+FFFD; the stream starts anew after it."""
        text = self._pending_text()
        self._context, self._pending = [], []
        return text

    def _pending_text(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending)[len(before) :]


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise InputError(
            f"text holds half a surrogate pair (U+{code:04X} at character {error.start}); remove it"
        ) from None


def _from_folder(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise InputError(f"{path}: not a readable tokenizer ({error}); fetch or make it again") from None
    config = _read_config(folder / "tokenizer_config.json")
    eos = _token_name(config.get("eos_token"), folder) or EOS
    bos = _token_name(config.get("bos_token"), folder) or (BOS if backend.token_to_id(BOS) is not None else eos)
    for name in (bos, eos):
        if backend.token_to_id(name) is None:
            raise InputError(
                f"{folder}/tokenizer_config.json: bos_token or eos_token {name!r} is not in tokenizer.json"
            )
    has_roles = all(backend.token_to_id(token) is not None for token in ROLE_TOKENS.values())
    named = [name for name, template in TEMPLATES.items() if template.jinja == config.get("chat_template")]
    default = "roles" if has_roles else "bos"
    return Tokenizer(backend, bos, eos, (*named, default)[0], _same_sentencepiece(folder, backend))


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    template = path.with_name("chat_template.jinja")  # where transformers puts it when it saves a tokenizer again
    if isinstance(config, dict) and template.is_file():
        config["chat_template"] = template.read_text("utf-8")
    if not isinstance(config, dict):
        raise InputError(f"{path}: must hold a JSON object, not {type(config).__name__}")
    return config


def _token_name(value: Any, folder: Path) -> str | None:
    name = value.get("content") if isinstance(value, dict) else value  # older files write the whole AddedToken
    if name is not None and not isinstance(name, str):
        raise InputError(f"{folder}/tokenizer_config.json: a token must be a string, got {value!r:.80}")
    return name


def _same_sentencepiece(folder: Path, backend: tokenizers.Tokenizer) -> bytes | None:
    """The tokenizer.model of `folder`, if it gives exactly the ids of `backend`."""
    path = folder / "tokenizer.model"
    try:
        model = path.read_bytes()
        return model if convert_sentencepiece(model, str(path)).to_str() == backend.to_str() else None
    except (OSError, InputError):
        return None


def _from_sentencepiece(path: Path) -> Tokenizer:
    model = path.read_bytes()
    return Tokenizer(convert_sentencepiece(model, str(path)), sentencepiece_model=model)
