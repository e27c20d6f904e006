"""Free answers: what counts as right, what shuffling gives, prompts and answers against the engine alone."""

from __future__ import annotations

import re
from itertools import permutations

import numpy as np
import pytest
from small_run import CHATS, small_tokenizer

from babyllama.evals.choices import Form
from babyllama.evals.free import Free, Prompt, Said, free_result, prompts_of, shuffled, span_f1, written
from babyllama.evals.items import Item, Items
from babyllama.evals.made import made
from babyllama.evals.suites import Subject
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.model.config import ModelConfig
from babyllama.tokenizer.chat import render_chat
from conftest import sharp_model

NUMBER, SPAN = Free("number", 24), Free("span", 24)


@pytest.mark.parametrize(("said", "reference", "right"), [
    ("5+7=12，所以是12个。", "12", True), ("１２", "12", True), ("1,200元", "1200", True), ("12.50", "12.5", True),
    ("-3", "3", False), ("12个，一共13个", "12", False), ("十二", "12", False), ("", "12", False),
    ("答案是120", "12", False),
])  # fmt: skip
def test_the_last_number_counts(said, reference, right):
    assert NUMBER.right(said, (reference,)) == right


def test_a_span_is_compared_without_punctuation():
    assert SPAN.right("《红楼梦》。", ("红楼梦",)) and SPAN.right("Ω-force", ("其他", "ω-FORCE"))
    assert not SPAN.right("红楼", ("红楼梦",)) and not SPAN.right("。", ("。",))


@pytest.mark.parametrize(("said", "reference", "f1"), [
    ("光荣和force", "光荣和force", 1.0), ("是光荣", "光荣和", 2 * 2 / 6), ("光x荣", "光荣", 2 * 1 / 5),
    ("无关", "光荣", 0.0), ("", "光荣", 0.0), ("force3 光荣", "force3光荣", 1.0),
])  # fmt: skip
def test_f1_is_by_the_longest_run_that_both_have(said, reference, f1):
    assert span_f1(said, reference) == pytest.approx(f1)


def test_shuffled_answers_have_the_mean_and_variance_of_all_permutations():
    answers, references = ["a", "a", "b", "", "c"], [{"a"}, {"b", "a"}, {"c"}, {"a"}, {"c", "d"}]
    hits = [sum(bool(one) and one in held for one, held in zip(order, references, strict=True))
            for order in permutations(answers)]  # fmt: skip
    chance, p = shuffled(answers, references)
    from statistics import NormalDist

    assert chance == pytest.approx(np.mean(hits) / 5)
    assert p == pytest.approx(1 - NormalDist().cdf((3 - np.mean(hits) - 0.5) / np.std(hits)))
    assert shuffled(["5"] * 9, [{"5"}] * 6 + [{"7"}] * 3) == (pytest.approx(2 / 3), 1.0)  # one answer for all


def test_answers_are_the_engines_and_come_from_the_cache_again(tmp_path):
    tokenizer = small_tokenizer()
    model = sharp_model(ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96))  # fmt: skip
    items = Items(tuple(Item(str(n), question, (answer,), 0) for n, (question, answer) in enumerate(CHATS)), {})
    subject = Subject(model, tokenizer, 96, "hash")
    for form in (Form("cloze", chat=True), Form("cloze", ask="\n")):
        prompts = prompts_of(tokenizer, 96, form, SPAN, items, {})
        if form.chat:
            asked = [
                render_chat(tokenizer, [{"role": "user", "content": question}], True).tokens for question, _ in CHATS
            ]
        else:
            asked = [[*tokenizer.start_ids, *tokenizer.encode(question + "\n")] for question, _ in CHATS]
        assert [prompt.tokens for prompt in prompts] == asked
        engine = Engine(model, tokenizer.vocab_size)
        alone = [engine.generate([tokens], Sampling(temperature=0.0), 24, tokenizer.stop_ids)
                 for tokens in asked]  # fmt: skip
        texts = [tokenizer.decode(tokens) for (tokens,) in alone]
        answers = written(subject, form, SPAN, items, prompts, tmp_path)
        ended = [tokens[-1] in tokenizer.stop_ids for (tokens,) in alone]
        shown = texts if form.chat else [text.strip().split("\n")[0] for text in texts]
        assert answers == list(zip(shown, ended, strict=True))
        assert written(Subject(None, tokenizer, 96, "hash"), form, SPAN, items, prompts, tmp_path) == answers


def test_figures():
    said = [Said(text, bool(text)) for text in ("你好，很高兴见到你", "我是小羊", "一加一等于二。", "")]
    items = Items(tuple(Item(str(n), question, (answer, "别的"), 0) for n, (question, answer) in enumerate(CHATS)), {})
    figures = free_result(SPAN, [Prompt(item, [1], item.id == "3") for item in items.asked], said, frozenset("01"))
    assert (figures["right"], figures["items"], figures["chance"], figures["cut"]) == (2, 4, 2 / 16, 1)
    assert figures["f1"] == pytest.approx((1 + 2 * 4 / (4 + 14) + 1 + 0) / 4)
    assert figures["contaminated"] == 2 and figures["clean"]["accuracy"] == 0.5
    assert [one["right"] for one in figures["answers"]] == [True, False, True, False]


def test_a_long_prompt_loses_its_beginning_and_leaves_room_for_an_answer():
    tokenizer = small_tokenizer()
    (prompt,) = prompts_of(tokenizer, 40, Form("cloze", ask="\n答："), Free("span", 99), Items((Item(
        "0", "很高兴见到你。" * 30, ("好",), 0),), {}), {})  # fmt: skip
    whole = tokenizer.encode("很高兴见到你。" * 30 + "\n答：")
    assert prompt.cut and len(prompt.tokens) == 20
    assert prompt.tokens == [*tokenizer.start_ids, *whole[len(tokenizer.start_ids) - 20 :]]


def test_word_problems_are_right():
    """Each story's numbers, by what its words say to do with them."""
    rules = {"又得到": "0+1", "他们一共": "0+1", "还剩多少.*送给|送给.*还剩": "0-1", "多多少": "0-1", "要付": "0*1",
             "盒一共": "0*1", "平均分给": "0//1", "可以装": "0//1", "又买了": "0+1-2", "用掉": "0*1-2",
             "还剩多少元": "0-1*2", "又看了": "0*1+2"}  # fmt: skip
    items = made("word_problems")
    assert len({item.question for item in items}) == len(items) == 240
    for item in items:
        numbers = re.findall(r"\d+", item.question)
        rule = next(rule for words, rule in reversed(rules.items()) if re.search(words, item.question))
        a, b, *c = map(int, numbers)
        expected = eval(rule.replace("0", "a").replace("1", "b").replace("2", "c[0]"), {"a": a, "b": b, "c": c})
        assert expected == int(item.options[0]) > 0
