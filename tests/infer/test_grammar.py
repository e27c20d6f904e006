"""Answers of a given form, whatever the model would rather say."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from small_run import small_tokenizer
from tokenizers import AddedToken

from babyllama.errors import InputError
from babyllama.infer.engine import Engine
from babyllama.infer.forms import CallsForm, arguments_schema
from babyllama.infer.grammar import Grammars
from babyllama.infer.request import Request
from babyllama.infer.sampling import Sampling
from babyllama.infer.text import Text
from babyllama.model.config import ModelConfig
from babyllama.tokenizer.tools import OWN, Call, Calls, ToolForm
from conftest import sharp_model

PERSON = {
    "type": "object", "additionalProperties": False, "required": ["name", "age"],
    "properties": {"name": {"enum": ["小羊驼", "llama"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
}  # fmt: skip
PHONE = "[0-9]{3}-[0-9]{4}"


def answers(asked, most: int = 80) -> list[str]:
    """Many at once, beside a request that is free to say anything, by a model that knows nothing."""
    tokenizer = small_tokenizer()
    engine = Engine(sharp_model(ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512)), tokenizer.vocab_size)  # fmt: skip
    free = Request([4], Sampling(), 30)
    texts = {engine.add(free): Text(tokenizer)}
    for seed, mask in enumerate(asked):
        texts[engine.add(Request([5 + seed], Sampling(), most, {tokenizer.eos_id}, seed, mask=mask))] = Text(tokenizer)
    said = dict.fromkeys(texts, "")
    alone = [t for event in Engine(engine.model, tokenizer.vocab_size).events(free) for t in event.tokens]
    tokens = []
    while engine.busy:
        for event in engine.step():
            said[event.id] += texts[event.id].feed(event)
            tokens += event.tokens if event.id == 0 else []
    assert tokens == alone
    assert [text.finish for text in texts.values()][1:] == ["stop"] * len(asked)
    return list(said.values())[1:]


def test_json_and_regex():
    grammars = Grammars(small_tokenizer())
    found = answers([*(grammars.json_schema(PERSON) for _ in range(4)), *(grammars.regex(PHONE) for _ in range(4))])
    for text in found[:4]:
        person = json.loads(text)
        assert set(person) == {"name", "age"} and person["name"] in ("小羊驼", "llama") and 0 <= person["age"] <= 99
    assert all(re.fullmatch(PHONE, text) for text in found[4:]) and len(set(found[4:])) > 1


TOOLS = {"weather": arguments_schema("weather", {
             "properties": {"town": {"enum": ["云川", 'a"b']}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
             "required": ["town"]}),
         "now": arguments_schema("now", None)}  # fmt: skip


def fits(call: Call) -> bool:
    arguments = json.loads(call.arguments)
    if call.name == "now":
        return arguments == {}
    days = arguments.pop("days", 1)
    return call.name == "weather" and arguments in ({"town": "云川"}, {"town": 'a"b'}) and 1 <= days <= 9


def test_calls():
    """Any of the tools, several at most; after a thought where one has begun."""
    grammars = Grammars(small_tokenizer())
    found = answers([*(grammars.calls(CallsForm(OWN, TOOLS, 2)) for _ in range(12)),
                     *(grammars.calls(CallsForm(OWN, {"now": TOOLS["now"]})) for _ in range(2))], 400)  # fmt: skip
    counts, names = set[int](), set[str]()
    for text in found:
        said, calls = Calls(OWN).feed(text, True)
        assert not said.strip() and all(map(fits, calls)), text
        counts.add(len(calls))
        names |= {call.name for call in calls}
    assert counts == {1, 2} and names == {"weather", "now"}
    assert found[-1] == '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize("added", [[], ["</think>", "<tool_call>"]])
def test_a_thought_comes_to_its_end_before_the_call(added):
    """Also where what ends it, and what begins the call, are tokens of the vocabulary."""
    backend = type(small_tokenizer().backend).from_str(small_tokenizer().backend.to_str())
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in added])
    tokenizer = replace(small_tokenizer(), backend=backend)
    mask = Grammars(tokenizer).calls(CallsForm(OWN, {"now": TOOLS["now"]}, thinks=True))
    allowed = torch.empty((tokenizer.vocab_size + 31) // 32, dtype=torch.int32)

    def may(token: int) -> bool:
        mask.fill(allowed)
        return bool(int(allowed[token // 32]) >> token % 32 & 1)

    text = '你好 < a</think>\n\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    for token in backend.encode(text).ids:
        assert may(token) and not may(tokenizer.eos_id)
        mask.accept(token)
    assert may(tokenizer.eos_id)


def test_what_is_no_grammar():
    grammars = Grammars(small_tokenizer())
    with pytest.raises(InputError, match=r"regex: .*error: unclosed group$"):
        grammars.regex("(")
    with pytest.raises(InputError, match="json_schema: "):
        grammars.json_schema({"type": "no such type"})
    with pytest.raises(InputError, match="parameters: "):
        grammars.calls(CallsForm(OWN, {"f": {"type": "object", "properties": {"a": {"type": "no such type"}}}}))
    with pytest.raises(InputError, match="the parameters of f must describe an object"):
        arguments_schema("f", {"type": "string"})
    with pytest.raises(InputError, match="writes arguments before the name"):
        grammars.calls(CallsForm(ToolForm("<", ">", "arguments"), TOOLS))
