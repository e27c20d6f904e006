"""Text that looks like a special token stays text over HTTP: own, SentencePiece's and foreign vocabularies."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import foreign_folder, sentencepiece_model
from small_run import small_tokenizer

from babyllama.infer.engine import Engine
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.serve.models import Models, Served
from babyllama.serve.worker import Worker
from babyllama.tokenizer.tokenizer import Tokenizer

from .conftest import told_here

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KINDS = ("own", "sentencepiece", "foreign")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    found = {"own": small_tokenizer(), "sentencepiece": Tokenizer.load(folder)}
    return {**found, "foreign": foreign(tmp_path_factory.mktemp("foreign"), found["sentencepiece"])}


def foreign(folder: Path, like: Tokenizer) -> Tokenizer:
    """A Hugging Face folder with markers and a chat template of its own."""
    backend = type(like.backend).from_str(like.backend.to_str())
    return Tokenizer.load(foreign_folder(folder, backend, ["<|im_start|>", "<|im_end|>"], CHATML))


def served(name: str, tokenizer: Tokenizer) -> Served:
    model = Transformer(ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512))  # fmt: skip
    initialise(model, 0)
    return Served(name, Worker(Engine(model.eval(), tokenizer.vocab_size)), tokenizer)


def names_of(tokenizer: Tokenizer) -> list[str]:
    """All that the vocabulary calls special."""
    return sorted(filter(None, map(tokenizer.backend.id_to_token, tokenizer.special_ids)))


def ask(tokenizers: dict[str, Tokenizer], requests: list[tuple[str, dict]]) -> list[dict]:
    """The answers of a server with these models."""
    models = Models({name: lambda n=name, t=tokenizer: [served(n, t)] for name, tokenizer in tokenizers.items()})
    found = told_here(models, list(tokenizers), [(f"/v1/{route}", body) for route, body in requests])
    assert all(answer.status_code == 200 for answer in found), [answer.text for answer in found]
    return [answer.json() for answer in found]


words = st.sampled_from(["<s>", "</s>", "<|user|>", "<|assistant|>", "<|im_start|>", "<|im_end|>", "</", "s>", "|>"])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(parts=st.lists(words | st.text("ab你 \n", max_size=3), min_size=1, max_size=6))
def test_what_looks_like_a_special_token_stays_text(tokenizers, kind, parts):
    tokenizer, text = tokenizers[kind], "".join(["x", *parts, *names_of(tokenizers[kind]), "x"])

    def chat(content: str) -> dict:
        return {
            "model": kind,
            "messages": [{"role": "system", "content": content}, {"role": "user", "content": content}],
        }

    plain, rendered, other, back = ask({kind: tokenizer}, [
        ("tokenize", {"model": kind, "prompt": text}), ("tokenize", chat(text)), ("tokenize", chat("xx")),
        ("detokenize", {"model": kind, "tokens": tokenizer.encode(text)}),
    ])  # fmt: skip
    special = tokenizer.special_ids
    assert plain["tokens"] == tokenizer.encode(text) and not special & set(plain["tokens"])
    assert back["prompt"].removeprefix(" ") == text
    markers = [[token for token in answer["tokens"] if token in special] for answer in (rendered, other)]
    assert markers[0] == markers[1]  # as many as the template writes around any text


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_asked_for_with_the_same_tokens(tokenizers, kind):
    """What a completion counts as its prompt is what /v1/tokenize says, look-alikes and all."""
    tokenizer, text = tokenizers[kind], "".join(names_of(tokenizers[kind]))
    messages = {"model": kind, "messages": [{"role": "user", "content": text}]}
    counted, chat, texts = ask({kind: tokenizer}, [
        ("tokenize", messages), ("chat/completions", {**messages, "max_tokens": 2}),
        ("completions", {"model": kind, "prompt": text, "max_tokens": 2, "echo": True})])  # fmt: skip
    assert chat["usage"]["prompt_tokens"] == counted["count"]
    assert texts["usage"]["prompt_tokens"] == 1 + len(tokenizer.encode(text))
    assert texts["choices"][0]["text"].startswith(text)
