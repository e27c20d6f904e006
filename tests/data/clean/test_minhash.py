"""Signatures: the compiled code against numpy's, and what they tell of Jaccard similarity, against Python sets."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babyllama.data.clean import minhash
from babyllama.data.clean.minhash import Signatures, fill_by_numpy, fill_compiled, library, shingles


def by(fill: object, texts: list[str], size: int, bins: int, rows: int) -> Signatures:
    found = Signatures(np.zeros(len(texts), np.int64), np.zeros((len(texts), bins), np.uint32),
                       np.zeros((bins // rows, len(texts)), np.uint64))  # fmt: skip
    fill(texts, size, rows, found)  # type: ignore[operator]
    return found


def same(a: Signatures, b: Signatures) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(a, b, strict=True))


def made(rng: random.Random, length: int) -> str:
    """Hanzi, Latin letters, blanks, punctuation, rare hanzi, emoji and halves of surrogate pairs."""
    kinds = [range(0x4E00, 0x5E00), range(0x20, 0x7F), range(0x3000, 0x3020), range(0x20000, 0x20100),
             range(0x1F600, 0x1F640), range(0xD800, 0xE000), range(0x41, 0x5B)]  # fmt: skip
    return "".join(chr(rng.choice(rng.choices(kinds, [9, 4, 1, 1, 1, 1, 2])[0])) for _ in range(length))


def test_where_the_tests_run_there_is_a_compiler() -> None:
    assert library() is not None


@pytest.mark.parametrize(("size", "bins", "rows"), [(5, 128, 3), (1, 16, 16), (64, 200, 7), (3, 1024, 1), (2, 33, 4)])
def test_compiled_and_numpy_give_the_same(size: int, bins: int, rows: int) -> None:
    rng = random.Random(size)
    texts = [made(rng, rng.choice([0, 1, 4, 5, 6, 30, 200, 5000])) for _ in range(60)] + ["春" * 3000, ""]
    assert same(by(fill_compiled, texts, size, bins, rows), by(fill_by_numpy, texts, size, bins, rows))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(), max_size=40), max_size=5), st.integers(1, 9), st.integers(16, 70))
def test_compiled_and_numpy_give_the_same_for_any_texts(texts: list[str], size: int, bins: int) -> None:
    assert same(by(fill_compiled, texts, size, bins, 3), by(fill_by_numpy, texts, size, bins, 3))


def test_without_a_compiler_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [made(random.Random(number), 900) for number in range(90)]  # more than one part
    compiled = Signatures.of(texts, 5, 128, 3)
    monkeypatch.setattr(minhash, "library", lambda: None)
    assert same(compiled, Signatures.of(texts, 5, 128, 3))
    assert same(compiled, by(fill_by_numpy, texts, 5, 128, 3))


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(), max_size=60), st.integers(1, 9))
def test_the_shingles_of_one_text_are_the_same_by_both(text: str, size: int) -> None:
    compiled = shingles(text, size)
    assert len(compiled) == len(set(compiled.tolist())) and compiled.tolist() == sorted(compiled.tolist())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(minhash, "library", lambda: None)
        assert np.array_equal(compiled, shingles(text, size))


@pytest.mark.parametrize("length", [20, 100, 1500])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_bins_agree_as_often_as_the_sets_are_alike(length: int, share: float) -> None:
    """Unbiased, and no wider spread than that of independent hash functions, also of few shingles in many bins."""
    rng, errors, both = random.Random(7), [], int(length * share)
    exact = both / (2 * length - both)
    for _ in range(150):
        runs = [chr(code) for code in rng.sample(range(0x4E00, 0x9000), 2 * length - both)]  # runs of one character
        a, b = runs[:length], runs[:both] + runs[length:]
        found = Signatures.of(["".join(a), "".join(b)], 1, 128, 3).minima
        errors.append(float((found[0] == found[1]).mean()) - exact)
    wide = (exact * (1 - exact) / 128) ** 0.5
    assert abs(np.mean(errors)) < 4 * wide / 150**0.5
    assert np.std(errors) < 1.25 * wide


def test_texts_without_a_shingle_are_like_no_other() -> None:
    found = Signatures.of(["", "，。 ！", "abcd", "abcde"], 5, 16, 4)
    assert found.shingles.tolist() == [0, 0, 0, 1]
    assert not found.bands[:, :3].any() and found.bands[:, 3].all()
