"""Tools in a folder's own chat template, beside transformers; calls in a text that comes piece by piece."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import foreign_folder, sentencepiece_model
from tokenizers import AddedToken
from transformers import AutoTokenizer

from babyllama.errors import InputError
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.tools import Call, Calls, ToolForm, tool_form

MARKERS, TOOL_MARKERS = ["<|im_start|>", "<|im_end|>"], ["<tool_call>", "</tool_call>"]
HERMES = """\
{%- if tools %}<|im_start|>system
# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools><|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
DEAF = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
FORM = ToolForm("<tool_call>", "</tool_call>", "arguments")
WEATHER = {"type": "function", "function": {"name": "weather", "description": "天气", "parameters": {
    "type": "object", "properties": {"town": {"type": "string"}}}}}  # fmt: skip


def tokenizer_with(folder: Path, template: str, special: bool = False) -> Tokenizer:
    """`special`: whether so are the tokens around a call, which they are not in most folders."""
    (folder / "bpe").mkdir()
    (folder / "bpe" / "tokenizer.model").write_bytes(sentencepiece_model())
    backend = Tokenizer.load(folder / "bpe").backend
    backend = type(backend).from_str(backend.to_str())
    backend.add_tokens([AddedToken(name, special=special, normalized=False) for name in TOOL_MARKERS])
    return Tokenizer.load(foreign_folder(folder, backend, MARKERS, template))


def test_a_prompt_with_tools_and_earlier_calls_is_transformers(tmp_path):
    tokenizer = tokenizer_with(tmp_path, HERMES)
    assert tool_form(tokenizer) == FORM
    assert tool_form(tokenizer).written == ('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>")
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"town": "ab"}}}
    chat = [{"role": "user", "content": "ab?"}, {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "b", "tool_call_id": "1"}]  # fmt: skip
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for messages in (chat[:1], chat):
        expected = theirs.apply_chat_template(messages, tools=[WEATHER], add_generation_prompt=True, return_dict=False)
        assert render_chat(tokenizer, messages, True, [WEATHER]).tokens == expected


def test_calls_are_learned_and_results_are_not(tmp_path):
    """In a foreign template, which marks nothing itself; so is what was thought where the template writes it."""
    thought = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    thinking = HERMES.replace("{{ m.role }}\n", f"{{{{ m.role }}}}\n{thought}")
    tokenizer = tokenizer_with(tmp_path, thinking)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "ab"}}}
    chat = [{"role": "user", "content": "ab?"},
            {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "b"},
            {"role": "tool", "content": "ba"}, {"role": "assistant", "content": "bb"}]  # fmt: skip
    found = render_chat(tokenizer, chat, tools=[WEATHER])
    learned = tokenizer.decode([t for t, on in zip(found.tokens, found.mask, strict=True) if on], skip_special=False)
    expected = f"<think>b</think>{called('weather', {'town': 'ab'})}<|im_end|>bb<|im_end|>"
    assert learned.replace(" ", "") == expected.replace(" ", "")
    chat[1]["learned"] = False
    found = render_chat(tokenizer, chat, tools=[WEATHER])
    left = tokenizer.decode([t for t, on in zip(found.tokens, found.mask, strict=True) if on], skip_special=False)
    assert left.replace(" ", "") == "bb<|im_end|>"
    with pytest.raises(InputError, match=r"holds <\|im_end\|>"):
        render_chat(tokenizer, [chat[0], {**chat[1], "reasoning_content": "<|im_end|>"}])


def test_what_a_template_cannot_write_is_refused(tmp_path):
    deaf = tokenizer_with(tmp_path, DEAF)
    with pytest.raises(InputError, match="knows no tools"):
        tool_form(deaf)
    built_in = deaf.with_template("bos")
    with pytest.raises(InputError, match="knows no tools"):
        tool_form(built_in)
    with pytest.raises(InputError, match="knows no tools"):
        render_chat(built_in, [{"role": "user", "content": "x"}], True, [WEATHER])


def test_a_call_whose_arguments_come_first_can_be_read_but_not_demanded(tmp_path):
    name, arguments = '"name": "{{ c.function.name }}"', "{{ c.function.arguments | tojson }}"
    turned = HERMES.replace(f'{name}, "arguments": {arguments}', f'"parameters": {arguments}, {name}')
    found = tool_form(tokenizer_with(tmp_path, turned))
    assert (found.key, found.written) == ("parameters", None)


def test_calls_without_an_object_between_two_texts_are_refused(tmp_path):
    odd = HERMES.replace('{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}',
                         "{{ c.function.name }}({{ c.function.arguments.town }})")  # fmt: skip
    with pytest.raises(InputError, match="not understood"):
        tool_form(tokenizer_with(tmp_path, odd))


def test_calls_between_special_tokens_are_refused(tmp_path):
    with pytest.raises(InputError, match="not understood"):  # such a token ends an answer
        tool_form(tokenizer_with(tmp_path, HERMES, special=True))


def test_no_text_of_a_tool_becomes_a_marker(tmp_path):
    tokenizer = tokenizer_with(tmp_path, HERMES)
    bad = json.loads(json.dumps(WEATHER).replace("weather", "x<|im_end|>"))
    with pytest.raises(InputError, match=r"tools: holds <\|im_end\|>"):
        render_chat(tokenizer, [{"role": "user", "content": "x"}], True, [bad])


def called(name: str, arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


plain = st.text("ab<>/tool_c{}", max_size=6).filter(lambda text: "<tool_call>" not in text)
calls = st.tuples(
    st.sampled_from(["f", "g"]), st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3))
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(parts=st.lists(plain | calls, max_size=5), size=st.integers(1, 9))
def test_calls_come_out_however_the_text_is_cut(parts, size):
    text = "".join(part if isinstance(part, str) else called(*part) for part in parts)
    expected = [Call(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in
                (part for part in parts if not isinstance(part, str))]  # fmt: skip
    said, found, reader = "", [], Calls(FORM)
    for at in range(0, len(text), size):
        new, more = reader.feed(text[at : at + size], False)
        said, found = said + new, found + more
    new, more = reader.feed("", True)
    joined = "".join(part for part in parts if isinstance(part, str))
    if "<tool_call>" in "".join(part if isinstance(part, str) else "\0" for part in parts):
        return  # two plain parts make one up
    assert (said + new, found + more) == (joined, expected)


@pytest.mark.parametrize("text", [
    "<tool_call>{", "<tool_call>\n[1]\n</tool_call>", '<tool_call>{"name": 3}</tool_call>!', "<tool_ca",
    '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
    f'<tool_call>{{"name": "f", "arguments": {{"a": {"[" * 5000}{"]" * 5000}}}}}</tool_call>'])  # fmt: skip
def test_what_is_no_call_is_said(text):
    reader = Calls(FORM)
    first, second = reader.feed(text, False), reader.feed("", True)
    assert first[0] + second[0] == text and not first[1] + second[1]


def test_a_call_that_the_end_cuts_after_its_object_counts():
    reader = Calls(FORM)
    assert reader.feed('<tool_call>\n{"name": "f", "arguments": {}}', True) == ("", [Call("f", "{}")])
