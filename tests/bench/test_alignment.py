"""bench/alignment.py searches for its starts, and for rates, as it says; its questions have the answers they name."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from babyllama.train.rl.rewards import Answer, IdiomChain, Number


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    import alignment

    yield alignment
    sys.modules.pop("alignment")


@pytest.mark.parametrize(("enough", "tried"), [(325, [320]), (500, [320, 640, 480]), (170, [320, 160])])
def test_a_start_is_searched_for_until_its_score_is_inside(bench, monkeypatch, tmp_path: Path, enough, tried) -> None:
    """A score that rises with the steps: 0.6 at `enough`."""
    told = []
    monkeypatch.setattr(bench, "base", lambda *_: None)
    monkeypatch.setattr(bench, "recipe_of", lambda *_: None)
    monkeypatch.setattr(bench, "learn", lambda out, *words: told.extend(
        int(word.removeprefix("plan.steps=")) for word in words if word.startswith("plan.steps=")))  # fmt: skip
    monkeypatch.setattr(
        bench, "started", lambda *_: {"reward_number": 0.6 + (told[-1] - enough) / 200, "bits_per_byte": 2.0}
    )
    arguments = argparse.Namespace(sft_steps=None, small=False)
    found = bench.start(tmp_path, "sums", arguments)
    assert told == tried and found["sft_steps"] == tried[-1]
    assert bench.start(tmp_path, "sums", arguments) == found and told == tried  # it stands beside the start


def trained(end: float, bits: float) -> dict:
    return {"start": {"reward_number": 0.3, "bits_per_byte": 2.0}, "seconds": 1, "share": {},
            "end": {"reward_number": end, "bits_per_byte": bits}}  # fmt: skip


def test_what_does_and_what_forgets(bench) -> None:
    good, weak, lost = ({"task": "sums", **trained(*x)} for x in ((0.61, 2.03), (0.59, 2.03), (0.9, 2.05)))
    assert bench.does(good) and not bench.does(weak) and not bench.does(lost)
    assert bench.forgets(lost) and not bench.forgets(weak)


def test_a_rate_that_does_not_is_followed_by_another(bench, monkeypatch, tmp_path: Path) -> None:
    ends = {1e-3: (0.9, 2.1), 1e-5: (0.4, 2.0)}
    monkeypatch.setattr(bench, "start", lambda *_: trained(0, 0)["start"])
    monkeypatch.setattr(bench, "recipe_of", lambda work, name, method, seed, rate, arguments: rate)
    monkeypatch.setattr(bench, "measured", lambda rate, task, before: trained(*ends.get(rate, (0.7, 2.0))))
    monkeypatch.setattr(bench, "facts", lambda _: {})

    def told(seed: int, rate: float, tries: int) -> list[tuple[int, float]]:
        bench.by_rates(tmp_path, "sums", "grpo", seed, argparse.Namespace(
            results=tmp_path, passes=1, small=False, lr=rate, beta=None, tries=tries, words=[]))  # fmt: skip
        return [(one["seed"], one["lr"]) for one in map(json.loads, (tmp_path / bench.FILE).open(encoding="utf-8"))]

    assert told(1, 1e-5, 2) == [(1, 1e-5), (1, 3e-5)]  # too little learned: thrice
    assert told(1, 1e-5, 1) == told(1, 3e-5, 2) == [(1, 1e-5), (1, 3e-5)]  # its line is there
    assert told(2, 1e-4, 1)[2:] == [(2, 3e-5)]  # what did for another seed
    (tmp_path / bench.FILE).unlink()
    assert told(1, 1e-3, 2) == [(1, 1e-3), (1, 3.3e-4)]  # too much forgotten: a third


def test_questions_have_their_answers(bench) -> None:
    sums = list(bench.sums())
    assert len(sums) == 99 * 99 and sum(one["held_out"] for one in sums) == bench.HELD_OUT
    words = ["一心一意", "意气风发", "发人深省", "意在言外"]
    chains = list(bench.idioms(words))
    assert {one["messages"][0]["content"] for one in chains} == {"成语接龙：一心一意", "成语接龙：意气风发"}
    for reward, chat in ((Number(), sums[7]), *((IdiomChain(), chat) for chat in chains)):
        asked, answered = (turn["content"] for turn in chat["messages"])
        assert reward(Answer(asked, answered, answered)) == 1
