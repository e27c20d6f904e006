"""Answers beside their references. (What is asked, and how: tests/commands/test_evaluate.py.)"""

from __future__ import annotations

from itertools import pairwise

import pytest
from small_run import small_tokenizer

from babyllama.evals.answers import Answer, AnswerSums, _shown, character_f1, compared
from babyllama.tokenizer.chat import render_chat


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [("你好", "你好", 1.0), ("好 你\n", "你好", 1.0), ("你你", "你好", 0.5), ("你", "你好吗", 0.5), ("是", "否", 0.0),
     ("", "否", 0.0), ("", " ", 1.0)],
)  # fmt: skip
def test_character_f1(answer, reference, expected):
    assert character_f1(answer, reference) == expected


def test_scores_add_up():
    good, poor = Answer("q", " 是的 ", "是的", 3, True), Answer("q", "不", "是的", 9, False)
    sums = sum(map(compared, (good, poor)), AnswerSums())
    figures = sums.figures
    assert sums.asked == 2 and figures["exact"] == figures["f1"] == figures["ended"] == 0.5
    assert figures["tokens"] == 6 and figures["characters"] == 2.5 and figures["reference_characters"] == 2


def test_bleu_and_rouge_of_characters_are_sacrebleus_and_lins():
    """BLEU against sacrebleu's "char" tokenizer, ROUGE against its formula, written once more with explicit sets."""
    import sacrebleu

    said = ["多喝热水，注意 休息。", "建议去医院检查血压", "是", "吃药"]
    wanted = ["注意休息，多喝温水。", "建议您尽快去医院检查一下血压", "是的", "按时吃药"]
    for count in (2, 4):
        pairs = list(zip(said[:count], wanted[:count], strict=True))
        figures = sum((compared(Answer("", a, r, 1, True)) for a, r in pairs), AnswerSums()).figures
        references = [[r for _, r in pairs]]
        expected = sacrebleu.corpus_bleu([a for a, _ in pairs], references, tokenize="char").score / 100
        assert figures["bleu"] == pytest.approx(expected)
        two = [by_hand(*(tuple(pairwise(t)) for t in map("".join, map(str.split, pair))))
               for pair in pairs]  # fmt: skip
        assert figures["rouge_2"] == pytest.approx(sum(two) / count)
    assert compared(Answer("", "甲丙乙丁", "甲乙丙丁戊", 1, True)).rouge_l == pytest.approx(2 * 3 / 9)
    assert AnswerSums(asked=1).figures["bleu"] == 0.0


def by_hand(said, wanted):
    """F1 of two rows of things, each thing as often as both have it."""
    shared = sum(min(said.count(one), wanted.count(one)) for one in set(said))
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0


def test_what_was_said_before_is_shown_message_by_message():
    tokenizer = small_tokenizer()
    said = [("system", "简短回答。"), ("user", "你是谁？"), ("assistant", "我是小助手。"), ("user", "再说一次")]
    chat = [{"role": role, "content": text} for role, text in said]
    assert _shown(tokenizer, render_chat(tokenizer, chat, True).tokens) == " ▸ ".join(text for _, text in said)
    assert _shown(tokenizer, render_chat(tokenizer, chat[1:2], True).tokens) == "你是谁？"
