"""The compiled encoder beside the libraries that it stands for: the same ids, whatever the text."""

import functools
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from small import ADVERSARIAL, SMALL_TEXT, sentencepiece_model
from tokenizers import AddedToken, models, pre_tokenizers, trainers

from babyllama.errors import InputError
from babyllama.tokenizer.cuts import BYTE_TO_CHAR, pre_tokenizer
from babyllama.tokenizer.fast import Fast, library
from babyllama.tokenizer.from_sentencepiece import convert_sentencepiece
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import train_bpe

try:
    library()
except OSError:
    pytest.skip("needs a C++ compiler", allow_module_level=True)

DENSE = (
    "今天天气很好天天今 aaabab'll 're1234５６½٣ é́̀ \t\r\n\n　\u00a0\u2028。，！？!?.,“”$+^`_ー・゙゠ カタひら〇한😀🏽"
    "\u200d\u0301\x00\x85▁"
)
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text(st.sampled_from(DENSE), max_size=60)


@functools.cache
def vocabulary(name: str) -> Tokenizer:
    """Small ones of each kind; `parts` joins bytes of neighbouring characters, as foreign vocabularies do."""
    if name == "sentencepiece":
        path = Path(os.environ.get("BABYLLAMA_CHATGLM2", ""))
        model = path.read_bytes() if path.is_file() else sentencepiece_model()
        return Tokenizer(convert_sentencepiece(model, "here"), chat_template="bos")
    if name != "parts":
        return train_bpe([*SMALL_TEXT, DENSE * 3], 600, digits=3 if name == "three digits" else 1)
    alphabet = {char: number for number, char in enumerate(BYTE_TO_CHAR.values())}
    learner = tokenizers.Tokenizer(models.BPE(alphabet, []))
    learner.pre_tokenizer = pre_tokenizer(3)
    trainer = trainers.BpeTrainer(vocab_size=420, min_frequency=1, show_progress=False,
                                             initial_alphabet=list(BYTE_TO_CHAR.values()))  # fmt: skip
    learner.train_from_iterator([*SMALL_TEXT, DENSE * 3], trainer)
    learner.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>")])
    return Tokenizer(learner, chat_template="bos")


@pytest.fixture(params=["sentencepiece", "three digits", "one digit", "parts"])
def known(request) -> Tokenizer:
    return vocabulary(request.param)


def by_library(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [found.ids for found in tokenizer.backend.encode_batch(texts, add_special_tokens=False)]


def test_hostile_texts_have_the_library_s_ids(known: Tokenizer) -> None:
    draw = random.Random(3)
    pieces = [known.backend.decode([i]) or " " for i in sorted(known.text_ids)]
    texts = [*ADVERSARIAL, DENSE, *SMALL_TEXT[:5], DENSE * 40, "".join(map(chr, range(0x3400))) * 2]
    texts += ["".join(draw.choices(pieces, k=draw.randint(1, 25))) for _ in range(400)]
    texts += ["".join(draw.choices(pieces, k=2)) * draw.randint(1, 60) for _ in range(200)]
    found = known.encode_much(texts)
    assert [ids.tolist() for ids in found] == by_library(known, texts)
    assert all(ids.dtype == np.uint32 for ids in found)


@given(texts=st.lists(TEXT, max_size=4))
@pytest.mark.parametrize("name", ["sentencepiece", "three digits", "one digit", "parts"])
def test_any_text_has_the_library_s_ids(name: str, texts: list[str]) -> None:
    known = vocabulary(name)
    assert [ids.tolist() for ids in known.encode_much(texts)] == by_library(known, texts)
    assert known.encode_batch(texts) == by_library(known, texts)


@pytest.mark.parametrize("digits", [3, 1])
def test_every_character_is_cut_as_the_library_cuts(digits) -> None:
    """Each of Unicode's characters between letters, digits, blanks and signs."""
    learned = train_bpe([DENSE * 3, "a1 .b" * 3], 450, digits=digits)
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    if os.environ.get("BABYLLAMA_CHATGLM2") is None:
        codes = [code for code in codes if code < 0x3100 or code % 61 == 0]  # all take half a minute
    texts = ["".join(f"a{c}1{c} {c}." for c in map(chr, codes[i : i + 4096])) for i in range(0, len(codes), 4096)]
    assert [ids.tolist() for ids in learned.encode_much(texts)] == by_library(learned, texts)


def test_what_it_does_not_know_is_left_to_the_library() -> None:
    own = vocabulary("three digits").backend
    content = json.loads(own.to_str())

    def changed(**parts) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(json.dumps({**content, **parts}))

    other = tokenizers.Tokenizer.from_str(own.to_str())
    other.pre_tokenizer = pre_tokenizers.ByteLevel()
    words = [{**content["added_tokens"][0], "id": 9999, "content": "天气", "special": False}]
    assert Fast.of(own) is not None
    assert Fast.of(other) is None
    assert Fast.of(changed(model={**content["model"], "ignore_merges": True})) is None
    assert Fast.of(changed(added_tokens=[*content["added_tokens"], *words])) is None
    with_words = Tokenizer(changed(added_tokens=[*content["added_tokens"], *words]))
    assert with_words.encode_much(["今天天气"])[0].tolist() == with_words.backend.encode("今天天气").ids


def test_faults_and_nothing() -> None:
    own = train_bpe(SMALL_TEXT, 460)
    assert own.encode_much([]) == [] and [x.tolist() for x in own.encode_much(["", ""])] == [[], []]
    with pytest.raises(InputError, match=r"half a surrogate pair \(U\+D800 at character 1"):
        own.encode_much(["x", "x\ud800"])
    assert own.encode("<|user|></s>") == own.backend.encode("<|user|></s>").ids
