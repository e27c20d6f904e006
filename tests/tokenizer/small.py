"""Small vocabularies, made here so that the tests need no download."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

SMALL_TEXT = [
    "今天天气很好，我们一起去公园散步。天空是蓝色的，云是白色的。",
    "我们今天学习语言模型。模型读很多文字，然后猜下一个字。",
    "The quick brown fox jumps over the lazy dog. The model reads text.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2024))\n",
    "你好！你是谁？我是一个小小的语言模型，我会写诗，也会回答问题。",
] * 6


@cache
def sentencepiece_model(**changes: Any) -> bytes:
    """A model with ChatGLM2's settings (identity normaliser, byte fallback, blank in front), but `changes`."""
    settings = {
        "model_type": "bpe",
        "vocab_size": 450,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    lines = [line for text in SMALL_TEXT for line in text.split("\n") if line] + ["  a    b        c"] * 2
    found = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=found, **settings | changes)
    return found.getvalue()


def foreign_folder(folder: Path, backend: Backend, markers: list[str], template: str, special: bool = True) -> Path:
    """A Hugging Face folder with markers and a chat template of its own."""
    backend.add_tokens([AddedToken(name, special=special, normalized=False) for name in markers])
    (folder / "tokenizer.json").write_text(backend.to_str(), "utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
              "add_bos_token": False, "chat_template": template}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder
