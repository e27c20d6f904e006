"""What stays is the same, however few documents and lines are in memory at a time."""

from __future__ import annotations

import random

import numpy as np
import pytest

from babyllama.data.clean import duplicates, near
from babyllama.data.clean.duplicates import ALIKE, KEPT, SAME, Exact, Lines, Marked, common_lines, decide, write_marks
from babyllama.data.clean.near import Near
from babyllama.recipe import validate

FOOTER = "版权所有，未经许可不得转载，违者必究。"
CHOICES = (Exact(), validate(Near, {}, "dedup"), validate(Lines, {"documents": 3}, "dedup"))


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Marked:
    """Thirty texts; ten of them again, ten with more before them; of three blobs, and one that cleaning left empty."""
    rng, folder = random.Random(2), tmp_path_factory.mktemp("marks")
    texts = ["".join(chr(rng.randint(0x4E00, 0x5E00)) for _ in range(200)) + f"\n{FOOTER}" for _ in range(30)]
    texts += texts[:10] + ["又及" + text for text in texts[20:]]
    paths = [folder / f"{start}.jsonl" for start in (0, 20, 40)]
    for number, path in enumerate(paths):
        part = texts[20 * number : 20 * number + 20]
        path.write_text("".join(text.replace("\n", "¶") + "\n" for text in part), "utf-8")
        write_marks(path, [(text.replace("\n", "¶").encode(), text, len(text), False, True) for text in part], CHOICES)
    paths.insert(1, folder / "empty.jsonl")
    paths[1].touch()
    write_marks(paths[1], [], CHOICES)
    return Marked(paths)


def decided(documents: Marked) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    decision = decide(documents, CHOICES, lambda line: line.decode().replace("¶", "\n"))
    return decision.fate, decision.root.copy(), common_lines(documents, decision.fate, CHOICES[2])


def test_the_longest_and_the_first_stay(documents: Marked) -> None:
    fate, root, lines = decided(documents)
    wanted = [KEPT] * 20 + [ALIKE] * 10 + [SAME] * 10 + [KEPT] * 10
    assert fate.tolist() == wanted and root.tolist() == [*range(30), *range(10), *range(20, 30)]
    assert lines["hash"].tolist() == [duplicates.line_hash(FOOTER)] and lines["document"].tolist() == [0]


@pytest.mark.parametrize("at_once", [1, 4, 17])
def test_in_parts_it_is_the_same(documents: Marked, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    whole = decided(documents)
    monkeypatch.setattr(near, "AT_ONCE", at_once)
    monkeypatch.setattr(duplicates, "AT_ONCE", at_once)
    monkeypatch.setattr(duplicates, "_LINES_AT_ONCE", at_once)
    for one, other in zip(whole, decided(documents), strict=True):
        np.testing.assert_array_equal(one, other)
