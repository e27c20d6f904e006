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

ADVERSARIAL = [
    *("", " ", "  ", "   a", "a   ", " a b ", "\n", "\n\n", "\t\t", "\r\n", "a\nb", "　　段落", "\u00a0x\u00a0"),
    *("\x00", "a\x00b", "\x01\x7f\x80", "\u202e\u200b\u2028\u2029\x85", "\ufeffBOM", "\ufffd\ufffe\uffff"),
    *("😀", "👨\u200d👩\u200d👧", "🇨🇳🇺🇸", "\ue000\uf8ff", "\U000f0000\U0010ffff", "𠀀𪚥㐀", "龘靐齉", "한국어カタカナ"),
    *("e\u0301é", "ａｂｃ１２３", "①②ﬁ", "1234567890 3.14 2024年", "今天天气很好，我们去公园。", "mixed中文and英文"),
    *(
        "<s>",
        "</s>",
        "<unk>",
        "<0x0A>",
        "<|user|>",
        "x</s>y<|assistant|> z",
        "▁",
        "▁▁a ▁",
        "http://例子.测试/?q=1&r=二",
    ),
    *("a" * 300, " " * 100, "-" * 77, "\n" * 33, "的" * 50),
    *(char * n for char in "=-_*#. \nae0天哈" for n in range(2, 40, 3)),
]


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
