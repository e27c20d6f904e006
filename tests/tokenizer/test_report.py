"""Figures of a vocabulary against ones counted by hand."""

from collections import Counter

import tokenizers
from small import SMALL_TEXT
from tokenizers import AddedToken, decoders, models

from babyllama.tokenizer.cuts import BYTE_TO_CHAR, pre_tokenizer
from babyllama.tokenizer.report import PLANES, measured, pieces, returned, script_of
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import train_bpe


def bytes_and(*words: str, merges: list[tuple[str, str]]) -> Tokenizer:
    vocab = {token: i for i, token in enumerate([*BYTE_TO_CHAR.values(), *words])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer(3), decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>")])
    return Tokenizer(backend, chat_template="bos")


def test_tokens_go_to_the_script_of_their_first_character() -> None:
    own = bytes_and("ab", "Ġab", merges=[("a", "b"), ("Ġ", "ab")])
    counts: Counter[int] = Counter()
    seen = measured(own, ["ab ab 天,12"], counts)
    assert (seen.characters, seen.bytes, seen.tokens, seen.words) == (10, 12, 1 + 1 + 1 + 3 + 1 + 2, 2)
    assert seen.tokens_of == {"latin": 2, "blanks": 1, "hanzi": 3, "ascii signs": 1, "digits": 2}
    assert seen.characters_of == {"latin": 4, "blanks": 2, "hanzi": 1, "ascii signs": 1, "digits": 2}
    assert counts[own.encode("ab")[0]] == 1 and sum(counts.values()) == seen.tokens


def test_scripts() -> None:
    assert script_of("天𠀀〇かカ한٣Aé\u3000!，😀ж") == [
        *("hanzi",) * 3, *("kana",) * 2, "hangul", "digits", *("latin",) * 2, "blanks", "ascii signs", "chinese signs",
        "emoji", "other"]  # fmt: skip


def test_pieces_that_nothing_becomes_are_found() -> None:
    """``abc`` is in the vocabulary, but no merge makes it; ``--------`` is a ruler, the first bytes of 天 a part."""
    ruler = ["-" * n for n in (2, 4, 8)]
    part = "".join(BYTE_TO_CHAR[byte] for byte in "天".encode()[:2])
    own = bytes_and("ab", "abc", *ruler, part, merges=[("a", "b"), ("-", "-"), ("--", "--"), ("----", "----"),
                                                       (part[0], part[1])])  # fmt: skip
    name = {own.backend.id_to_token(i): i for i in range(own.vocab_size)}
    found = pieces(own, Counter(own.encode("ab天 ")))
    assert found.dead == (name["abc"],)
    assert name["-" * 8] in found.strange and name["ab"] not in found.strange
    assert name[part] in found.parts and name["a"] not in found.parts
    assert name["ab"] not in found.unseen and name["-" * 8] in found.unseen


def test_what_does_not_come_back_is_named() -> None:
    broken = train_bpe(SMALL_TEXT, 460).backend
    broken.normalizer = tokenizers.normalizers.Replace("😀", "x")
    found = returned(Tokenizer(broken), {"hanzi": [(0x4E00, 0x4FFF)], "emoji": PLANES["emoji"]})
    assert set(found) == {"hanzi", "emoji", "sequences"}
    assert {name: each.lost for name, each in found.items() if each.lost} == {"emoji": ("😀",)}
    assert 0 < found["hanzi"].single < found["hanzi"].characters == 512
