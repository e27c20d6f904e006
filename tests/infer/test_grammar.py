"""Answers of a given form, whatever the model would rather say."""

from __future__ import annotations

import json
import re

import pytest
from small_run import small_tokenizer

from babyllama.errors import InputError
from babyllama.infer.engine import Engine
from babyllama.infer.grammar import Grammars
from babyllama.infer.request import Request
from babyllama.infer.sampling import Sampling
from babyllama.infer.text import Text
from babyllama.model.config import ModelConfig
from conftest import sharp_model

PERSON = {
    "type": "object", "additionalProperties": False, "required": ["name", "age"],
    "properties": {"name": {"enum": ["小羊驼", "llama"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
}  # fmt: skip
PHONE = "[0-9]{3}-[0-9]{4}"


def answers(asked) -> list[str]:
    """Many at once, beside a request that is free to say anything, by a model that knows nothing."""
    tokenizer = small_tokenizer()
    engine = Engine(sharp_model(ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)), tokenizer.vocab_size)  # fmt: skip
    free = Request([4], Sampling(), 30)
    texts = {engine.add(free): Text(tokenizer)}
    for seed, mask in enumerate(asked):
        texts[engine.add(Request([5 + seed], Sampling(), 80, {tokenizer.eos_id}, seed, mask=mask))] = Text(tokenizer)
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


def test_what_is_no_grammar():
    grammars = Grammars(small_tokenizer())
    with pytest.raises(InputError, match="regex: "):
        grammars.regex("(")
    with pytest.raises(InputError, match="json_schema: "):
        grammars.json_schema({"type": "no such type"})
