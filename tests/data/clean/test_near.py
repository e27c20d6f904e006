"""Near-duplicates against exact Jaccard, typed here over Python sets, and against datasketch."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given, settings
from hypothesis import strategies as st

from babyllama.data.clean.minhash import jaccard, shingles
from babyllama.data.clean.near import Clusters, Near, join_near, pairs_of, sign

HANZI = "".join(map(chr, range(0x4E00, 0x4E00 + 1500)))


def runs(text: str, size: int = 5) -> set[str]:
    said = "".join(c for c in text.lower() if c.isalnum())
    return {said[i : i + size] for i in range(len(said) - size + 1)}


def alike(a: str, b: str) -> float:
    one, other = runs(a), runs(b)
    return len(one & other) / max(len(one | other), 1)


def edited(text: str, share: float, rng: random.Random) -> str:
    """A share of the characters replaced, removed or doubled, scattered."""
    found = list(text)
    for i in rng.sample(range(len(found)), round(share * len(found))):
        found[i] = rng.choice([rng.choice(HANZI), "", found[i] + rng.choice(HANZI)])
    return "".join(found)


def planted(rng: random.Random, originals: int, shares: list[float]) -> list[str]:
    texts = ["".join(rng.choice(HANZI) for _ in range(rng.randint(200, 900))) for _ in range(originals)]
    return texts + [edited(text, share, rng) for share in shares for text in texts]


def clusters_of(texts: list[str], near: Near) -> np.ndarray:
    found, clusters = sign(texts, near), Clusters(len(texts))
    join_near(clusters, near, iter(found.bands), lambda numbers: found.minima[numbers], texts.__getitem__)
    return clusters.roots()


def pairs(roots: np.ndarray) -> set[tuple[int, int]]:
    return {(a, b) for a, b in combinations(range(len(roots)), 2) if roots[a] == roots[b]}


@pytest.mark.parametrize("threshold", [0.4, 0.5, 0.7])
def test_recall_and_precision_against_exact_jaccard(threshold: float) -> None:
    rng = random.Random(3)
    texts = planted(rng, 60, [0.01, 0.03, 0.05, 0.07, 0.1])
    exact = Clusters(len(texts))
    same = [(a, b) for a, b in combinations(range(len(texts)), 2) if a % 60 == b % 60]
    true = {(a, b) for a, b in same if alike(texts[a], texts[b]) >= threshold}
    exact.join(np.array([a for a, _ in true]), np.array([b for _, b in true]))
    wanted, found = pairs(exact.roots()), pairs(clusters_of(texts, Near(threshold=threshold)))
    assert len(found & wanted) / len(wanted) >= 0.95 and len(found & wanted) / len(found) >= 0.95
    assert len(wanted) > 50


def test_edits_of_one_to_ten_percent_are_found_at_a_threshold_of_four_tenths() -> None:
    rng = random.Random(4)
    texts = planted(rng, 150, [rng.uniform(0.01, 0.1)] * 2)
    roots = clusters_of(texts, Near(threshold=0.4))
    found = [roots[i] == roots[i % 150] for i in range(150, len(texts))]
    wrong = sum(roots[a] == roots[b] for a, b in combinations(range(150), 2))
    assert np.mean(found) >= 0.95 and not wrong


def test_what_datasketch_finds_at_the_same_bands_is_found() -> None:
    rng, near = random.Random(5), Near(threshold=0.6)
    texts = planted(rng, 40, [0.02, 0.06])
    index, minima = MinHashLSH(params=(near.bands, near.height), num_perm=128), []
    for number, text in enumerate(texts):
        minima.append(MinHash(num_perm=128))
        minima[-1].update_batch([run.encode() for run in runs(text)])
        index.insert(number, minima[-1])
    asked = [(a, b) for b in range(len(texts)) for a in map(int, map(str, index.query(minima[b]))) if a < b]
    theirs = {(a, b) for a, b in asked if minima[a].jaccard(minima[b]) >= 0.6}
    ours = pairs(clusters_of(texts, near))
    sure = {(a, b) for a, b in theirs if alike(texts[a], texts[b]) >= 0.6}  # its estimate may be above, the pair below
    assert len(sure & ours) >= 0.97 * len(sure) and sure


@settings(max_examples=60)
@given(st.lists(st.text("ab春眠1 ，B\n😀", max_size=25), max_size=6), st.integers(1, 6))
def test_shingles_are_the_runs_of_each_text(texts: list[str], size: int) -> None:
    def plain(text: str) -> set[str]:
        said = "".join(c for c in text if c.isalnum() or c == "😀").lower()
        return {said[i : i + size] for i in range(len(said) - size + 1)}

    near = Near(characters=size, permutations=16)
    assert sign(texts, near).shingles.tolist() == [
        max(len("".join(c for c in t if c.isalnum() or c == "😀")) - size + 1, 0) for t in texts
    ]
    for a, b in combinations(texts, 2):
        one, other = plain(a), plain(b)
        exact = len(one & other) / max(len(one | other), 1)
        assert jaccard(shingles(a, size), shingles(b, size)) == pytest.approx(exact)


def test_bands_for_a_threshold() -> None:
    for threshold in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        near = Near(threshold=threshold)
        assert 1 - (1 - threshold**near.height) ** near.bands >= 0.93
    assert (Near(threshold=0.8, rows=4).bands, Near(threshold=0.8, rows=4).height) == (32, 4)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 5), max_size=60))
def test_pairs_join_what_is_equal(values: list[int]) -> None:
    clusters = Clusters(len(values))
    for left, right in pairs_of(np.array(values, np.uint64)):
        clusters.join(left, right)
    roots = clusters.roots()
    assert roots.tolist() == [values.index(value) if value else i for i, value in enumerate(values)]
