"""What answers are worth."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyllama.errors import InputError
from babyllama.train.rl.marks import mark, names_of
from babyllama.train.rl.rewards import (
    Answer,
    Ends,
    Exact,
    IdiomChain,
    Json,
    Length,
    Number,
    Poem,
    Repetition,
    Reward,
    ToolCall,
    known_idioms,
)
from babyllama.train.rl.verse import form, lines_of, rhymed, rhymes

SPRING = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"
TOWER = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"


def answer(text, reference="", prompt="问", ended=True):
    return Answer(prompt, text, reference, ended)


@pytest.mark.parametrize("reward,said,reference,value", [
    (Exact(), " 等于5。\n", "等于5。", 1), (Exact(), "等于5", "等于5。", 0),
    (Number(), "3+4，等于 7。", "个位7，等于7。", 1), (Number(), "７个", "7", 1), (Number(), "等于1,000", "1000.0", 1),
    (Number(), "等于7。不，8", "7", 0), (Number(), "不知道", "7", 0), (Number(), "7", "没有数", 0),
    (Json(), '{"b": 1, "a": [2]}', '{"a":[2],"b":1}', 1), (Json(), '{"a": 1}', '{"a": 2}', 1 / 3),
    (Json(), "{a: 1}", '{"a": 1}', 0), (Json(), "null", "随便", 1), (Json(), "[" * 9999, "[]", 0),
    (Repetition(n=2), "春夏秋冬", "", 1), (Repetition(n=2), "哈哈哈哈", "", 1 / 3), (Repetition(n=9), "短", "", 1),
    (Length(low=2, high=4), "一", "", 0.5), (Length(low=2, high=4), "一二三四", "", 1),
    (Length(low=2, high=4), "一二三四五六", "", 0.5), (Length(low=2, high=4), "一" * 9, "", 0),
])  # fmt: skip
def test_values(reward, said, reference, value):
    assert reward(answer(said, reference)) == pytest.approx(value)


def test_an_answer_that_ends_by_itself():
    assert Ends()(answer("好")) == 1 and Ends()(answer("好", ended=False)) == 0


@pytest.mark.parametrize("said,value", [
    ('<tool_call>{"arguments": {"x": 1}, "name": "add"}</tool_call>', 1),
    ('好的<tool_call>{"name": "add", "arguments": {"x": 2}}</tool_call>', 2 / 3),
    ('<tool_call>{"name": "sub", "arguments": {"x": 1}}</tool_call>', 1 / 3),
    ('<tool_call>{"name": "add", "arguments": {"x": 1}}</tool_call><tool_call>{}</tool_call>', 1 / 2),
    ("<tool_call>{broken</tool_call>", 0), ("<tool_call>[]</tool_call>", 0), ("不用工具", 0),
])  # fmt: skip
def test_tool_calls(said, value):
    wanted = '<tool_call>{"name": "add", "arguments": {"x": 1}}</tool_call>'
    assert ToolCall()(answer(said, wanted)) == pytest.approx(value)
    assert ToolCall()(answer(said, "没有调用")) == float("<tool_call>" not in said)


def test_the_form_of_a_poem():
    assert lines_of(SPRING)[3] == "花落知多少"
    assert form(lines_of(SPRING), 4, 5) == 1 and form(lines_of(SPRING), 4, 7) == 0
    assert form(lines_of(SPRING)[:3], 4, 5) == 0.75 and form(lines_of(SPRING * 2), 4, 5) == 0.5
    assert form(["abcde", "春眠不觉晓"], 2, 5) == 0.5
    assert Poem(rhyme=False)(answer(TOWER, SPRING)) == 1  # form as the reference has it
    assert Poem(rhyme=False, lines=8)(answer(TOWER)) == 0


def test_rhyme():
    pytest.importorskip("pypinyin", reason="extra rl")
    assert rhymes("鸟") & rhymes("少") and rhymes("流") & rhymes("楼") and rhymes("家") & rhymes("花")
    assert not rhymes("知") & rhymes("衣")  # zhi and yi are two rhymes
    assert rhymes("女") & rhymes("居") and not rhymes("月") & rhymes("原") and rhymes("，") == frozenset()
    assert Poem()(answer(SPRING, TOWER)) == Poem()(answer(TOWER, SPRING)) == 1
    assert Poem()(answer("白日依山尽，黄河入海流。欲穷千里目，更上一层天。", SPRING)) == 0.5
    assert rhymed(["一", "流", "二", "流"]) == 0  # a character does not rhyme with itself
    assert rhymed(["一"]) == 0 and rhymed([]) == 0 and rhymed(["山流", "层楼"]) == 1


def test_idiom_chain(tmp_path):
    words = tmp_path / "idioms.txt"
    words.write_text("足智多谋\n画蛇添足\n谋事在人\n", "utf-8")
    reward, prompt = IdiomChain(words=words), "成语接龙：画蛇添足"
    values = {"足智多谋": 1, "足智多谋。": 1, "足下生风": 0.5, "足下": 0, "谋事在人": 0, "画蛇添足": 0, "": 0,
              "足智多谋，足下生风": 0}  # fmt: skip
    assert {said: reward(answer(said, prompt=prompt)) for said in values} == values
    assert reward(answer("足智多谋", prompt="没有成语")) == 0
    with pytest.raises(InputError, match="cannot be read"):
        known_idioms(tmp_path / "none.txt")


class Broken(Reward):
    """Divides by the length."""

    def __call__(self, answer):
        return 1 / len(answer.text) if answer.text != "x" else math.nan


def test_sums_and_bad_rewards_are_named_with_their_answer():
    rewards = [Exact(weight=2.0), Ends(weight=-0.5), Exact()]
    found = mark(rewards, answer("5", "5"))
    assert found.total == 2.5 and found.parts == {"exact": 1, "ends": 1, "exact_2": 1} and not found.fault
    assert names_of(rewards) == ("exact", "ends", "exact_2")
    bad = mark([Broken()], answer("", prompt="几？"))
    assert math.isnan(bad.total) and "reward broken raised ZeroDivisionError" in bad.fault and "几？" in bad.fault
    assert "reward broken is nan" in mark([Broken()], answer("x")).fault


@given(st.text(), st.text(), st.text())
def test_any_text_has_a_value_between_0_and_1(prompt, said, reference):
    rewards = [Exact(), Number(), Poem(rhyme=False), Json(), ToolCall(), Repetition(), Length(low=1, high=5)]
    for reward in rewards:
        assert 0 <= reward(Answer(prompt, said, reference)) <= 1
