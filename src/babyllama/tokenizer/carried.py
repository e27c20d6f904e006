"""From one vocabulary to another: of which old tokens each new token's row is to be made.

A token that is there in both keeps its row; any other is the mean of the old tokens that its text becomes (fast
vocabulary transfer, Gee et al. 2022, arXiv 2402.09977). Not here: the rows (model/embeddings.py).
"""

from __future__ import annotations

import json
import re

from babyllama.errors import InputError
from babyllama.tokenizer.cuts import BYTE_TO_CHAR
from babyllama.tokenizer.from_sentencepiece import SPACE
from babyllama.tokenizer.tokenizer import Tokenizer

_BYTE_OF = {char: byte for byte, char in BYTE_TO_CHAR.items()}


def sources(old: Tokenizer, new: Tokenizer) -> list[tuple[int, ...]]:
    """For each id of `new` the ids of `old`: one where it stays the same token, none where nothing tells.

    Special tokens go by what they are for (bos, eos, roles), then by name.

    Raises:
        InputError: a vocabulary whose tokens' bytes are not known (neither bytes nor SentencePiece's).
    """
    had, needs = bytes_of(old), bytes_of(new)
    by_bytes = {piece: i for i, piece in sorted(had.items(), reverse=True)}
    by_bytes |= {piece: i for i, piece in had.items() if len(piece) > 1 or not _is_byte(old, i)}  # <0x61> comes after a
    special = _special(old, new)
    unlike = [i for i, piece in needs.items() if i not in special and piece not in by_bytes]
    texts = {i: needs[i].decode("utf-8", "replace") for i in unlike}
    whole = [i for i in unlike if "\ufffd" not in texts[i]]
    found = dict(zip(whole, _inside(old, [texts[i] for i in whole]), strict=True))
    for i in set(unlike) - set(whole):  # parts of characters
        found[i] = tuple(by_bytes[one] for one in (bytes([byte]) for byte in needs[i]) if one in by_bytes)
    found |= {i: (by_bytes[piece],) for i, piece in needs.items() if i not in special and piece in by_bytes}
    names = {i: _named(old, new, i) for i in needs if i not in special}
    found |= {i: (same,) for i, same in names.items() if same is not None and had.get(same) == needs[i]}
    return [(special.get(i) or found.get(i, ())) for i in range(new.vocab_size)]


def _special(old: Tokenizer, new: Tokenizer) -> dict[int, tuple[int, ...]]:
    """New special tokens → what they are in the old vocabulary."""
    named = {i: _named(old, new, i) for i in new.special_ids}
    found = {i: () if same is None or same not in old.special_ids else (same,) for i, same in named.items()}
    found |= {i: (old.role_ids[role],) for role, i in new.role_ids.items() if role in old.role_ids}
    return {**found, new.bos_id: (old.bos_id,), new.eos_id: (old.eos_id,)}


def _named(old: Tokenizer, new: Tokenizer, token: int) -> int | None:
    """The old token with the name that a new one has."""
    return old.backend.token_to_id(new.backend.id_to_token(token) or "")


def _inside(old: Tokenizer, texts: list[str]) -> list[tuple[int, ...]]:
    """The tokens of texts that stand inside another: without the blank that SentencePiece puts in front."""
    opening = old.encode("\n")
    after = old.encode_batch([f"\n{text}" for text in texts])
    alone = old.encode_batch(texts)
    return [tuple(one[len(opening) :] if one[: len(opening)] == opening else own)
            for one, own in zip(after, alone, strict=True)]  # fmt: skip


def bytes_of(tokenizer: Tokenizer) -> dict[int, bytes]:
    """The bytes of every token that is text. Raises InputError as `sources`."""
    content = json.loads(tokenizer.backend.to_str())
    decoder = content["decoder"] or {}
    kinds = {part["type"] for part in decoder.get("decoders", [decoder]) if part}
    added = {token["id"]: token["content"] for token in content["added_tokens"]}
    found: dict[int, bytes] = {}
    for i in tokenizer.text_ids:
        piece = tokenizer.backend.id_to_token(i) or ""
        if i in added:
            found[i] = added[i].encode()
        elif "ByteLevel" in kinds and all(char in _BYTE_OF for char in piece):
            found[i] = bytes(_BYTE_OF[char] for char in piece)
        elif "ByteFallback" in kinds:
            byte = _is_byte(tokenizer, i)
            found[i] = bytes([int(piece[3:5], 16)]) if byte else piece.replace(SPACE, " ").encode()
        else:
            raise InputError(f"the token {piece!r} is of a vocabulary whose bytes are not known here; a vocabulary of "
                             "bytes (GPT-2's kind) or of SentencePiece is needed")  # fmt: skip
    return found


def _is_byte(tokenizer: Tokenizer, token: int) -> bool:
    """Whether it is one of SentencePiece's ``<0x00>`` to ``<0xFF>``."""
    return re.fullmatch("<0x[0-9A-F]{2}>", tokenizer.backend.id_to_token(token) or "") is not None
