"""The quality score: learns what two piles differ in, is the same every time, and filters."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from babyllama.commands.quality import QualityRecipe, area, main
from babyllama.data.clean.quality import PLACES, Quality, places, score, trained
from babyllama.errors import InputError
from babyllama.recipe import load_recipe

GOOD = ("春天来了", "我们读书", "河水很清", "他说得对", "历史告诉人们", "山上有树")
BAD = ("点击购买", "限时优惠", "加微信群", "免费领取", "注册送彩金", "最新报价")


def piles(folder: Path, count: int = 200) -> tuple[Path, Path]:
    rng, found = random.Random(0), []
    for name, words in (("good", GOOD), ("bad", BAD)):
        texts = ["，".join(rng.choice(words) for _ in range(8)) + "。" for _ in range(count)]
        found.append(folder / f"{name}.jsonl")
        found[-1].write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
    return found[0], found[1]


def test_it_learns_and_filters_and_is_the_same_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = piles(tmp_path)
    files = []
    for name in ("a", "b"):
        files.append(tmp_path / f"{name}.safetensors")
        main(
            load_recipe(QualityRecipe, None, [f"good=[{{path: {good}}}]", f"bad=[{{path: {bad}}}]", f"out={files[-1]}"])
        )
    assert files[0].read_bytes() == files[1].read_bytes() and "100.0%" in capsys.readouterr().out
    filter = Quality(model=files[0])
    filter.check()
    assert filter("春天来了，我们读书，山上有树。") == "春天来了，我们读书，山上有树。"
    assert not isinstance(filter("限时优惠，免费领取，加微信群。"), str)
    assert filter.fingerprint() == Quality(model=files[1]).fingerprint() and filter.measure("") == 0


def test_a_step_goes_down_the_slope_of_the_loss() -> None:
    """One text, one epoch: AdaGrad's first step is the rate against the slope's sign, so the score rises for good."""
    text = "春眠不觉晓"
    weights = trained([text], [], 1, 0.1, 0)
    where = np.unique(places(text))
    assert weights[where] == pytest.approx(0.1, rel=1e-3) and weights[PLACES] == pytest.approx(0.1, rel=1e-3)
    assert np.count_nonzero(weights) == len(where) + 1
    assert score(weights, places(text)) == pytest.approx(1 / (1 + np.exp(-0.2)), rel=1e-3)


def test_area_is_that_of_all_pairs() -> None:
    likes, others = [0.9, 0.5, 0.5], [0.5, 0.1]
    pairs = [(a > b) + (a == b) / 2 for a in likes for b in others]
    assert area(likes, others) == pytest.approx(sum(pairs) / len(pairs))


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; make a quality model with: babyllama quality"):
        Quality(model=tmp_path / "none").check()
    (tmp_path / "bad").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no quality model"):
        Quality(model=tmp_path / "bad").check()
    good, bad = piles(tmp_path, 1)
    with pytest.raises(InputError, match="need some ten texts each"):
        main(
            load_recipe(
                QualityRecipe, None, [f"good=[{{path: {good}}}]", f"bad=[{{path: {bad}}}]", f"out={tmp_path / 'q'}"]
            )
        )
