"""Prepared data, looked at: what its tokens tell of each other, whose ids they are, what its masks cover.

Everything comes from a sample of some 200,000 tokens a corpus, so that it takes about a second, and is measured
against the data themselves: the same tokens shuffled, one half of the documents against the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import xxhash

from babyllama.data.shards.shards import Prepared, TokenStore
from babyllama.data.sources.known import MADE_HERE
from babyllama.foresight.evidence import Chats, Corpus, Distance
from babyllama.tokenizer.tokenizer import Tokenizer

SAMPLE = 200_000  # tokens of a corpus that statistics are made of
DOCUMENTS = 100_000  # looked at for repetitions
READ_AGAIN = 48  # documents that are decoded and encoded again
CHATS = 2_000
PARTS = 8  # of the training split's second half


def survey(prepared: Prepared, tokenizer: Tokenizer, context: int, labels: tuple[str, ...] = ()) -> tuple[Corpus, ...]:
    """Facts of each corpus that has documents to train on.

    Args:
        context: tokens of a row.  labels: of the corpora that the training reads; all when empty.
    """
    found = []
    for label in labels or tuple(prepared.corpora):
        splits = prepared.corpora[label]
        if splits["train"].documents:
            found.append(_corpus(prepared, label, splits["train"], splits["val"], tokenizer, context))
    return tuple(found)


def _corpus(prepared: Prepared, label: str, train: TokenStore, held: TokenStore, tokenizer: Tokenizer,
            context: int) -> Corpus:  # fmt: skip
    tokens = np.concatenate(list(sampled(train, SAMPLE)))
    entropy, gain = told_by_the_one_before(tokens)
    prints = [_print(train, number) for number in range(min(train.documents, DOCUMENTS))]
    lengths = np.diff(train.document_offsets[: len(prints) + 1])
    first = np.unique(np.array(prints, np.uint64), return_index=True)[1]
    validation = [_print(held, number) for number in range(min(held.documents, DOCUMENTS))]
    leaked = len(np.intersect1d(np.array(validation, np.uint64), np.array(prints, np.uint64)))
    respelt, sample = read_again(train, tokenizer)
    return Corpus(
        f"{prepared.path}: {label}", len(tokens), entropy, gain, len(prints), len(first),
        1 - float(lengths[first].sum()) / max(1, int(lengths.sum())), respelt, sample, len(validation), leaked,
        distance(train, held), _chats(train, tokenizer, context) if train.kind == "chat" else None,
        prepared.manifest["corpora"][label].get("source") == MADE_HERE)  # fmt: skip


def sampled(store: TokenStore, most: int) -> Iterator[np.ndarray]:
    """Whole documents from all over a store, about `most` tokens together."""
    share = min(1.0, most / max(1, len(store)))
    count = min(store.documents, max(1, round(store.documents * share)))
    left = most
    for number in np.unique(np.linspace(0, store.documents - 1, count).astype(int)).tolist():
        start, stop = store.document_offsets[number : number + 2].tolist()
        found = store.tokens(start, min(stop, start + left))
        left -= len(found)
        yield found
        if left <= 0:
            return


def told_by_the_one_before(tokens: np.ndarray) -> tuple[float, float]:
    """(entropy of the tokens, nats by which the one before tells each better than in the same tokens shuffled).

    Counting pairs flatters any text, a short one most, and a shuffled one by just as much: what is left is real.
    """
    ids = np.unique(tokens, return_inverse=True)[1].astype(np.int64)
    size = int(ids.max(initial=0)) + 1

    def entropy(values: np.ndarray) -> float:
        counts = np.unique(values, return_counts=True)[1] / max(1, len(values))
        return float(-(counts * np.log(counts)).sum())

    def pairs(values: np.ndarray) -> float:
        return entropy(values[:-1] * size + values[1:])

    shuffled = np.random.default_rng(0).permutation(ids)
    return entropy(ids), pairs(shuffled) - pairs(ids)


def _print(store: TokenStore, number: int) -> int:
    start, stop = store.document_offsets[number : number + 2].tolist()
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(store.tokens(start, stop)).tobytes())


def distance(train: TokenStore, held: TokenStore) -> Distance | None:
    """How far the validation split's token frequencies lie from training's; None where there is too little of it."""
    halves = [np.concatenate([*sampled(train, SAMPLE)][part::2] or [np.empty(0, int)]) for part in (0, 1)]
    other = np.concatenate([*sampled(held, SAMPLE // PARTS)]) if held.documents else np.empty(0, int)
    if held.documents < 8 or len(halves[1]) < PARTS * 100 or len(halves[0]) < 100:
        return None
    size = int(max(part.max() for part in (*halves, other))) + 1
    counts = np.bincount(halves[0].astype(np.int64), minlength=size) + 0.5
    cost = -np.log(counts / counts.sum())
    length = min(len(other), len(halves[1]) // PARTS)
    parts = [cost[halves[1][at : at + length]].mean() for at in range(0, len(halves[1]) - length + 1, length)]
    return Distance(float(cost[other].mean()), float(np.mean(parts)), float(np.std(parts, ddof=1)))


def read_again(store: TokenStore, tokenizer: Tokenizer) -> tuple[float | None, str]:
    """(share of a sample's tokens that come back when it is decoded and encoded again, the start of its text).

    Special tokens are left out: text never becomes one.
    """
    special, same, total, texts = tokenizer.special_ids, 0, 0, list[str]()
    numbers = np.unique(np.linspace(0, store.documents - 1, READ_AGAIN).astype(int))
    for number in numbers.tolist():
        start, stop = store.document_offsets[number : number + 2].tolist()
        piece: list[int] = []
        for token in [*store.tokens(start, min(stop, start + 4096)).tolist(), None]:
            if token is not None and token not in special:
                piece.append(token)
                continue
            if piece:
                text = tokenizer.decode(piece)
                texts.append(text)
                again = Counter(tokenizer.encode(text))
                same += sum((again & Counter(piece)).values())
                total += max(len(piece), again.total())
            piece = []
    return (same / total if total else None), " ".join(texts)[:60]


def _chats(store: TokenStore, tokenizer: Tokenizer, context: int) -> Chats | None:
    """A sample of chats; None where the vocabulary lacks the template's tokens."""
    roles = tokenizer.chat_template == "roles"
    opens = tokenizer.role_ids.get("assistant") if roles else tokenizer.bos_id
    if opens is None:
        return None
    closes, others = tokenizer.eos_id, frozenset(tokenizer.role_ids.values()) if roles else frozenset[int]()
    answers = unended = learned = foreign = 0
    numbers = np.unique(np.linspace(0, store.documents - 1, CHATS).astype(int)).tolist()
    for number in numbers:
        start, stop = store.document_offsets[number : number + 2].tolist()
        inside, mask = False, store.mask(start, stop).tolist()
        for token, counts in zip(store.tokens(start, stop).tolist(), mask, strict=True):
            learned += counts
            if token == opens or token in others:
                unended += inside  # the next turn begins before the answer's end
                foreign += counts
                inside = token == opens
                answers += inside
                continue
            foreign += counts and not inside
            if token == closes and inside:
                inside = False
                unended += not counts
        unended += inside
    too_long = int((np.diff(store.document_offsets) - 1 > context).sum())
    return Chats(tokenizer.chat_template, len(numbers), answers, unended, learned, foreign,
                 round(too_long * len(numbers) / store.documents))  # fmt: skip
