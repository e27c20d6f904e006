"""Learn a byte-level BPE vocabulary from text: whole characters first, then what joins them.

Plain byte-level BPE spends its first merges on frequent byte pairs, so a small Chinese vocabulary leaves many hanzi
in pieces. Here merges are learned between characters, and the characters themselves are assembled from bytes by merges
that rank before all others. The result is an ordinary byte-level BPE: any text round-trips, and every program that
reads tokenizer.json runs it. Not here: reading corpora.
"""

from __future__ import annotations

import json
import pickle
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import IO

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from babyllama.errors import InputError
from babyllama.tokenizer.cuts import BYTE_TO_CHAR, Digits, pre_tokenizer, splits
from babyllama.tokenizer.special import SPECIAL_TOKENS
from babyllama.tokenizer.tokenizer import Tokenizer

MAX_TOKEN_CHARACTERS = 16  # keeps rulers such as ====== from filling the vocabulary
_BASE = len(SPECIAL_TOKENS) + 256
_RUN = re.compile(
    r"\w{1000}|\s{1000}|[^\w\s]{1000}"
)  # is cut: the trainer's time goes by the square of a word's length
_CUT = "\uffff"  # stands for characters outside the alphabet while merges are learned; Unicode has no such character


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    min_frequency: int = 2,
    max_alphabet: int | None = None,
    digits: Digits = 3,
    progress: Callable[[int], None] | None = None,
) -> Tokenizer:
    """A vocabulary of `vocab_size` tokens, or of fewer when the text has no more pairs to merge.

    Ids: special tokens, 256 bytes, characters by falling frequency, learned tokens. Each character that occurs
    `min_frequency` times gets a token, the most frequent first, as far as `vocab_size` and `max_alphabet` (characters
    beyond ASCII) allow; a character of three bytes may also cost one for its first two bytes. The texts are read
    once and kept in a temporary file; memory holds the distinct words. The same texts give the same vocabulary.

    Args:
        digits: the most digits in one token; 1 lets a small model learn to reckon.
        progress: called with the number of characters of each text read.

    Raises:
        InputError: `vocab_size` below 262, or no text.
    """
    if vocab_size < _BASE:
        raise InputError(
            f"vocab_size {vocab_size} must be at least {_BASE}: {_BASE - 256} special tokens and 256 bytes"
        )
    with tempfile.TemporaryFile() as spool:
        counts = _count_characters(texts, spool, progress or (lambda _: None))
        if not counts:
            raise InputError("there is no text to learn a vocabulary from; check the corpora")
        vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *BYTE_TO_CHAR.values()])}
        merges = _add_characters(vocab, counts, vocab_size, min_frequency, max_alphabet)
        alphabet = {char for char in counts if _as_bytes(char) in vocab}
        room = vocab_size - len(vocab)
        if room:
            learned = _learn_merges(_replay(spool, set(counts) - alphabet), len(alphabet) + room, min_frequency,
                                    digits)  # fmt: skip
            for left, right in learned:
                merges.append((_as_bytes(left), _as_bytes(right)))
                vocab.setdefault(_as_bytes(left + right), len(vocab))
    return _assemble(vocab, merges, digits)


def _count_characters(texts: Iterable[str], spool: IO[bytes], progress: Callable[[int], None]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
        pickle.dump(text, spool)
        progress(len(text))
    return counts


def _replay(spool: IO[bytes], outside: set[str]) -> Iterator[str]:
    """The texts again, with `_CUT` for every character in `outside`."""
    pattern = re.compile("[" + "".join(map(re.escape, sorted(outside))) + "]") if outside else None
    spool.seek(0)
    while True:
        try:
            text = pickle.load(spool)
        except EOFError:
            return
        text = pattern.sub(_CUT, text) if pattern else text
        yield _RUN.sub(lambda run: run[0] + _CUT, text)


def _add_characters(
    vocab: dict[str, int], counts: Counter[str], vocab_size: int, min_frequency: int, max_alphabet: int | None
) -> list[tuple[str, str]]:
    """Add characters to `vocab`, each with the merges that assemble it byte by byte."""
    frequent = [c for c, n in counts.items() if n >= min_frequency and not c.isascii() and _is_character(c)]
    frequent.sort(key=lambda char: (-counts[char], char))
    merges: list[tuple[str, str]] = []
    for char in frequent[:max_alphabet]:
        token = _as_bytes(char)
        new = [k for k in range(2, len(token) + 1) if token[:k] not in vocab]
        if len(vocab) + len(new) > vocab_size:
            break
        for k in new:
            vocab[token[:k]] = len(vocab)
            merges.append((token[: k - 1], token[k - 1]))
    return merges


def _learn_merges(texts: Iterable[str], size: int, min_frequency: int, digits: Digits) -> list[tuple[str, str]]:
    """Merges between characters, in the order of learning; `size` counts characters and learned tokens."""
    learner = tokenizers.Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(_CUT, "removed")
    learner.pre_tokenizer = pre_tokenizers.Sequence([cut, *splits(digits)])
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=min_frequency, max_token_length=MAX_TOKEN_CHARACTERS, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]


def _assemble(vocab: dict[str, int], merges: list[tuple[str, str]], digits: Digits) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizer(digits)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS])
    return Tokenizer(backend)


def _as_bytes(text: str) -> str:
    return "".join(BYTE_TO_CHAR[byte] for byte in text.encode("utf-8", "surrogatepass"))


def _is_character(char: str) -> bool:
    return char != _CUT and not 0xD800 <= ord(char) <= 0xDFFF
