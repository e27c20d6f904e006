"""Text ↔ tokens: one class for every vocabulary.

tokenizer.json is the truth. ChatGLM2's SentencePiece model is converted to it exactly and stays beside it as a faster
way to encode, with identical ids; the fastest is fast.py. In one file although it is long, for it is one class.
Not here: learning, chats, a folder's files, files of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import sentencepiece
import tokenizers
import xxhash

from babyllama.atomic import write_atomic, write_json
from babyllama.errors import InputError
from babyllama.tokenizer.chat import TEMPLATES, template_of
from babyllama.tokenizer.fast import Fast
from babyllama.tokenizer.folder import added_tokens, pad_for, read_folder
from babyllama.tokenizer.jinja import JinjaTemplate
from babyllama.tokenizer.markers import (
    RenderedEncoder,
    free_character,
    markers_of,
    unicode_checked,
    without,
    written_markers,  # fmt: skip
)
from babyllama.tokenizer.special import BOS, EOS, ROLE_TOKENS
from babyllama.tokenizer.stream import TextStream


class ConfigIds(TypedDict):
    """The special tokens that config.json names."""

    bos_id: int
    eos_id: int
    pad_id: int
    stops: frozenset[int]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary, the names of its special tokens and its chat template.

    `encode` adds nothing and never makes a marker out of text (see markers.py); special tokens come from the ids below.
    """

    backend: tokenizers.Tokenizer
    bos_token: str = BOS
    eos_token: str = EOS
    chat_template: str = "roles"  # a key of chat.TEMPLATES, or Jinja text
    sentencepiece_model: bytes | None = None  # encodes faster, to the same ids
    adds_bos: bool = False  # a text begins with bos; else after the eos of the text before it
    own_pad: str | None = None  # the folder's
    stops: frozenset[int] = frozenset()  # what else ends a text, as the folder's generation_config.json says

    def __post_init__(self) -> None:
        self.backend.encode_special_tokens = True  # a special token written in a text stays text
        self.backend.no_padding()
        self.backend.no_truncation()
        template_of(self.chat_template)
        if self.chat_template == "roles" and not self.role_ids:
            names = " ".join(ROLE_TOKENS.values())
            raise InputError(f"chat template 'roles' needs the tokens {names}, which this vocabulary lacks; use 'bos'")

    def __reduce__(self) -> tuple[Any, ...]:  # what is cached stays behind
        fields = (self.bos_token, self.eos_token, self.chat_template, self.sentencepiece_model)
        return type(self), (self.backend, *fields, self.adds_bos, self.own_pad, self.stops)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a run, a Hugging Face folder, or a SentencePiece BPE model (ChatGLM2's or LLaMA's tokenizer.model).

        A folder is searched before its ``model/``. One without a chat template gets "roles" if it has the role tokens
        and "bos" otherwise.

        Raises:
            InputError: no tokenizer there, a damaged file, or a SentencePiece model that has no exact conversion.
        """
        return cls(*read_folder(Path(path)))

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
        """The token that is called bos; what a text begins with is `start_ids`."""
        return self._id(self.bos_token)

    @cached_property
    def eos_id(self) -> int:
        return self._id(self.eos_token)

    @property
    def start_ids(self) -> list[int]:
        """What stands before a text, as in training: bos where the vocabulary adds it, else the end token."""
        return [self.bos_id if self.adds_bos else self.eos_id]

    @cached_property
    def pad_id(self) -> int:
        """What other programs may fill batches with: not the end token, unless there is nothing else."""
        start = self.bos_token if self.adds_bos else self.eos_token
        pad = self.own_pad or pad_for(self.backend, self.chat_template, {start, self.eos_token})
        return self.eos_id if pad is None else self._id(pad)

    @cached_property
    def role_ids(self) -> dict[str, int]:
        """Role → id; empty when the vocabulary lacks any of the four role tokens."""
        ids = {role: self.backend.token_to_id(token) for role, token in ROLE_TOKENS.items()}
        found = {role: token for role, token in ids.items() if token is not None}
        return found if len(found) == len(ROLE_TOKENS) else {}

    @property
    def config_ids(self) -> ConfigIds:
        """What config.json says of a model with this tokenizer; its bos is the one of `save`."""
        return {"bos_id": self._id(self._written_bos), "eos_id": self.eos_id, "pad_id": self.pad_id,
                "stops": self.stops | ({self.turn_end} if self.turn_end is not None else set())}  # fmt: skip

    @property
    def turn_end(self) -> int | None:
        """What ends an answer besides the end token, for programs that stop at few tokens: the next question's role."""
        return self.role_ids["user"] if self.chat_template == "roles" else None

    @property
    def _written_bos(self) -> str:
        """The folder's bos_token: with a built-in template the token that a text begins after."""
        return self.bos_token if self.adds_bos or self.chat_template not in TEMPLATES else self.eos_token

    def special_id(self, name: str) -> int:
        """The id of ``bos``, ``eos`` or a role."""
        return {"bos": self.bos_id, "eos": self.eos_id, **self.role_ids}[name]

    @property
    def special_ids(self) -> frozenset[int]:
        """No text: what is called special, and what the chat template writes after an answer."""
        return self._special_ids

    @property
    def text_ids(self) -> frozenset[int]:
        """All others that the vocabulary has."""
        return self._text_ids

    @cached_property
    def _text_ids(self) -> frozenset[int]:
        return frozenset(self.backend.get_vocab(with_added_tokens=True).values()) - self.special_ids

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        found = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        template = template_of(self.chat_template)
        end = template.ends(self) if isinstance(template, JinjaTemplate) else None
        return frozenset(found | {self.bos_id, self.eos_id} | ({self._id(end)} if end else set()))

    @property
    def stop_ids(self) -> frozenset[int]:
        """What ends an answer or a text: any special token, since neither holds one, and the folder's own."""
        return self.special_ids | self.stops

    @property
    def names(self) -> dict[str, str]:
        """Special tokens by the names that chat templates use."""
        pad = {"pad_token": self.own_pad} if self.own_pad else {}
        return {"bos_token": self.bos_token, "eos_token": self.eos_token, **pad}

    @property
    def markers(self) -> frozenset[str]:
        """The tokens that no text may become."""
        return self._markers

    @cached_property
    def _markers(self) -> frozenset[str]:
        return markers_of(self.backend)

    @property
    def added(self) -> frozenset[str]:
        """All added tokens."""
        return frozenset(token.content for token in self.backend.get_added_tokens_decoder().values())

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
    @cached_property
    def _encoder(self) -> tokenizers.Tokenizer:
        return without(self.backend, self.markers)

    @cached_property
    def _fast(self) -> Fast | None:
        with suppress(OSError):
            return Fast.of(self._encoder)

    def encode_much(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode_batch`, as arrays (tokens,) of uint32. The first call takes a second to get ready; after it
        `encode` and `encode_batch` are faster, too. Raises InputError as `encode_batch`.
        """
        texts = list(texts)
        if self._fast is None:
            return [np.array(found, np.uint32) for found in self.encode_batch(texts)]
        with unicode_checked(texts):
            return self._fast(texts)

    def encode(self, text: str) -> list[int]:
        """The ids of one text; a long list of texts is faster in `encode_batch`. Raises InputError as that does."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """One list of ids for each text; the same ids as one at a time. Parallel work belongs in processes.

        Raises:
            InputError: a text holds half a surrogate pair, which is no character.
        """
        texts = list(texts)
        if self.__dict__.get("_fast") is not None:
            return [found.tolist() for found in self.encode_much(texts)]
        with unicode_checked(texts):
            if self._sentencepiece is not None:
                return self._sentencepiece.encode(texts, num_threads=1)
            return [found.ids for found in self._encoder.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_rendered(
        self, text: str, contents: Sequence[tuple[int, int]], written: str
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """What the template `written` wrote → ids and where each comes from; markers in `contents` stay text."""
        with unicode_checked([text]):
            text.encode()
        return self._rendered_encoder(written, free_character(text))(text, contents)

    @lru_cache(maxsize=4)  # noqa: B019  (tokenizers are few and live as long as the program)
    def _rendered_encoder(self, written: str, lead: str) -> RenderedEncoder:
        return RenderedEncoder(self.backend, written_markers(self, written), lead)

    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str:
        """Ids outside the vocabulary are left out; bytes that make no character become U+FFFD."""
        no = self.special_ids if skip_special else ()
        return self.backend.decode([i for i in map(int, tokens) if i not in no], skip_special_tokens=skip_special)

    def decode_all(self, texts: Sequence[Sequence[int]]) -> list[str]:
        """As `decode` of each, special tokens left out; many at once take less time, and several cores."""
        no = self.special_ids
        kept = [[i for i in map(int, tokens) if i not in no] for tokens in texts]
        return self.backend.decode_batch(kept, skip_special_tokens=True)

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """Decode some tokens at a time, special tokens skipped; `after` is the text that is continued."""
        return TextStream(self, after)

    def continuation(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """The text that `tokens` add to that of `prompt`, a blank between them included."""
        before = self.decode(prompt)
        return self.decode([*prompt, *tokens])[len(before) :]

    @cached_property
    def _sentencepiece(self) -> sentencepiece.SentencePieceProcessor | None:
        if self.sentencepiece_model is None:
            return None
        return sentencepiece.SentencePieceProcessor(model_proto=self.sentencepiece_model)

    # ── files ──────────────────────────────────────────────────────────────────────────────────────────────────
    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and, when there is one, tokenizer.model.

        With a built-in template the token that texts begin after is called bos there, so that programs which put bos
        in front of a text ask the model what it knows.
        """
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self._written_bos,
            "eos_token": self.eos_token,
            "pad_token": self.backend.id_to_token(self.pad_id),
            "padding_side": "left",  # an answer is generated at the right end of a row
            "add_bos_token": self.adds_bos,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 10**30,  # transformers' way to say: ask the model
            "added_tokens_decoder": added_tokens(self.backend),
            "chat_template": template_of(self.chat_template).jinja_for(self.bos_token),
        }
        write_atomic(folder / "tokenizer.json", self.backend.to_str())
        write_json(folder / "tokenizer_config.json", config, indent=2)
        if self.sentencepiece_model is not None:
            write_atomic(folder / "tokenizer.model", self.sentencepiece_model)
