"""Own vocabularies: any text round-trips, hanzi stay whole, the same text gives the same bytes."""

import os
import pickle
import re
import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from small import SMALL_TEXT

from babyllama.errors import InputError
from babyllama.tokenizer.cuts import BYTE_TO_CHAR
from babyllama.tokenizer.special import SPECIAL_TOKENS
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import _CUT, _replay, train_bpe

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def own() -> Tokenizer:
    return train_bpe(SMALL_TEXT, 460)


@given(TEXT)
def test_any_text_round_trips(own: Tokenizer, text: str) -> None:
    assert own.decode(own.encode(text)) == text


@given(st.text(st.sampled_from(sorted(set("".join(SMALL_TEXT)))), max_size=30))
def test_every_known_character_is_whole(own: Tokenizer, text: str) -> None:
    assert "\ufffd" not in "".join(own.decode([token]) for token in own.encode(text))


def test_ids_start_with_special_tokens_then_bytes(own: Tokenizer) -> None:
    assert [own.backend.id_to_token(i) for i in range(6)] == list(SPECIAL_TOKENS)
    assert own.backend.encode_special_tokens
    assert [own.decode([6 + byte]) for byte in range(128)] == [chr(byte) for byte in range(128)]
    assert (own.bos_id, own.eos_id, own.vocab_size) == (0, 1, 460)


def test_byte_alphabet_is_that_of_byte_level() -> None:
    assert set(BYTE_TO_CHAR.values()) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    for byte, char in BYTE_TO_CHAR.items():
        shown = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        if byte < 128:
            assert shown.pre_tokenize_str(chr(byte))[0][0] == char


def test_learned_merges_are_the_most_frequent_pairs() -> None:
    """Worked by hand: 天气 occurs most, then 天气很."""
    texts = ["天气很好"] * 3 + ["天气很坏"] * 2 + ["天气"]
    vocab = train_bpe(texts, 1000)
    assert [vocab.decode([i]) for i in vocab.encode("天气很好天气天气很")] == ["天气很好", "天气", "天气很"]


def test_vocabulary_of_the_alphabet_is_one_token_a_character() -> None:
    characters = Counter("".join(SMALL_TEXT))
    hanzi = [c for c in characters if not c.isascii()]
    prefixes = {c.encode()[:2] for c in hanzi}
    size = 262 + len(hanzi) + len(prefixes)
    tokenizer = train_bpe(SMALL_TEXT, size)
    assert tokenizer.vocab_size == size
    assert all(len(tokenizer.encode(text)) == len(text) for text in SMALL_TEXT)


@pytest.mark.parametrize("size", [262, 263, 264, 300, 333, 460])
def test_vocab_size_is_exact(size: int) -> None:
    assert train_bpe(SMALL_TEXT, size).vocab_size == size


def test_vocab_size_is_smaller_when_the_text_has_no_more() -> None:
    assert train_bpe(["好好"], 5000).vocab_size < 300


def test_most_frequent_characters_come_first() -> None:
    texts = ["一" * 9 + "丁" * 5 + "七" * 7 + "鱼"]
    tokenizer = train_bpe(texts, 600, max_alphabet=2)
    assert [len(tokenizer.encode(char)) for char in "一七"] == [1, 1]
    assert len(tokenizer.encode("丁")) > 1
    assert len(tokenizer.encode("鱼")) == 3
    assert tokenizer.decode(tokenizer.encode("一丁七鱼")) == "一丁七鱼"


def test_tokens_do_not_cross_the_cuts(own: Tokenizer) -> None:
    for text in ("模型。", "模型，我", "字1", "12345"):
        assert len(own.encode(text)) >= 2


def test_same_texts_give_the_same_bytes_whatever_threads_and_hash_seed() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from small import SMALL_TEXT;"
        "from babyllama.tokenizer.train import train_bpe; print(train_bpe(iter(SMALL_TEXT), 450).hash)"
    )
    found = {train_bpe(SMALL_TEXT, 450).hash}
    for threads, seed in (("1", "1"), ("2", "2")):
        env = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(Path(__file__).parent)]
        found.add(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip())
    assert len(found) == 1


def test_progress_counts_characters() -> None:
    seen: list[int] = []
    train_bpe(["你好", "abc"], 300, progress=seen.append)
    assert seen == [2, 3]


def test_damaged_unicode_and_the_cut_mark_are_no_characters() -> None:
    tokenizer = train_bpe(["好\ud800好\uffff好"] * 3, 300)
    assert len(tokenizer.encode("好好")) == 2


@pytest.mark.parametrize(
    ("texts", "size", "fault"), [(["你好"], 261, "at least 262"), ([], 300, "no text"), ([""], 300, "no text")]
)
def test_faults_are_named(texts: list[str], size: int, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        train_bpe(texts, size)


def test_numbers_are_cut_as_is_asked() -> None:
    text = ["在2024年有365天，12月31日是最后1天，共27+35=62。"] * 20
    pieces = {digits: train_bpe(iter(text), 420, digits=digits) for digits in (1, 3)}
    for digits, tokenizer in pieces.items():
        longest = max(len(re.sub(r"\D", "", tokenizer.decode([i]))) for i in tokenizer.encode(text[0]))
        assert longest == digits and tokenizer.decode(tokenizer.encode(text[0])) == text[0]


@pytest.mark.parametrize("run", ["春" * 2500, "春夏" * 1250, " " * 2500, "=" * 2500])
def test_a_run_without_end_is_cut_for_the_trainer_alone(run: str) -> None:
    """Its time goes by the square of a word's length: 300,000 hanzi without a stop took it a minute."""
    usual = ("字" * 999 + "，") * 3
    spool = BytesIO(pickle.dumps(usual) + pickle.dumps(f"起。{run}止"))
    whole, cut = _replay(spool, set())
    assert whole == usual and cut.replace(_CUT, "") == f"起。{run}止"
    assert max(map(len, cut.split(_CUT))) <= 1002 and cut.count(_CUT) == 2
