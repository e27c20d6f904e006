"""What a model computes on its way from tokens to the next one, for people who want to look: expectations, attention,
the logit lens, what sampling does to a distribution, RoPE's frequencies, neighbours of an embedding.

Functions of a model and token ids, in float32, without a cache; one row. None changes the model: what is watched is
put back. One thread at a time. Not here: text, JSON (serve/inside.py).
Shapes: T tokens · V vocabulary without padded rows · L layers · H heads · C hidden_size · D head_dim · N top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from babyllama.errors import InputError
from babyllama.infer.sampling import Sampling
from babyllama.model.attention import Mask, attend_eager
from babyllama.model.cache import KVCache
from babyllama.model.laws import DynamicNtkRope, RopeConfig
from babyllama.model.rope import FREQUENCIES, DynamicNtk
from babyllama.model.transformer import Angles, Block, Transformer

ROWS = 64  # of logits at once: 64 rows of ChatGLM2's vocabulary are 17 MB


@dataclass(frozen=True)
class Expectations:
    """What was expected at every place of a text, before its token was seen. Place 0 has none: NaN, rank −1.

    Attributes:
        logprobs: (T,) nats, of the token that came.
        ranks: (T,) how many tokens were likelier.
        entropies: (T + 1,) nats, of the whole distribution.
        top, top_logprobs: (T + 1, N) the likeliest tokens; the last row is what may follow the text.
    """

    logprobs: Tensor
    ranks: Tensor
    entropies: Tensor
    top: Tensor
    top_logprobs: Tensor


@torch.inference_mode()
def expectations(model: Transformer, ids: Sequence[int], vocabulary: int, top: int = 10) -> Expectations:
    """How surprised the model is by each token. Raises InputError as `checked`."""
    tokens = checked(model, ids)
    hidden = model.hidden(tokens)[0]
    T, N = len(ids), min(top, vocabulary)
    logprobs, ranks = torch.full((T,), torch.nan), torch.full((T,), -1)
    entropies, likeliest, their = torch.full((T + 1,), torch.nan), torch.full((T + 1, N), -1), torch.zeros(T + 1, N)
    for first in range(0, T, ROWS):
        found = _logprobs(model, hidden[first : first + ROWS], vocabulary)  # (rows, V)
        after = slice(first + 1, first + 1 + len(found))
        entropies[after] = -(found.exp() * found).nansum(-1).cpu()
        best = found.topk(N)
        their[after], likeliest[after] = best.values.cpu(), best.indices.cpu()
        came = tokens[0, after]  # one fewer in the last rows
        own = found[: len(came)].gather(-1, came[:, None])
        logprobs[after] = own[:, 0].cpu()
        ranks[after] = (found[: len(came)] > own).sum(-1).cpu()
    return Expectations(logprobs, ranks, entropies, likeliest, their)


@torch.inference_mode()
def attention(model: Transformer, ids: Sequence[int], layer: int) -> Tensor:
    """(H, T, T): where each head of a layer looks, row t from token t at all up to it; a row's sum is 1.

    Raises:
        InputError: a layer that is not there; as `checked`.
    """
    tokens = checked(model, ids)
    if not 0 <= layer < len(model.layers):
        raise InputError(f"layer: {layer} is not there; the model has layers 0 … {len(model.layers) - 1}")
    module: Any = model.layers[layer].self_attn
    before, seen = module.attend, list[Tensor]()

    def watched(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        every = torch.eye(k.shape[2], device=k.device).expand(1, k.shape[1], -1, -1)
        seen.append(attend_eager(q.float(), k.float(), every, mask)[0])  # of unit vectors: the weights themselves
        return before(q, k, v, mask)

    try:
        module.attend = watched
        model.hidden(tokens)
    finally:
        module.attend = before
    return seen[0].cpu()


@dataclass(frozen=True)
class Lens:
    """What the model would say after each layer, were it the last: depth 0 is the embedding, depth L the model's own.

    Attributes:
        top, top_logprobs: (L + 1, T, N).
        came: (L + 1, T) log-probability of the token that follows in the text; NaN at its end.
    """

    top: Tensor
    top_logprobs: Tensor
    came: Tensor


@torch.inference_mode()
def logit_lens(model: Transformer, ids: Sequence[int], vocabulary: int, top: int = 5) -> Lens:
    """The norm and the head on what each block writes (nostalgebraist 2020). Raises InputError as `checked`."""
    tokens = checked(model, ids)
    with _states(model) as states:
        model.hidden(tokens)
    shape = len(states), len(ids), min(top, vocabulary)
    likeliest, their = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
    came = torch.full(shape[:2], torch.nan)
    for depth, state in enumerate(states):
        for first in range(0, len(ids), ROWS):
            rows = slice(first, first + ROWS)
            found = _logprobs(model, model.norm(state[0, rows]), vocabulary)
            best = found.topk(shape[2])
            likeliest[depth, rows], their[depth, rows] = best.indices.cpu(), best.values.cpu()
            following = tokens[0, first + 1 : first + 1 + len(found)]
            came[depth, first : first + len(following)] = (
                found[: len(following)].gather(-1, following[:, None])[:, 0].cpu()
            )
    return Lens(likeliest, their, came)


@torch.inference_mode()
def next_logits(model: Transformer, ids: Sequence[int], vocabulary: int) -> Tensor:
    """(V,) float32, of the token after the last. Raises InputError as `checked`."""
    return model.lm_head(model.hidden(checked(model, ids))[:, -1])[0, :vocabulary].float().cpu()


def reshaped(logits: Tensor, sampling: Sampling, seen: Sequence[int] = ()) -> Tensor:
    """(V,) → (V,) probabilities of each token being drawn by these rules; greedy: all on the likeliest.

    Args:
        seen: the tokens of prompt and answer so far, which a repetition penalty shuns.
    """
    before = torch.zeros(1, len(logits), dtype=torch.bool)
    before[0, [token for token in seen if token < len(logits)]] = True
    found = sampling.scores(logits[None], before)[0]
    if sampling.temperature == 0:
        return torch.nn.functional.one_hot(found.argmax(), len(found)).float()
    return found.softmax(-1)


def rope_frequencies(law: RopeConfig, head_dim: int, length: int) -> Tensor:
    """(D/2,) radians a token, at a text's length (only dynamic_ntk goes by it). CLEX's are learned: see `Clex.at`."""
    if isinstance(law, DynamicNtkRope):
        return DynamicNtk(law, head_dim).at(torch.tensor(length))
    return FREQUENCIES[law.kind](law, head_dim)


@torch.inference_mode()
def neighbours(weight: Tensor, token: int, count: int = 20) -> tuple[Tensor, Tensor]:
    """Rows of an embedding or a head (V, C) by their cosine with a token's row: ids and cosines, (count,), without it.

    Raises:
        InputError: a token that is no row.
    """
    if not 0 <= token < len(weight):
        raise InputError(f"token: {token} is not there; the vocabulary is 0 … {len(weight) - 1}")
    rows = weight.float()
    cosines = torch.nn.functional.cosine_similarity(rows, rows[token][None], dim=-1)
    cosines[token] = -torch.inf
    best = cosines.topk(min(count, len(weight) - 1))
    return best.indices.cpu(), best.values.cpu()


def checked(model: Transformer, ids: Sequence[int]) -> Tensor:
    """(1, T). Raises InputError for no tokens, more than the context, ids outside the vocabulary."""
    rows, context = model.config.vocab_size, model.config.max_position_embeddings
    if not 0 < len(ids) <= context:
        raise InputError(f"the text has {len(ids)} tokens; give 1 … {context}")
    if not 0 <= min(ids) <= max(ids) < rows:
        raise InputError(f"the text holds a token id outside 0 … {rows - 1}")
    return torch.tensor([list(ids)], device=model.embed_tokens.weight.device)


def _logprobs(model: Transformer, hidden: Tensor, vocabulary: int) -> Tensor:
    """(rows, C), normed → (rows, V)."""
    return model.lm_head(hidden)[:, :vocabulary].float().log_softmax(-1)


@contextmanager
def _states(model: Transformer) -> Iterator[list[Tensor]]:
    """Inside, a forward pass adds what goes into the first block, and what comes out of every one: (1, T, C) each."""
    before: Callable[..., Tensor] = model.through
    states: list[Tensor] = []

    def watched(block: Block, x: Tensor, angles: Angles, mask: Mask, cache: KVCache | None) -> Tensor:
        if not states:
            states.append(x)
        states.append(before(block, x, angles, mask, cache))
        return states[-1]

    try:
        model.through = watched
        yield states
    finally:
        model.through = before
