"""KTO: learning from answers that people found good or bad, each by itself; and the union of all preference objectives.

Not here: pairs (preference.py), z (train/drift.py).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from babyllama.data.sources.documents import Kind
from babyllama.data.streams.batches import Batch
from babyllama.model.transformer import Transformer
from babyllama.train.losses.answers import answers
from babyllama.train.losses.preference import Compared, Dpo, Hinge, Ipo, Orpo, SimPo
from babyllama.train.losses.reward import RewardModel


class Kto(Compared):
    """λ_D·(1 − σ(r − z)) for good answers, λ_U·(1 − σ(z − r)) for bad ones, r = β(ℓ − ℓ_ref) (arXiv 2402.01306).

    z is what the step's answers beside the wrong prompt have gained over the reference; see train/drift.py. A pair
    counts as a good answer and a bad one. Logged an answer: `margin`, r of good and −r of bad ones; `accuracy`, whether
    r is on the right side of z; `kl`, z.
    """

    reads: ClassVar[frozenset[Kind]] = frozenset({"preference", "rated"})
    kind: Literal["kto"] = "kto"
    beta: float = Field(default=0.1, gt=0, description="the smaller, the farther from the reference it may go")
    desirable: float = Field(default=1.0, gt=0, description="λ_D, the weight of good answers")
    undesirable: float = Field(
        default=1.0, gt=0, description="λ_U, of bad ones; λ_D × their numbers should be within 1 to 4/3 of each other"
    )

    def __call__(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        found = answers(model, batch)
        z = batch.extras["drift"][batch.extras["label"] != 0]  # (N,)
        reward, sign = self.beta * found.ratio, found.label.float()
        weights = torch.where(found.label > 0, self.desirable, self.undesirable)
        losses = weights * (1 - torch.sigmoid(sign * (reward - z)))
        with torch.no_grad():
            seen = {"margin": (sign * reward).sum(), "accuracy": (sign * (reward - z) > 0).float().sum(), "kl": z.sum()}
        return losses.sum(), {name: value.detach() for name, value in seen.items()}

    def weight(self, batch: Batch) -> float:
        """Its answers."""
        return int((batch.extras["label"] != 0).sum())


Preferring = Annotated[Dpo | Ipo | Hinge | SimPo | Orpo | Kto | RewardModel, Field(discriminator="kind")]
