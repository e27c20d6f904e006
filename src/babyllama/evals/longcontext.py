"""How well a model uses a long context: loss by length and by position, a passkey in a haystack, text without end.

Every length is asked for the same targets: the last ones of each row, with more or less text before them. Sums are left
to the caller. Not here: which laws are compared, files, figures (commands/longcontext.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from babyllama.data.shards.shards import TokenStore
from babyllama.errors import InputError
from babyllama.evals.scoring import Pair, score
from babyllama.model.cache import KVCache
from babyllama.model.transformer import Transformer
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.validation import target_nats

NEEDLE = "。重要信息：通行密钥是{key}。请记住，{key}是通行密钥。"
QUESTION = "。请问，通行密钥是什么？通行密钥是"


def rows_of(tokens: np.ndarray, length: int, count: int) -> list[np.ndarray]:
    """At most `count` rows of length + 1 tokens, one after the other, none twice."""
    whole = min(count, len(tokens) // (length + 1))
    return [tokens[i * (length + 1) : (i + 1) * (length + 1)].astype(np.int64) for i in range(whole)]


def long_rows(store: TokenStore, length: int, count: int, joined: bool = False) -> Tensor:
    """(N, length + 1) tokens, N ≤ count, each from within one document; `joined`: from all, one after the other.

    Raises:
        InputError: no document is so long.
    """
    found: list[np.ndarray] = []
    if joined:
        found = rows_of(store.tokens(0, min(len(store), count * (length + 1))), length, count)
    else:
        offsets = store.document_offsets
        sizes = np.diff(offsets)
        for index in np.flatnonzero(sizes > length).tolist():
            if len(found) >= count:
                break
            document = store.tokens(int(offsets[index]), int(offsets[index + 1]))
            found += rows_of(document, length, min(count - len(found), 4))
    if not found:
        longest = len(store) if joined else int(np.diff(store.document_offsets).max(initial=0))
        raise InputError(f"lengths: {length} tokens are asked for, the longest text has {longest}; "
                         "give smaller lengths, longer documents, or joined=true")  # fmt: skip
    return torch.from_numpy(np.stack(found))


@torch.inference_mode()
def losses(model: Transformer, tokens: Tensor, length: int, scored: int, rows: int) -> Tensor:
    """Nats of the last `scored` targets of each row, each predicted from the last `length` inputs; (N, scored) float32.

    Args:
        tokens: (N, at least length + 1).  rows: of a batch.
    """
    device, found = model.embed_tokens.weight.device, []
    for part in tokens[:, -(length + 1) :].split(rows):
        part = part.to(device)
        hidden = model.hidden(part[:, :-1])[:, -scored:]  # (B, scored, C)
        nats, _ = target_nats(model, hidden.flatten(0, 1), part[:, -scored:].flatten())
        found.append(nats.view(len(part), scored).cpu())
    return torch.cat(found)


def by_length(model: Transformer, tokens: Tensor, lengths: Sequence[int], scored: int, rows: int
              ) -> tuple[dict[int, float], list[tuple[int, float]]]:  # fmt: skip
    """Length (rising) → mean nats of the same last `scored` targets, and the `curve` of the longest length."""
    loss = {n: float(losses(model, tokens, n, scored, rows).double().mean()) for n in lengths[:-1]}
    whole = losses(model, tokens, lengths[-1], lengths[-1], rows)
    loss[lengths[-1]] = float(whole[:, -scored:].double().mean())
    return loss, curve(whole)


def curve(nats: Tensor, points: int = 32) -> list[tuple[int, float]]:
    """Losses (N, T) → (last position of a stretch, mean loss in it), `points` stretches."""
    edges = np.unique(np.linspace(0, nats.shape[1], points + 1).astype(int))
    return [(int(stop), float(nats[:, start:stop].mean())) for start, stop in pairwise(edges.tolist())]


class Found(NamedTuple):
    """One question for the passkey: every token right when greedy, and the key's mean nats a token."""

    depth: float
    right: bool
    nats: float


def passkey(model: Transformer, tokenizer: Tokenizer, haystacks: Tensor, length: int, depths: int,
            seed: int = 0) -> list[Found]:  # fmt: skip
    """Hide a number of five digits at each depth of each haystack (N, ≥ length), and ask for it at the end.

    Raises:
        InputError: a length too short for needle and question.
    """
    draw, asked = np.random.default_rng(seed), tokenizer.encode(QUESTION)
    pairs, places = [], []
    for row in haystacks.tolist():
        for depth in np.linspace(0, 1, depths).tolist():
            key = str(draw.integers(10_000, 100_000))
            needle, answer = tokenizer.encode(NEEDLE.format(key=key)), tokenizer.encode(key)
            room = length - len(needle) - len(asked) - len(answer)
            if room < 1:
                raise InputError(f"lengths: {length} tokens have no room for the passkey's question; start at "
                                 f"{length - room + 1} or give depths=0")  # fmt: skip
            cut = round(depth * room)
            pairs.append(Pair([*row[:cut], *needle, *row[cut:room], *asked], answer))
            places.append(depth)
    found = zip(places, score(model, pairs, vocab_size=tokenizer.vocab_size), strict=True)
    return [Found(depth, one.greedy, -one.loglikelihood / one.tokens) for depth, one in found]


@torch.inference_mode()
def streaming(model: Transformer, tokens: Tensor, places: int, sinks: int) -> Tensor:
    """Nats of every target of (B, N + 1) tokens, read one by one through a cache of `places`; (B, N) float32."""
    weight = model.embed_tokens.weight
    cache = KVCache(model.config, len(tokens), places, weight.device, weight.dtype, sinks=sinks, slides=True)
    tokens, found = tokens.to(weight.device), []
    for place in range(tokens.shape[1] - 1):
        hidden = model.hidden(tokens[:, place : place + 1], cache=cache)[:, 0]
        found.append(target_nats(model, hidden, tokens[:, place + 1])[0])
    return torch.stack(found, 1).cpu()
