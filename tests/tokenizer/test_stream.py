"""Text as tokens come: all pieces together are the text of all tokens, and nothing is taken back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_run import small_tokenizer

from babyllama.tokenizer.stream import TextStream


@given(st.text(max_size=40), st.integers(0, 6))
def test_the_pieces_are_the_text(text, cut):
    tokenizer = small_tokenizer()
    tokens = tokenizer.encode(text)
    before, after = tokens[:cut], tokens[cut:]
    stream = TextStream(tokenizer, before)
    pieces = [stream.push(token) for token in after]
    assert "\ufffd" not in "".join(pieces)  # no half character is ever shown
    whole = "".join(pieces) + stream.flush()
    if "\ufffd" not in tokenizer.decode(before):  # cut between two characters
        assert tokenizer.decode(before) + whole == text


@pytest.mark.parametrize("character", ["😀", "龘"])
def test_a_character_of_several_tokens_comes_as_one(character):
    tokenizer = small_tokenizer()
    tokens = tokenizer.encode(character)
    assert len(tokens) > 1
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in tokens] == [""] * (len(tokens) - 1) + [character]
    assert [stream.push(token) for token in tokens[:-1]] == [""] * (len(tokens) - 1) and stream.flush() == "\ufffd"
    assert stream.push(tokenizer.eos_id) == stream.flush() == ""
