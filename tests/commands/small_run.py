"""Tiny models and tokenizers for the tests of verbs, made here."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
import xxhash
from torch.nn.functional import cross_entropy

from babyllama.model.checkpoint import save_model
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.tokenizer.chat import ChatTokens, render_chat
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import train_bpe

CHATS = [
    ("你好！", "你好，很高兴见到你。"),
    ("你是谁？", "我是小羊驼，一个小小的语言模型。😀"),
    ("一加一等于几？", "一加一等于二。"),
    ("再见。", "再见，欢迎再来！"),
]
CONTEXT = 96


def messages_of(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@cache
def small_tokenizer() -> Tokenizer:
    return train_bpe([text for chat in CHATS for text in chat if text[-1] != "😀"] * 3, 330)


@cache
def taught_model() -> Transformer:
    """A model that knows the four CHATS by heart, each alone and after the one before it."""
    chats = [messages_of(*chat) for chat in CHATS]
    chats += [[*first, *second] for first in chats for second in chats]
    return by_heart(small_tokenizer(), [render_chat(small_tokenizer(), chat) for chat in chats], CONTEXT)


def by_heart(tokenizer: Tokenizer, rendered: list[ChatTokens], context: int, steps: int = 120) -> Transformer:
    """A model that knows these chats."""
    model = Transformer(ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context))  # fmt: skip
    initialise(model, 0)
    longest = max(len(r.tokens) for r in rendered)
    tokens = torch.tensor([r.tokens + [0] * (longest - len(r.tokens)) for r in rendered])
    targets = torch.tensor([
        [t if m else -100 for t, m in zip(r.tokens, r.mask, strict=True)] + [-100] * (longest - len(r.tokens))
        for r in rendered])  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        loss = cross_entropy(model(tokens[:, :-1]).flatten(0, 1), targets[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 5e-3:
            break
    return model.eval().requires_grad_(False)


def save_taught(folder: Path) -> Path:
    """The taught model as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = small_tokenizer()
    save_model(taught_model(), folder, **tokenizer.config_ids)
    tokenizer.save(folder)
    return folder


def a_run(path, parent=None, data=None, verb="train", context=None, replay=None):
    """A run's facts without its model."""
    path.mkdir()
    start = {"kind": "new"} if parent is None else {"kind": "from", "path": str(parent)}
    recipe = {"init": start, "data": {"path": str(data)}, "plan": {"context": context},
              "replay": replay and {"path": str(replay)}}  # fmt: skip
    (path / "recipe.yaml").write_text(json.dumps(recipe if verb == "train" else {}))
    (path / "run.json").write_text(json.dumps({"verb": verb, "parent": parent and str(parent)}))
    return path


def some_data(path, validation, source):
    path.mkdir()
    corpora = {Path(source).stem: {"kind": "text", "source": str(source), "splits": {}}}
    (path / "manifest.json").write_text(
        json.dumps({"version": 1, "dtype": "uint16", "validation": validation, "corpora": corpora})
    )
    return path


def hashed(low, high):
    """A text whose hash lies between two shares of all."""
    return next(t for t in map(str, range(10_000)) if low <= xxhash.xxh3_64_intdigest(t.encode()) / 2**64 < high)
