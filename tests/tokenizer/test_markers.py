"""Markers: which tokens no text may become, and a free character for what must not be mixed up with a text."""

from __future__ import annotations

import pytest
from small_run import small_tokenizer
from tokenizers import AddedToken

from babyllama.errors import InputError
from babyllama.tokenizer.markers import _NONCHARACTERS, free_character, markers_of, without


def with_words():
    backend = type(small_tokenizer().backend).from_str(small_tokenizer().backend.to_str())
    backend.add_tokens([AddedToken("[INST]"), AddedToken("<|user|>"), AddedToken("糖尿病"), AddedToken("a<b")])
    backend.add_special_tokens([AddedToken("END", special=True)])
    return backend


def test_special_tokens_and_added_ones_in_brackets_are_markers():
    own = markers_of(small_tokenizer().backend)
    assert markers_of(with_words()) == own | {"[INST]", "<|user|>", "END"}


def test_no_text_becomes_a_marker_and_other_added_words_are_found():
    backend = with_words()
    text = "[INST]糖尿病END<|user|>"
    kept = without(backend, markers_of(backend))
    ids = kept.encode(text, add_special_tokens=False).ids
    assert kept.token_to_id("糖尿病") in ids
    assert not {kept.token_to_id(name) for name in ("[INST]", "END", "<|user|>")} & set(ids)
    assert kept.decode(ids) == text
    plain = with_words().encode(text, add_special_tokens=False).ids  # what would come otherwise
    assert {kept.token_to_id(name) for name in ("[INST]", "END", "<|user|>")} <= set(plain)


def test_a_free_character_is_none_of_the_text():
    text = ""
    for _ in _NONCHARACTERS:
        free = free_character(text)
        assert free not in text
        text += free
    with pytest.raises(InputError, match="every noncharacter"):
        free_character(text)
