"""How vocabularies of bytes that are made here cut a text before it becomes tokens, and how they write bytes.

Not here: learning a vocabulary (train.py), the same cuts in C++ (fast.cpp).
"""

from __future__ import annotations

from typing import Literal

from tokenizers import Regex, pre_tokenizers

# No token reaches across these cuts. By digits in a token: DeepSeek-V3's cuts and SmolLM's, which llama.cpp knows under
# these names, so that an exported GGUF file gives the same ids. Numbers by up to three digits (the year 2024 is 202 4,
# and no token is spent on longer ones) or digit by digit; runs of hanzi without the punctuation beside them, words with
# the blank before them, punctuation, and blanks.
Digits = Literal[1, 3]
SPLITS: dict[Digits, tuple[str, ...]] = {
    3: (
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
        r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    1: (
        r"\p{N}",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    ),
}
NAMES: dict[Digits, str] = {3: "deepseek-v3", 1: "smollm"}


def pre_tokenizer(digits: Digits) -> pre_tokenizers.PreTokenizer:
    """The cuts of `SPLITS`, then bytes as characters."""
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits(digits), to_bytes])


def splits(digits: Digits) -> list[pre_tokenizers.PreTokenizer]:
    """The cuts alone."""
    return [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[digits]]


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself where it prints, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    chars = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + k) for k, byte in enumerate(others)}
    return dict(sorted(chars.items()))


BYTE_TO_CHAR = _byte_alphabet()
