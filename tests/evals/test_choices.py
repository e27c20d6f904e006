"""Prompts and picks: tokens are those of the whole text, a pick is the likeliest option of a loop by hand."""

from __future__ import annotations

import pytest
import torch

from babyllama.errors import InputError
from babyllama.evals.choices import Form, check_shots, encoded, marked
from babyllama.evals.items import Item, Items
from babyllama.evals.overlap import clean_ids, grams
from babyllama.evals.statistics import Pick
from babyllama.evals.suites import Subject, asked_of, difference, marks, result, submission
from babyllama.model.config import ModelConfig
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.train import train_bpe
from conftest import sharp_model

TOKENIZER = train_bpe(["天下雨了，地上湿了。", "一本书，一只鸟。你好，很高兴见到你。ABCD. 答案："] * 3, 330)
ITEM = Item("law/0", "天下雨了，地上", ("湿了", "干了", "一本书", "鸟"), 0, "law")
SHOT = Item("law/9", "一只", ("鸟", "书"), 0, "law")
EXAM = Form("letter", intro="关于{subject}：\n", ask="\n答案：")


def small_model(context=64, seed=1):
    return sharp_model(ModelConfig(
        vocab_size=TOKENIZER.vocab_size, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context), seed)  # fmt: skip


def test_the_three_ways_to_ask():
    shown = "关于法学：\n天下雨了，地上\nA. 湿了\nB. 干了\nC. 一本书\nD. 鸟\n答案："
    assert EXAM.prompt(ITEM, (), "法学") == shown and EXAM.completions(ITEM) == ("A", "B", "C", "D")
    text = Form("text", intro=EXAM.intro, ask=EXAM.ask)
    assert text.prompt(ITEM, (), "法学") == shown and text.completions(ITEM) == ITEM.options
    one = Form("letter", shots=1, ask="\n答案：").prompt(ITEM, (SHOT,), "")
    assert one.startswith("一只\nA. 鸟\nB. 书\n答案：A\n\n天下雨了") and one.endswith("答案：")
    assert Form("cloze").prompt(ITEM, (), "") == ITEM.question


@pytest.mark.parametrize("form", [EXAM, Form("cloze"), Form("text", ask="答：")])
def test_tokens_are_those_of_the_whole_text(form):
    asked = encoded(form, TOKENIZER, ITEM, (), "law", 500)
    for pair, completion in zip(asked.pairs, form.completions(ITEM), strict=True):
        text = form.prompt(ITEM, (), "law") + completion
        assert [*pair.prompt, *pair.completion] == [*TOKENIZER.start_ids, *TOKENIZER.encode(text)]
    assert len({tuple(pair.prompt) for pair in asked.pairs}) == 1 and not asked.cut
    assert asked.characters == ((1,) * 4 if form.scoring == "letter" else (2, 2, 3, 1))  # of what is compared


def test_a_chat_ends_as_in_training():
    asked = encoded(Form("letter", chat=True), TOKENIZER, ITEM, (), "", 500)
    message = {"role": "user", "content": Form("letter").prompt(ITEM, (), "")}
    assert asked.pairs[0].prompt == render_chat(TOKENIZER, [message], add_generation_prompt=True).tokens
    assert asked.pairs[1].completion == TOKENIZER.encode("B")


def test_a_long_prompt_loses_its_beginning():
    whole = encoded(EXAM, TOKENIZER, ITEM, (), "law", 500).pairs[0].prompt
    asked = encoded(EXAM, TOKENIZER, ITEM, (), "law", 12)
    assert asked.cut and len(asked.pairs[0].prompt) + len(asked.pairs[0].completion) - 1 == 12
    assert asked.pairs[0].prompt == [*TOKENIZER.start_ids, *whole[-11:]]
    assert encoded(Form("cloze"), TOKENIZER, Item("x", "", ("天" * 40, "地"), 0), (), "", 16) is None


def test_examples_that_fill_the_context_are_refused():
    items = Items((ITEM,), {"law": (SHOT,) * 5})
    with pytest.raises(
        InputError, match=r"ceval: the 5 examples of 法学 take \d+ tokens, the context has 60; give shots="
    ):
        check_shots(Form("letter", shots=5, ask="\n答案："), TOKENIZER, items, {"law": "法学"}, 60, "ceval")
    with pytest.raises(InputError, match="ceval: shots=6, but law has 5 examples; give shots=5"):
        check_shots(Form("letter", shots=6), TOKENIZER, items, {}, 600, "ceval")


def test_the_pick_is_that_of_a_loop_by_hand():
    model = small_model()
    asked = encoded(Form("cloze"), TOKENIZER, ITEM, (), "", 64)
    (mark,) = marked(model, [asked], TOKENIZER.vocab_size)
    nats = []
    for pair in asked.pairs:
        logprobs = model(torch.tensor([[*pair.prompt, *pair.completion]]))[0].double().log_softmax(-1)
        nats.append(sum(logprobs[len(pair.prompt) - 1 + i, token].item() for i, token in enumerate(pair.completion)))
    assert mark.nats == pytest.approx(nats, abs=1e-4)
    for name, sizes in (
        ("none", [1] * 4),
        ("token", [len(p.completion) for p in asked.pairs]),
        ("character", [2, 2, 3, 1]),
    ):
        values = [value / size for value, size in zip(nats, sizes, strict=True)]
        assert mark.taken(name) == values.index(max(values))
        rates = tuple(count / size for count, size in zip(mark.tokens, (2, 2, 3, 1), strict=True))
        assert mark.pick(name) == Pick(mark.tokens, mark.taken(name), 0, "", rates)


def test_a_killed_evaluation_goes_on_and_gives_the_same(tmp_path, monkeypatch):
    from babyllama.evals import suites

    monkeypatch.setattr(suites, "PORTION", 4)
    items = Items(tuple(Item(str(n), "天" * (n % 5), ("地上", "一本书", "鸟"), n % 3) for n in range(20)), {})
    subject = Subject(small_model(), TOKENIZER, 64, "hash")
    asked = asked_of(TOKENIZER, subject.context, Form(), items, {}, "t")
    whole = marks(subject, Form(), items, asked, tmp_path / "a")
    portions = []

    def killed(*arguments):
        portions.append(len(arguments[1]))
        if len(portions) == 3:
            raise KeyboardInterrupt
        return marked(*arguments)

    monkeypatch.setattr(suites, "marked", killed)
    with pytest.raises(KeyboardInterrupt):
        marks(subject, Form(), items, asked, tmp_path / "b")
    assert marks(subject, Form(), items, asked, tmp_path / "b") == whole and portions == [4] * 6
    assert marks(subject, Form(), items, asked, tmp_path / "b") == whole and len(portions) == 6  # all from the cache
    assert subject.key(Form(), items) != subject.key(Form(ask="？"), items)
    (tmp_path / "b" / f"{subject.key(Form(), items)}.json").write_text("{")
    assert marks(subject, Form(), items, asked, tmp_path / "b") == whole


def test_a_result_its_difference_and_the_submission():
    items = [Item(f"law/{n}", "问", ("地上", "一本书"), n % 2, "law") for n in range(12)]
    found = list(
        marked(small_model(), [encoded(Form(), TOKENIZER, item, (), "", 64) for item in items], TOKENIZER.vocab_size)
    )
    figures = result(found, "none", 1, frozenset({"law/0", "law/1"}))
    assert (figures["accuracy"], figures["chance"], figures["contaminated"], figures["left_out"]) == (0.5, 0.5, 10, 1)
    assert figures["clean"]["items"] == 2 and figures["verdict"] == "not distinguishable from chance"
    count, apart = difference(figures, figures)
    assert (count, apart.value, apart.p) == (12, 0, 1)
    letters = submission(figures["answers"])["law"]
    assert set(letters) == {str(n) for n in range(12)} and len(set(letters.values())) == 1


def test_thirteen_characters_of_the_training_data():
    text = "床前明月光疑是地上霜举头望明月低头思故乡"
    items = [Item("read", "他说：" + text[3:16] + "！", ("是", "否"), 0),
             Item("new", "完全不同的一个很长很长的问题在这里", ("是", "否"), 0),
             Item("short", text[:9], ("是", "否"), 0)]  # fmt: skip
    assert clean_ids(items, ["前言。" + text[:10] + "，" + text[10:]]) == {"new", "short"}
    assert clean_ids(items, []) == {"read", "new", "short"}
    assert len(grams(text)) == len(text) - 12 and len(set(grams(text * 2).tolist())) == len(text)
