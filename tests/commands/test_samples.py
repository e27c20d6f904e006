"""What a model is asked while it trains."""

from __future__ import annotations

import pytest
from small_run import CHATS, small_tokenizer, taught_model

from babyllama.commands.samples import Samples, examiner, observer, sampler
from babyllama.errors import InputError
from babyllama.evals.choices import marked
from babyllama.evals.suites import asked_of, result
from babyllama.evals.tasks import TaskChoice


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


def test_abilities_are_the_figures_of_evaluate():
    tokenizer, model = small_tokenizer(), taught_model()
    choices = (TaskChoice(name="verses", label="诗"), TaskChoice(name="measure_words", max_items=20))
    found = examiner(choices, tokenizer, 96)(model)
    assert list(found) == ["诗", "measure_words"]
    for choice, figures in zip(choices, found.values(), strict=True):
        asked = asked_of(tokenizer, 96, choice.form, choice.items(None), {}, choice.called)
        expected = result(list(marked(model, asked, tokenizer.vocab_size)), "none", 0)
        assert (figures["accuracy"], figures["p"], figures["items"]) == tuple(
            expected[name] for name in ("accuracy", "p", "items")
        )
        assert (figures["low"], figures["high"]) == expected["interval"]
    seen = list(observer(Samples(prompts=("你好，很",), max_tokens=3), choices, tokenizer, 96)(model))
    assert [kind for kind, _, _ in seen] == ["sample", "abilities"] and seen[0][2].startswith("你好，很 ▸ ")
    assert seen[1][1] == found and "(of 2)" in seen[1][2]
    assert list(observer(Samples(), (), tokenizer, 96)(model)) == []


def test_faults_of_abilities_are_said_before_the_training():
    with pytest.raises(InputError, match="verses: no item fits the model's context of 3 tokens"):
        examiner((TaskChoice(name="verses"),), small_tokenizer(), 3)
    with pytest.raises(InputError, match="abilities: a test is there twice"):
        examiner((TaskChoice(name="verses"), TaskChoice(name="verses")), small_tokenizer(), 96)
    with pytest.raises(InputError, match="abilities: word_problems has free answers"):
        examiner((TaskChoice(name="word_problems"),), small_tokenizer(), 96)
    with pytest.raises(InputError, match="ocnli: get it from"):
        examiner((TaskChoice(name="ocnli"),), small_tokenizer(), 96)
