"""Logits → the next token: greedy or sampled, each row by its own rules.

Order and meaning are those of transformers' logits processors: repetition penalty, temperature, top-k, top-p, min-p;
presence and frequency penalty and bias are OpenAI's and come before the temperature. One uniform number decides each
token (inverse of the cumulative distribution), and `numbers` makes them for a row from its seed alone: no
row's tokens depend on the other rows of a batch, the device or the length asked for.
Not here: what may be asked for (sampling.py), when to stop, which vocabulary rows exist (engine.py), where the rules of
running requests lie (rows.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from babyllama.hardware import finest


def _signed(value: int) -> int:
    """The lowest 64 bits as an int64."""
    return (value + 2**63) % 2**64 - 2**63


GOLDEN = _signed(0x9E3779B97F4A7C15)  # 2⁶⁴ / the golden ratio: how far apart a stream's numbers begin
MIXING = (30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)), (31, 1)  # shifts and factors
NOT_FINITE = -1  # the token of a row whose logits hold NaN or infinity, or that may have no token at all


@dataclass(frozen=True)
class Uses:
    """What any row of a batch asks for: the rest is not computed. top_k: the largest, rounded up to a power of two."""

    drawn: bool = False
    top_k: int = 0
    top_p: bool = False
    min_p: bool = False
    penalties: bool = False
    bias: bool = False
    mask: bool = False
    logprobs: int | None = None


def choose(logits: Tensor, rules: Tensor, draws: Tensor, uses: Uses, **state: Tensor | None) -> Tensor:
    """The next token of every row, (B,) int64; NOT_FINITE where there is none. Nothing waits for a GPU.

    Args:
        logits, rules, uses, state: as for `scores`.
        draws: (B,) uniform on [0, 1), in the type that they are looked up in; greedy rows do not look at theirs.
    """
    found = scores(logits, rules, uses, **state)
    tokens, likeliest = _argmax(found), found.amax(-1)
    if uses.drawn:
        cumulative = found.to(draws.dtype).exp().cumsum(-1)  # not normalised
        drawn = torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True)[:, 0]
        tokens = torch.where(rules[:, 0] > 0, drawn, tokens)
    return tokens.where(likeliest == 0, NOT_FINITE)  # NaN where the logits hold NaN or infinity


def _argmax(scores: Tensor) -> Tensor:
    """Of every row. On a CPU by numpy, which takes 6 µs for 64,793 scores where PyTorch takes 130."""
    if scores.device.type != "cpu":
        return scores.argmax(-1)
    return torch.from_numpy(scores.detach().numpy().argmax(-1))


def scores(logits: Tensor, rules: Tensor, uses: Uses, seen: Tensor | None = None, counts: Tensor | None = None,
           bias: Tensor | None = None, allowed: Tensor | None = None) -> Tensor:  # fmt: skip
    """(B, V) float32 log-probabilities up to a constant of each row (0 for the likeliest), −∞ where cut off.

    Every cut is a floor under the scores, so tokens of equal score stay or go together and no result hangs on
    how a sort orders equals (bf16 logits are often equal). Rows that do not ask for a cut have a floor of −∞.

    Args:
        rules: (B or 1, 7): temperature, top_k, top_p, log(min_p), repetition, presence and frequency penalty.
        seen: (B, V) bool, tokens that the repetition penalty shuns beside those in `counts`.
        counts: (B, V) float32, how often each token came in the answer.
        bias: (B, V) float32.
        allowed: (B, V) bool.
    """
    rules = rules.expand(len(logits), -1).unsqueeze(-1)
    temperature, top_k, top_p, floor, repetition, presence, frequency = rules.unbind(1)  # (B, 1) each
    found = logits.float()
    if uses.penalties:
        shunned = seen if counts is None else counts > 0 if seen is None else seen | (counts > 0)
        if shunned is not None:
            penalised = torch.where(found > 0, found / repetition, found * repetition)
            found = torch.where(shunned, penalised, found)
        if counts is not None:
            found = found - frequency * counts - presence * (counts > 0)
    if uses.bias and bias is not None:
        found = found + bias
    if uses.mask and allowed is not None:
        found = found.masked_fill(~allowed, -math.inf)
    found = found - found.amax(-1, keepdim=True)
    if not uses.drawn:
        return found
    found = found / temperature.where(temperature > 0, 1)
    if uses.top_k:
        best = found.topk(min(uses.top_k, found.shape[-1])).values
        last = best.gather(-1, (top_k.long() - 1).clamp(0, best.shape[-1] - 1))
        found = found.masked_fill((found < last) & (top_k > 0), -math.inf)
    if uses.top_p:
        found = found.masked_fill((found < _nucleus_floor(found, top_p)) & (top_p < 1), -math.inf)
    if uses.min_p:
        found = found.masked_fill(found < floor, -math.inf)
    return found


def _nucleus_floor(scores: Tensor, top_p: Tensor) -> Tensor:
    """(B, 1): the score of the last token that is needed to reach top_p (arXiv 1904.09751).

    A token is kept when those likelier than it have not reached top_p. The 1,024 likeliest nearly always do; sorting
    a whole vocabulary of ChatGLM2's size takes many times as long as finding them. A GPU cannot be asked whether they
    do without waiting for it: there the floor is searched for.
    """
    total = scores.logsumexp(-1, keepdim=True)
    if scores.is_cuda:
        return _searched_floor(scores, (scores - total).exp(), top_p)
    best = scores.topk(min(1024, scores.shape[-1])).values
    if (((best.logsumexp(-1, keepdim=True) - total).exp() < top_p) & (top_p < 1)).any():
        best = scores.sort(-1, descending=True).values
    probabilities = (best - total).exp()
    before = probabilities.cumsum(-1) - probabilities
    kept = (before < top_p).sum(-1, keepdim=True).clamp(min=1)
    return best.gather(-1, kept - 1)


def _searched_floor(scores: Tensor, probabilities: Tensor, top_p: Tensor) -> Tensor:
    """The same by halving, 31 times: −score's bits, as a whole number, order the scores."""
    bits = (-scores).abs().view(torch.int32)  # abs: −0 would be a negative number
    low, high = torch.zeros_like(top_p, dtype=torch.int32), torch.full_like(top_p, 0x7F80_0001, dtype=torch.int32)
    for _ in range(31):  # whoever has `low` is kept, `high` is not
        middle = low + (high - low) // 2
        kept = torch.where(bits < middle, probabilities, 0).sum(-1, keepdim=True) < top_p
        low, high = torch.where(kept, middle, low), torch.where(kept, high, middle)
    return -low.view(torch.float32)


def uniforms(seed: int, count: int, start: int = 0) -> Tensor:
    """`count` numbers of a seed's stream from number `start` on, (count,) float64 in [0, 1 − 2⁻³²]; on the CPU."""
    return numbers(torch.tensor(begin(seed)), start + torch.arange(count))


def begin(seed: int) -> int:
    """Where a seed's stream begins, an int64. By Python: for one number PyTorch takes thirty times as long."""
    value = (seed + GOLDEN) % 2**64
    for shift, factor in MIXING:
        value = (value ^ value >> shift) * factor % 2**64
    return _signed(value)


def numbers(begins: Tensor, places: Tensor) -> Tensor:
    """Of streams that begin so the numbers `places`, both int64, in the finest type of their device.

    SplitMix64 (Steele, Lea and Flood 2014), which counts: number i of a stream is the mixture of its own beginning and
    i, so that a longer stream starts with the shorter one's numbers. int64 overflows as uint64 does.
    """
    dtype = finest(places.device)
    below_one = 1 - torch.finfo(dtype).eps / 2  # to which float32 would round the largest
    return (_shifted(_mixed(begins + (places + 1) * GOLDEN), 32).to(dtype) / 2**32).clamp(max=below_one)


def _mixed(values: Tensor) -> Tensor:
    """SplitMix64's last step: every bit of a whole number changes about half of the result's."""
    for shift, factor in MIXING:
        values = (values ^ _shifted(values, shift)) * factor
    return values


def _shifted(values: Tensor, by: int) -> Tensor:
    """To the right, zeros following."""
    return (values >> by) & ((1 << (64 - by)) - 1)
