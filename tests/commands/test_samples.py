"""What a model is asked while it trains."""

from __future__ import annotations

import pytest
from small_run import CHATS, small_tokenizer, taught_model

from babyllama.commands.samples import Samples, sampler
from babyllama.errors import InputError


def test_questions_go_through_the_template_and_texts_do_not():
    tokenizer, model = small_tokenizer(), taught_model()
    questions = tuple(question for question, _ in CHATS)
    chats = sampler(Samples(prompts=questions, chat=True), tokenizer, 96)
    assert list(chats(model)) == CHATS
    ((asked, text),) = sampler(Samples(prompts=("你好，很",), max_tokens=3), tokenizer, 96)(model)
    assert asked == "你好，很" and text != CHATS[0][1]
    assert list(sampler(Samples(), tokenizer, 96)(model)) == []


def test_a_prompt_without_room_for_an_answer_is_named():
    with pytest.raises(InputError, match=r"samples\.prompts\.1: '一+'… has \d+ tokens, the model 96 positions"):
        sampler(Samples(prompts=("好", "一" * 200)), small_tokenizer(), 96)
