"""Which old tokens a new one is made of: by hand for small vocabularies of both kinds."""

import pytest
import tokenizers
from small import SMALL_TEXT, sentencepiece_model
from tokenizers import models

from babyllama.errors import InputError
from babyllama.tokenizer.carried import bytes_of, sources
from babyllama.tokenizer.cuts import BYTE_TO_CHAR
from babyllama.tokenizer.from_sentencepiece import add_special, convert_sentencepiece
from babyllama.tokenizer.special import SPECIAL_TOKENS
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import train_bpe


def of_sentencepiece() -> Tokenizer:
    backend = convert_sentencepiece(sentencepiece_model(), "here")
    add_special(backend, list(SPECIAL_TOKENS))
    return Tokenizer(backend)


def test_the_same_vocabulary_keeps_every_row() -> None:
    for one in (train_bpe(SMALL_TEXT, 460), of_sentencepiece()):
        assert sources(one, one) == [(i,) for i in range(one.vocab_size)]


@pytest.mark.parametrize("turned", [False, True])
def test_between_the_two_kinds(turned: bool) -> None:
    both = train_bpe(SMALL_TEXT, 460), of_sentencepiece()
    old, new = both[::-1] if turned else both
    found, had, needs = sources(old, new), bytes_of(old), bytes_of(new)
    assert found[new.eos_id] == (old.eos_id,) and found[new.role_ids["user"]] == (old.role_ids["user"],)
    same = [i for i, piece in needs.items() if piece in had.values()]
    assert len(same) > 300 and all(had[found[i][0]] == needs[i] and len(found[i]) == 1 for i in same)
    others = [i for i in needs if i not in same]
    assert len(others) > 20
    for i in others:  # the old tokens spell the new one
        assert b"".join(had[token] for token in found[i]) == needs[i] and len(found[i]) > 1
    space = next(i for i, piece in needs.items() if piece == b" ")
    assert had[found[space][0]] == b" "


def test_what_has_no_counterpart() -> None:
    old, new = train_bpe(SMALL_TEXT, 460), of_sentencepiece()
    unknown = new.backend.token_to_id("<unk>")
    assert sources(old, new)[unknown] == ()
    words = tokenizers.Tokenizer(models.WordLevel({"天": 0, "<s>": 1, "</s>": 2}, "天"))
    add_special(words, ["<s>", "</s>"])
    with pytest.raises(InputError, match="'天' is of a vocabulary whose bytes are not known"):
        sources(old, Tokenizer(words, chat_template="bos"))


def test_bytes() -> None:
    own, pieces = train_bpe(SMALL_TEXT, 460), of_sentencepiece()
    text = "天 a\n龘"
    for one in (own, pieces):
        assert b"".join(bytes_of(one)[i] for i in one.encode(text)).decode().strip(" ") == text
    assert set(BYTE_TO_CHAR) == {piece[0] for piece in bytes_of(own).values() if len(piece) == 1}
