"""What the tests of exports share: a sharp model of either vocabulary, strings that tokenizers stumble over."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from small import SMALL_TEXT, sentencepiece_model
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from babyllama.export.folder import fill
from babyllama.model.checkpoint import save_model
from babyllama.model.config import ModelConfig
from babyllama.model.lora import linears
from babyllama.model.surgery import replace_modules
from babyllama.model.transformer import Transformer, initialise
from babyllama.quant.grid import Grid
from babyllama.quant.linear import GroupedLinear
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import train_bpe

PIECES = [
    " ", "  ", "\t", "\n", "\r\n", "\n\n", "\u3000", "\xa0", "\u200b", "\u200d", "\ufeff", "\x85",
    "\u2028", "今天", "我们", "天气很好，", "。", "！", "「", "龘", "𠮷", "〇", "ー", "カタカナ", "ひらがな",
    "한국어", "Ａ１",
    "①", "The", " quick", "fox's", "don't", "HTTP", "naïve", "é", "Ωμέγα", "Привет", "שלום",
    "مرحبا", "ไทย", "1", "23", "2024", "3.14159", "1,000", "٣٤", "½", "def f(x):", "    return",
    "a_b", "==", "!=", "//", "#", "$", "https://a.b/c?d=e", "😀", "👩\u200d👩\u200d👧", "🇨🇳", "<s>",
    "</s>", "<|user|>", "<|assistant|>", "<unk>", "<0x0A>", "[PAD7]", "▁", "Ġ", "\x01", "\x7f",
    "\ue000", "�", "\U0010fffd", "--", "...", "……", "'", '"', "\\", "\\n",
]  # fmt: skip


def vocabulary(kind: str, folder: Path) -> Tokenizer:
    """``own`` byte-level BPE, with numbers cut into ``digits``, one cut as ``gpt2``'s, or ``sentencepiece``."""
    if kind == "gpt2":
        backend = Backend(models.BPE())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        start = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=460, initial_alphabet=start, special_tokens=["<s>", "</s>"], show_progress=False
        )
        backend.train_from_iterator(SMALL_TEXT, trainer)
        return Tokenizer(backend, chat_template="bos")
    if kind in ("own", "digits"):
        return train_bpe(SMALL_TEXT, 460, digits=3 if kind == "own" else 1)
    (folder / "source.model").write_bytes(sentencepiece_model())
    return Tokenizer.load(folder / "source.model")


def sharp(vocab_size: int, **changes: Any) -> Transformer:
    """Weights and norms far from the start, so that a wrong row or angle changes every logit."""
    shape = {"vocab_size": vocab_size, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
    model = Transformer(ModelConfig(**shape | changes))
    initialise(model, 1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 4
            else:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def talker(tokenizer: Tokenizer) -> Transformer:
    """A sharp model that, as a trained one, says no marker but those that end an answer."""
    model = sharp(tokenizer.vocab_size, max_position_embeddings=512, tie_word_embeddings=False)
    model.lm_head.weight[list(tokenizer.special_ids - {tokenizer.eos_id, tokenizer.turn_end})] = 0
    return model


def pack(model: Transformer, grid: Grid) -> None:
    """Every matrix of the blocks rounded to the grid."""
    chosen = {path for path, _ in linears(model)}
    replace_modules(model, lambda path, _: path in chosen,
                    lambda _, module: GroupedLinear.of(grid.nearest(module.weight)))  # fmt: skip


def save(model: Transformer, tokenizer: Tokenizer, folder: Path) -> Path:
    """As the verbs write a model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder, **tokenizer.config_ids)
    tokenizer.save(folder)
    return folder


def published(model: Transformer, tokenizer: Tokenizer, folder: Path) -> Path:
    """As `export to=hf` writes it."""
    folder.mkdir()
    fill(folder, model, tokenizer, folder, "a", None, "", None, {})
    return folder


def hostile(count: int, seed: int = 0) -> list[str]:
    """Blanks of every kind, digits, scripts, marks, emoji, control and private characters, markers, broken UTF-16's
    replacements, all mixed; no surrogates, which are no text."""
    draw = random.Random(seed)
    found = []
    for i in range(count):
        kind = i % 4
        if kind < 3:
            found.append("".join(draw.choices(PIECES, k=draw.randint(1, 12))))
        else:
            planes = [(0x20, 0x7F), (0xA0, 0x3000), (0x3000, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
            found.append("".join(chr(draw.randrange(*draw.choice(planes))) for _ in range(draw.randint(1, 8))))
    return found


def need_trl() -> None:
    """A comparison with TRL fails, and says so, where it is missing."""
    if importlib.util.find_spec("trl") is None:
        pytest.fail("trl is not installed here; CONTRIBUTING.md says how")


def beginner(place: Path) -> Path:
    """A policy to begin with, as transformers reads it: float32 of two implementations must not part by more than a
    comparison's bound, so its weights are not sharp."""
    tokenizer = vocabulary("own", place)
    model = Transformer(sharp(tokenizer.vocab_size, max_position_embeddings=64).config)
    initialise(model, 1)
    return published(model, tokenizer, place / "out")
