"""Tokenizer folders: what is read of tokenizer.json, tokenizer_config.json and tokenizer.model, and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken

from babyllama.atomic import read_json
from babyllama.errors import InputError
from babyllama.recipe import maker
from babyllama.tokenizer.chat import TEMPLATES, name_of
from babyllama.tokenizer.from_sentencepiece import add_special, convert_sentencepiece
from babyllama.tokenizer.special import BOS, EOS, ROLE_TOKENS, SPECIAL_TOKENS

# What a folder may fill batches with, the best first; never what ends a text, or collators hide every end.
_PADS = ("<pad>", "[PAD]", "<|pad|>", "<unk>", "[UNK]")


class Stored(NamedTuple):
    """A tokenizer's parts, in the order of `Tokenizer`'s fields."""

    backend: tokenizers.Tokenizer
    bos_token: str
    eos_token: str
    chat_template: str
    sentencepiece_model: bytes | None
    adds_bos: bool
    pad_token: str | None
    stops: frozenset[int] = frozenset()


def read_folder(path: Path) -> Stored:
    """From a run, a Hugging Face folder or one file. Raises InputError as `Tokenizer.load` says."""
    if path.is_file() and path.name != "tokenizer.json":
        return read_sentencepiece(path)
    for folder in (path.parent,) if path.is_file() else (path, path / "model"):
        if (folder / "tokenizer.json").is_file():
            return _stored(folder, _backend(folder / "tokenizer.json"))
        if (folder / "tokenizer.model").is_file():
            return _sentencepiece_folder(folder)
    if path.suffix == ".model":
        raise InputError(f"{path}: no such file; give the path of a tokenizer.model that is there")
    what = "has neither tokenizer.json nor tokenizer.model" if path.exists() else "does not exist"
    raise InputError(f"{path}: {what}; make a tokenizer with: {maker('tokenizer', path)}")


def read_sentencepiece(path: Path) -> Stored:
    """A SentencePiece model alone, with the role tokens appended."""
    model = path.read_bytes()
    backend = convert_sentencepiece(model, str(path))
    add_special(backend, list(SPECIAL_TOKENS))
    return Stored(backend, BOS, EOS, "roles", model, False, None)


def _backend(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise InputError(f"{path}: not a readable tokenizer ({error}); fetch or make it again") from None


def _sentencepiece_folder(folder: Path) -> Stored:
    """tokenizer.model alone. A LLaMA model beside it has no rows for tokens of ours, so none are appended."""
    path = folder / "tokenizer.model"
    llama = _read_json(folder / "config.json").get("model_type") == "llama"
    if not llama:
        return read_sentencepiece(path)
    model = path.read_bytes()
    backend = convert_sentencepiece(model, str(path))
    plain = backend.get_vocab_size()
    _add_listed(folder, backend)
    return _stored(folder, backend, adds_bos=True)._replace(
        sentencepiece_model=model if backend.get_vocab_size() == plain else None
    )


def _add_listed(folder: Path, backend: tokenizers.Tokenizer) -> None:
    """The tokens that a folder adds to its pieces, in added_tokens.json or tokenizer_config.json, at their ids."""
    listed: dict[int, AddedToken] = {}
    for name, number in _read_json(folder / "added_tokens.json").items():
        listed[int(number)] = AddedToken(name, normalized=False, special=True)
    for number, token in _read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {}).items():
        flags = {key: bool(token.get(key)) for key in ("lstrip", "rstrip", "single_word", "normalized", "special")}
        listed[int(number)] = AddedToken(token["content"], **flags)
    for number, token in sorted(listed.items(), key=lambda pair: pair[0]):
        backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
        if backend.token_to_id(token.content) != number:
            raise InputError(f"{folder}: the added token {token.content!r} should have id {number}, which does not "
                             "follow the pieces of tokenizer.model; give a folder with its tokenizer.json")  # fmt: skip


def _stored(folder: Path, backend: tokenizers.Tokenizer, adds_bos: bool | None = None) -> Stored:
    config = read_config(folder)
    eos = _token_name(config.get("eos_token"), folder) or EOS
    bos = _token_name(config.get("bos_token"), folder) or (BOS if backend.token_to_id(BOS) is not None else eos)
    for name in (bos, eos):
        if backend.token_to_id(name) is None:
            raise InputError(
                f"{folder}/tokenizer_config.json: bos_token or eos_token {name!r} is not in tokenizer.json"
            )
    has_roles = all(backend.token_to_id(token) is not None for token in ROLE_TOKENS.values())
    template = config.get("chat_template")
    template = name_of(template) if template else "roles" if has_roles else "bos"
    if template == "roles" and not has_roles:
        template = "bos"
    if template in TEMPLATES and bos == eos and backend.token_to_id(BOS) is not None:
        bos = BOS  # folders of ours call the end token bos, since their texts begin after it
    opening = backend.encode("").ids[:1]  # what the tokenizer itself puts in front
    adds = config.get("add_bos_token", adds_bos)
    adds = opening == [backend.token_to_id(bos)] if adds is None else bool(adds)
    pad = _token_name(config.get("pad_token"), folder)
    if pad is not None and (backend.token_to_id(pad) is None or pad in (eos, *SPECIAL_TOKENS)):
        pad = None  # chosen anew by the template
    sentencepiece_model = _same_sentencepiece(folder, backend)
    return Stored(backend, bos, eos, template, sentencepiece_model, adds, pad, _stops(folder))


def _stops(folder: Path) -> frozenset[int]:
    """What the model's generation_config.json lets end a text; a foreign one may name several tokens."""
    found = _read_json(folder / "generation_config.json").get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int for token in ids):
        raise InputError(f"{folder}/generation_config.json: eos_token_id must be ids, got {found!r:.80}")
    return frozenset(ids)


def read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the chat template as one text wherever the folder keeps it."""
    path = folder / "tokenizer_config.json"
    config = _read_json(path)
    template = folder / "chat_template.jinja"  # where transformers puts it when it saves a tokenizer again
    found = template.read_text("utf-8") if template.is_file() else config.get("chat_template")
    if isinstance(found, list):  # several by name, as older versions of transformers write them
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise InputError(f"{path}: chat_template must be text, got {found!r:.80}")
    return {**config, "chat_template": found}


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _token_name(value: Any, folder: Path) -> str | None:
    name = value.get("content") if isinstance(value, dict) else value  # older files write the whole AddedToken
    if name is not None and not isinstance(name, str):
        raise InputError(f"{folder}/tokenizer_config.json: a token must be a string, got {value!r:.80}")
    return name


def _same_sentencepiece(folder: Path, backend: tokenizers.Tokenizer) -> bytes | None:
    """The tokenizer.model of `folder`, if it gives exactly the ids of `backend`."""
    try:
        model = (folder / "tokenizer.model").read_bytes()
        converted = convert_sentencepiece(model, str(folder))
    except (OSError, InputError):
        return None
    if backend.to_str() == converted.to_str():
        return model
    add_special(converted, list(SPECIAL_TOKENS))
    return model if backend.to_str() == converted.to_str() else None


def pad_for(backend: tokenizers.Tokenizer, chat_template: str, taken: set[str]) -> str | None:
    """A special token that no text or chat of this template holds, to fill batches with; None where there is none."""
    spare = {"roles": (BOS,), "bos": tuple(ROLE_TOKENS.values())}.get(chat_template, ())
    candidates = (name for name in (*_PADS, *spare) if backend.token_to_id(name) is not None and name not in taken)
    return next(candidates, None)


def added_tokens(backend: tokenizers.Tokenizer) -> dict[str, dict[str, Any]]:
    """``added_tokens_decoder``: every added token with its flags, by id."""
    return {
        str(i): {"content": t.content, "lstrip": t.lstrip, "normalized": t.normalized, "rstrip": t.rstrip,
                 "single_word": t.single_word, "special": t.special}
        for i, t in sorted(backend.get_added_tokens_decoder().items())
    }  # fmt: skip
