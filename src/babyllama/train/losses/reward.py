"""A reward model: pairs of answers teach a head of one number what an answer is worth (Bradley and Terry 1952).

Not here: that head (model/transformer.py), rewards that need no model and where this one is used (train/rl/rewards.py).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from babyllama.data.streams.batches import Batch
from babyllama.errors import InputError
from babyllama.model.transformer import Transformer
from babyllama.train.losses.answers import by_segment
from babyllama.train.losses.preference import Preference


class RewardModel(Preference):
    """−log σ(s_w − s_l) + c·(s_w + s_l)², s what the head says at an answer's last token.

    Logged a pair: `margin` s_w − s_l, `accuracy`, and the two scores, `chosen` and `rejected`.
    """

    kind: Literal["reward"] = "reward"
    centre: float = Field(
        default=0.01, ge=0, description="c, which holds scores around 0 (arXiv 2312.09244); 0: they may drift"
    )

    def __call__(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        found = pair_scores(model, batch)  # (P, 2)
        margin = found[:, 0] - found[:, 1]
        loss = -logsigmoid(margin) + self.centre * found.sum(1).square()
        seen = {"margin": margin.sum(), "accuracy": (margin > 0).float().sum(),
                "chosen": found[:, 0].sum(), "rejected": found[:, 1].sum()}  # fmt: skip
        return loss.sum(), {name: value.detach() for name, value in seen.items()}


def pair_scores(model: Transformer, batch: Batch) -> Tensor:
    """What a reward model finds the pairs of a batch worth: (P, 2) float32. Raises InputError where there are none."""
    label = batch.extras["label"]
    there = label != 0
    signs = label[there]
    if len(signs) % 2 or not ((signs[::2] == 1) & (signs[1::2] == -1)).all():
        raise InputError("data.path: its answers are no pairs")
    assert batch.segments is not None
    lasts = by_segment(torch.ones(batch.tokens.shape, device=label.device), batch.segments).long().cumsum(1) - 1
    hidden = model.hidden(batch.tokens, batch.positions, batch.segments)  # (B, T, C)
    rows = there.nonzero()[:, 0]
    return model.lm_head(hidden[rows, lasts[there]])[:, 0].float().view(-1, 2)


@torch.inference_mode()
def score(model: Transformer, texts: list[list[int]], chunk: int = 16) -> list[float]:
    """What a reward model finds each text worth, at its last token."""
    device, found = model.embed_tokens.weight.device, dict[int, float]()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for first in range(0, len(order), chunk):
        some = order[first : first + chunk]
        longest = len(texts[some[-1]])
        tokens = torch.tensor([texts[i] + [0] * (longest - len(texts[i])) for i in some], device=device)
        lengths = torch.tensor([len(texts[i]) for i in some], device=device)
        hidden = model.hidden(tokens, lengths=lengths)[torch.arange(len(some), device=device), lengths - 1]
        found |= zip(some, model.lm_head(hidden)[:, 0].float().tolist(), strict=True)
    return [found[i] for i in range(len(texts))]
