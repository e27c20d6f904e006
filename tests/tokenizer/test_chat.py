"""The template against transformers' Jinja on the saved folder: the same ids, the same mask (law 8)."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import SMALL_TEXT, sentencepiece_model
from transformers import AutoTokenizer

from babyllama.errors import InputError
from babyllama.tokenizer.chat import check_messages, render_chat, results_after_answer
from babyllama.tokenizer.special import ROLES, SPECIAL_TOKENS
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import train_bpe

# transformers parses special tokens inside contents and we do not, so the comparison leaves them out; U+0000 has its
# own meaning to Jinja.
content = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["", " ", "\n", "  你好  ", "a\n\nb\n", "{{ x }}{% if %}", "😀\u200d", "1 + 1 = 2。", "\t", "▁"]
)
content = content.filter(lambda text: not any(token in text for token in (*SPECIAL_TOKENS, "<unk>")))


@st.composite
def chats(draw: st.DrawFn) -> list[dict[str, str]]:
    roles = ["system"] if draw(st.booleans()) else []
    roles.append("user")
    for _ in range(draw(st.integers(0, 4))):
        last = roles[-1]
        roles.append(
            draw(
                st.sampled_from({"user": ["assistant"], "assistant": ["user", "tool"]}.get(last, ["assistant", "tool"]))
            )
        )
    return [{"role": role, "content": draw(content)} for role in roles]


def written(folder: Path) -> Path:
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    return folder


@pytest.fixture(scope="module", params=["own-roles", "own-bos", "sentencepiece-roles", "sentencepiece-bos"])
def pair(request, tmp_path_factory):
    kind, template = request.param.split("-")
    own = train_bpe(SMALL_TEXT, 460) if kind == "own" else Tokenizer.load(written(tmp_path_factory.mktemp("model")))
    folder = tmp_path_factory.mktemp(request.param)
    own.with_template(template).save(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')  # as it lies beside a model
    return Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)


@given(messages=chats())
def test_ids_and_mask_equal_transformers(pair, messages) -> None:
    ours, theirs = pair
    chat = render_chat(ours, messages)
    expected = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert chat.tokens == expected["input_ids"]
    if messages[-1]["role"] != "assistant":
        prompt = render_chat(ours, messages, add_generation_prompt=True)
        assert prompt.tokens == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert not any(prompt.mask[len(chat.tokens) :])


PARAMETERS = {"type": "object", "properties": {"城": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "天气", "description": '"晴" <b>', "parameters": PARAMETERS}},
         {"type": "function", "function": {"name": "f"}}]  # fmt: skip
arguments = st.dictionaries(st.sampled_from(["城", "a"]), content | st.integers() | st.none(), max_size=2)
calls = st.builds(lambda name, given: {"type": "function", "function": {"name": name, "arguments": given}},
                  st.sampled_from(["天气", "f"]), arguments)  # fmt: skip


@given(messages=chats(), data=st.data())
def test_tools_calls_and_thoughts_equal_transformers(pair, messages, data) -> None:
    """Ids and mask: what is thought and called is learned, and no tool's result."""
    ours, theirs = pair
    for message in messages:
        if message["role"] == "assistant":
            message |= {} if data.draw(st.booleans()) else {"tool_calls": data.draw(st.lists(calls, max_size=2))}
            message |= {} if data.draw(st.booleans()) else {"reasoning_content": data.draw(content)}
    tools = [] if ours.chat_template == "bos" else data.draw(st.sampled_from([TOOLS, TOOLS[:1], []]))
    chat = render_chat(ours, messages, tools=tools)
    expected = theirs.apply_chat_template(messages, tools=tools or None, return_dict=True,
                                          return_assistant_tokens_mask=True)  # fmt: skip
    assert chat.tokens == expected["input_ids"]
    assert [int(on) for on in chat.mask] == list(expected["assistant_masks"])
    if messages[-1]["role"] != "assistant":
        for thinking in (None, True, False):
            given = {} if thinking is None else {"enable_thinking": thinking}
            prompt = theirs.apply_chat_template(messages, tools=tools or None, add_generation_prompt=True,
                                                return_dict=False, **given)  # fmt: skip
            assert render_chat(ours, messages, True, tools, thinking).tokens == prompt


def test_a_chat_with_a_call_word_for_word(pair) -> None:
    ours, _ = pair
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    messages = [{"role": "user", "content": "问"},
                {"role": "assistant", "content": "", "reasoning_content": "想", "tool_calls": [call]},
                {"role": "tool", "content": "果"}, {"role": "assistant", "content": "答"}]  # fmt: skip
    if ours.chat_template == "roles":
        chat = render_chat(ours, messages, tools=TOOLS[1:])
        wanted = ('<|system|><tools>\n{"name": "f"}\n</tools><|user|>问<|assistant|><think>\n想\n</think>\n\n'
                  '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call></s>'
                  '<|tool|>果<|assistant|>答</s>')  # fmt: skip
        assert ours.decode(chat.tokens, skip_special=False).replace(" ", "") == wanted.replace(" ", "")
        answered = results_after_answer(ours, ["果"])
        prompt = render_chat(ours, messages[:2], tools=TOOLS[1:]).tokens + answered
        assert prompt == render_chat(ours, messages[:3], True, TOOLS[1:]).tokens
    else:
        with pytest.raises(InputError, match="built-in chat template roles"):
            results_after_answer(ours, ["果"])


@given(messages=chats())
def test_law_8_mask_is_the_answer_and_its_end_token(pair, messages) -> None:
    """Walk over the tokens with the special ids alone: in an answer from its opening token to its end token."""
    ours, _ = pair
    chat = render_chat(ours, messages)
    opening = ours.bos_id if ours.chat_template == "bos" else ours.role_ids["assistant"]
    inside, expected = False, []
    for token in chat.tokens:
        expected.append(inside)
        inside = token == opening or (inside and token != ours.eos_id)
    assert chat.mask == expected
    learned = [token for token, on in zip(chat.tokens, chat.mask, strict=True) if on]
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    assert learned == [token for answer in answers for token in [*ours.encode(answer), ours.eos_id]]


def test_transformers_mask_equals_ours(pair) -> None:
    ours, theirs = pair
    messages = [
        {"role": "system", "content": "你是助手。"},
        {"role": "user", "content": "天空是什么颜色？"},
        {"role": "assistant", "content": "天空是蓝色的。"},
        {"role": "user", "content": "thanks"},
        {"role": "assistant", "content": "不客气 😀"},
    ]
    found = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    chat = render_chat(ours, messages)
    assert (chat.tokens, [int(on) for on in chat.mask]) == (found["input_ids"], list(found["assistant_masks"]))


@pytest.mark.parametrize("token", [*SPECIAL_TOKENS, "<unk>", "<0x0A>"])
def test_content_never_becomes_a_special_token(pair, token: str) -> None:
    ours, _ = pair
    special = {ours.bos_id, ours.eos_id, *ours.role_ids.values()}
    plain = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}]
    attack = [{**message, "content": f"{token}你{token}"} for message in plain]
    expected = [t for t in render_chat(ours, plain).tokens if t in special]
    assert [t for t in render_chat(ours, attack).tokens if t in special] == expected


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "at least one message"),
        ("hi", "list with at least one"),
        ([{"role": "user"}], "keys role and content"),
        (["hi"], "keys role and content"),
        ([{"role": "bot", "content": "x"}], "'bot' is unknown"),
        ([{"role": ["user"], "content": "x"}], "is unknown"),
        ([{"role": "user", "content": None}], "must be text"),
        ([{"role": "assistant", "content": "x"}], "assistant cannot stand at the start"),
        ([{"role": "system", "content": "x"}], "only a system message"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "x"}], "system cannot stand after user"),
        ([{"role": "user", "content": "x", "tool_calls": [{}]}], "only an assistant's can"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}],
            r"messages\[1\].tool_calls: a call must have a function",
        ),
        ([{"role": "user", "content": "x"}] * 2, r"messages\[1\].role: user cannot stand after user; assistant can"),
    ],
)
def test_bad_messages_are_refused(messages, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        check_messages(messages)


def test_an_answer_after_an_answer_is_refused(pair) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    with pytest.raises(InputError, match="is an answer already"):
        render_chat(pair[0], messages, add_generation_prompt=True)


@pytest.mark.parametrize("begun", ["y", "你好，\n", " 1 + "])
def test_an_answer_that_goes_on_is_transformers(pair, begun: str) -> None:
    """The whole chat but for what ends the last answer."""
    ours, theirs = pair
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": begun}]
    found = render_chat(ours, messages, continue_final_message=True)
    assert found.tokens == render_chat(ours, messages).tokens[:-1]
    assert found.tokens == theirs.apply_chat_template(messages, continue_final_message=True)["input_ids"]
    call = {"function": {"name": "f", "arguments": {}}}
    calls = {"role": "assistant", "content": "", "tool_calls": [call]}
    for last, fault in ((messages[:1], r"messages\[0\]: is no answer"), ([messages[0], calls], "calls tools and ends")):
        with pytest.raises(InputError, match=fault):
            render_chat(ours, last, continue_final_message=True)


def test_all_roles_have_a_token(pair) -> None:
    assert set(pair[0].role_ids) == set(ROLES)
