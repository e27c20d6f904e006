"""A review of the everyday chats: form, style, repetition, near-duplicates."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from importlib import resources

from babyllama.data.sources.knowledge import everyday, everyday_text

CHATS = list(everyday())
FILE = (resources.files("babyllama") / "data" / "embedded" / "everyday.txt").read_text("utf-8")
SAID = re.compile(
    r"[\u4e00-\u9fff，。？！：、“”]+|[\u4e00-\u9fff，。？！：、“”]*babyllama[\u4e00-\u9fff，。？！：、“”]*"
)
TRADITIONAL = set("這個們說話學習國語時間問題會來對過還沒讓從給為與")


def answers_of(record):
    return [m["content"] for m in record["messages"] if m["role"] == "assistant"]


def bigrams(text):
    plain = re.sub(r"\W", "", text)
    return {plain[i : i + 2] for i in range(len(plain) - 1)} or {plain}


def test_there_are_enough_and_some_are_held_out():
    assert sum(not r["held_out"] for r in CHATS) >= 4_500 and sum(r["held_out"] for r in CHATS) >= 500
    turns = Counter(len(r["messages"]) // 2 for r in CHATS)
    assert sum(count for n, count in turns.items() if n >= 3) >= 200 and max(turns) <= 6


def test_every_block_has_its_parts():
    names = []
    for block in FILE.strip().split("\n\n"):
        first, *lines = block.split("\n")
        assert re.fullmatch(r"# [a-z]+/[a-z0-9-]+", first), first
        marks = Counter(line.split(" ")[0] for line in lines)
        if "U:" in marks:
            assert [line[:2] for line in lines] == ["U:", "A:"] * (len(lines) // 2) and len(lines) >= 6, first
        else:
            assert marks["?"] >= 6 and marks["~"] <= 1 and marks["!"] >= 2 and set(marks) <= set("?~!"), first
        names.append(first)
    assert len(set(names)) > 700


def test_style():
    for record in CHATS:
        for message in record["messages"]:
            text = message["content"]
            assert text == text.strip() and SAID.fullmatch(text) and not TRADITIONAL & set(text), text
            assert not re.search(r"[，。？！]{2}|(.)\1{5}", text) and text.count("“") == text.count("”"), text
        for answer in answers_of(record):
            assert answer[-1] in "。！？”" and 4 <= len(answer) <= 100, answer


def test_no_question_twice_and_no_answer_in_two_topics():
    asked = Counter(r["messages"][0]["content"].rstrip("。？！") for r in CHATS if len(r["messages"]) == 2)
    assert [q for q, count in asked.items() if count > 1] == []
    given = Counter()
    for block in FILE.strip().split("\n\n"):
        given.update({line[2:] for line in block.split("\n") if line.startswith("! ")})
    assert [a for a, count in given.items() if count > 1] == []


def test_no_held_out_wording_is_nearly_a_trained_one():
    """At most 0.8 of the pairs of characters in common: else remembering would look like understanding."""
    trained = defaultdict(set)
    for record in CHATS:
        if not record["held_out"]:
            for pair in bigrams(record["messages"][0]["content"]):
                trained[pair].add(record["messages"][0]["content"])
    near = []
    for record in CHATS:
        if record["held_out"]:
            said = record["messages"][0]["content"]
            mine = bigrams(said)
            others = {q for pair in mine for q in trained[pair]}
            near += [(said, q) for q in others if len(mine & bigrams(q)) / len(mine | bigrams(q)) > 0.8]
    assert near == []


def test_texts_of_a_topic_hold_nothing_that_is_held_out():
    apart = {r["messages"][0]["content"].rstrip("。？！") for r in CHATS if r["held_out"]}
    told = [r["text"] for r in everyday_text()]
    assert len(told) > 6_000 and len(set(told)) > 0.95 * len(told)
    joined = "\n".join(told)
    trained = {r["messages"][0]["content"].rstrip("。？！") for r in CHATS if not r["held_out"]}
    leaked = [q for q in apart if q in joined and not any(q in t for t in trained)]
    assert leaked == []
