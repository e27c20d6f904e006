"""A run's rollouts by step, against a file that is read whole here; one that is written to, damaged, or very long."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babyllama.serve import rollouts
from babyllama.serve.rollouts import page


def line(step, number):
    return {"step": step, "prompt": f"第{number}题\n", "answer": "答" * (number % 5), "reward": 1.0, "advantage": -0.5}


def write(path, lines):
    path.write_text("".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines), "utf-8")
    return path


def whole(path, step):
    """All pages of a step."""
    found = page(path, step)
    answers, more = found["answers"], found["more"]
    while more is not None:
        next_one = page(path, at=more)
        assert next_one["step"] == found["step"]
        answers, more = answers + next_one["answers"], next_one["more"]
    return {**found, "answers": answers, "more": None}


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.integers(1, 9), max_size=30), asked=st.none() | st.integers(-1, 11), size=st.integers(1, 300))
def test_pages_are_what_the_file_holds(tmp_path_factory, steps, asked, size):
    lines = [line(step, n) for n, step in enumerate(sorted(steps))]
    path = write(tmp_path_factory.mktemp("rollouts") / "rollouts.jsonl", lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "PAGE", size)
        patch.setattr(rollouts, "BACK", 1 + size % 7)
        found = whole(path, asked)
    known = sorted(set(steps))
    wanted = max((s for s in known if asked is None or s <= asked), default=known[0] if known else None)
    at = known.index(wanted) if known else 0
    assert found == {
        "step": wanted, "first": known[0] if known else None, "last": known[-1] if known else None,
        "before": known[at - 1] if known and at else None, "after": known[at + 1] if at + 1 < len(known) else None,
        "answers": [one for one in lines if one["step"] == wanted], "more": None}  # fmt: skip


def test_a_file_that_is_missing_growing_or_damaged(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    assert page(path)["step"] is None
    write(path, [line(1, 0), "nonsense\n", '{"step": "x"}\n', line(3, 1), '{"step": 5, "prom'])
    found = page(path)
    assert (found["step"], found["first"], found["last"], found["before"]) == (3, 1, 3, 1)
    assert found["answers"] == [line(3, 1)]
    assert page(path, 2)["answers"][0] == line(1, 0) and page(path, at=1 << 60)["answers"] == []
    write(path, [line(1, 0), '{"step": 2, "reward": NaN}\n'])
    assert page(path)["answers"] == [{"step": 2, "reward": None}]


def test_a_long_file_is_not_read_whole(tmp_path):
    path, text = tmp_path / "rollouts.jsonl", "字" * 3000
    with path.open("w") as handle:
        for step in range(1, 2001):
            handle.write(json.dumps({"step": step, "answer": text}, ensure_ascii=False) + "\n")
    assert path.stat().st_size > 16 << 20
    tracemalloc.start()
    for step in (None, 1, 1000, 1999, 77):
        assert page(path, step)["step"] == (step or 2000)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
