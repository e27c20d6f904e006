"""Tools of the made-up world, and the questions that need them."""

import json
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyllama.data.sources.chats import Notes, read_chat
from babyllama.data.toolworld.questions import SEEN, UNSEEN, records
from babyllama.data.toolworld.tools import CITIES, TOOLS, call

NUMBERS = st.integers(-999, 999)


def asked(name, **arguments):
    return call(name, arguments, TOOLS)


@given(a=NUMBERS, b=NUMBERS, c=NUMBERS.filter(bool), days=st.integers(-9999, 9999))
def test_what_they_answer_is_right(a, b, c, days):
    assert asked("calculator", expression=f"({a}+{b})*{c}").text == str((a + b) * c)
    assert float(asked("calculator", expression=f"{a}/({c})").text) == pytest.approx(a / c, abs=1e-4)
    day = date(2026, 3, 1) + timedelta(days)
    assert asked("calendar", day="2026-03-01", days=days).text == f"{day} 星期{'一二三四五六日'[day.weekday()]}"
    assert float(asked("convert", value=a, source="里", target="千米").text[:-2]) == pytest.approx(a / 2)


@pytest.mark.parametrize(("name", "arguments", "said"), [
    ("calculator", {"expression": "9**9"}, "算式有误"), ("calculator", {"expression": "f(1)"}, "算式有误"),
    ("calculator", {"expression": "1/0"}, "除数为零"), ("calculator", {"expression": "(" * 50}, "算式有误"),
    ("calculator", {"expression": "9*" * 40}, "太长"), ("calculator", {"expression": 3}, "应为 string"),
    ("calculator", {"text": "1"}, "参数应为 expression"), ("calculator", [], "参数应为"),
    ("calendar", {"day": "昨天", "days": 1}, "YYYY-MM-DD"),
    ("calendar", {"day": "2026-01-01", "days": True}, "integer"),
    ("calendar", {"day": "2026-01-01", "days": 10**9}, "太大"),
    ("city_facts", {"city": "x", "item": "人口"}, "没有城市"),
    ("city_facts", {"city": CITIES[0], "item": "x"}, "只有"), ("convert", {"value": 1, "source": "米", "target": "克"},
     "不能换成"), ("nothing", {}, "没有工具"),
])  # fmt: skip
def test_a_bad_call_is_told_why(name, arguments, said):
    found = call(name, arguments, TOOLS)
    assert not found.good and said in found.text
    assert not call("calculator", {"expression": "1+1"}, ["weather"]).good


def test_chats_are_right_and_their_split_is_by_what_is_asked():
    """The oracle: each result is what the tool says of the call before it; the answer is in the last result."""
    made = list(records(SEEN, 800))
    assert made == list(records(SEEN, 800)) and len({chat["messages"][0]["content"] for chat in made}) == 800
    assert 0.08 < sum(chat["held_out"] for chat in made) / 800 < 0.25
    for chat in [*made, *records(UNSEEN, 60, unseen=True)]:
        offered = {tool["function"]["name"] for tool in chat["tools"]}
        for before, message in zip(chat["messages"], chat["messages"][1:], strict=False):
            if message["role"] == "tool":
                function = before["tool_calls"][0]["function"]
                found = call(function["name"], function["arguments"], offered)
                assert found.good and found.text == message["content"]
        answer, last = chat["messages"][-1]["content"], chat["messages"][-2]["content"]
        assert answer in last or last in answer
        assert read_chat(json.loads(json.dumps(chat)), Notes()).tools == tuple(chat["tools"])
    assert all(chat["held_out"] for chat in records(UNSEEN, 60, unseen=True))
