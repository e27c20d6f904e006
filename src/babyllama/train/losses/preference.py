"""Preferences: objectives that make the better of two answers likelier than the other.

One step's loss is the mean over its pairs. Notation: ℓ_w, ℓ_l are the sums of log-probabilities of the better and the
other answer, δ = (ℓ_w − ℓ_ref,w) − (ℓ_l − ℓ_ref,l), σ the logistic function. Not here: the sums (answers.py), the
reference's (train/reference.py), answers without a partner (kto.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from babyllama.data.sources.documents import Kind
from babyllama.data.streams.batches import Batch
from babyllama.model.transformer import Transformer
from babyllama.recipe import Recipe
from babyllama.train.losses.answers import Answers, pairs


class Preference(Recipe):
    """What all of them share.

    Logged a pair: `margin`, the difference of the two answers that the loss looks at; `accuracy`, whether it is above
    0; `chosen` and `rejected`, ℓ_w and ℓ_l; with a reference `kl`, the mean of ℓ_ref − ℓ over both answers:
    KL(reference ‖ model) of an answer, as far as the reference could have written these.
    """

    plain: ClassVar[bool] = False
    recorded: ClassVar[bool] = False
    compiles: ClassVar[bool] = True
    reads: ClassVar[frozenset[Kind]] = frozenset({"preference"})
    compares: ClassVar[bool] = False  # with a reference

    @property
    def steady(self) -> bool:
        """Which places are answers, the host is asked."""
        return False

    def losses(self, found: Answers) -> tuple[Tensor, Tensor]:
        """(P,) each: loss and margin of pairs (P, 2)."""
        raise NotImplementedError

    def __call__(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        found = pairs(model, batch)
        losses, margin = self.losses(found)
        with torch.no_grad():
            seen = {"margin": margin.sum(), "accuracy": (margin > 0).float().sum(),
                    "chosen": found.log_p[:, 0].sum(), "rejected": found.log_p[:, 1].sum()}  # fmt: skip
            if found.reference is not None:
                seen["kl"] = -found.ratio.mean(1).sum()
        return losses.sum(), {name: value.detach() for name, value in seen.items()}

    def weight(self, batch: Batch) -> float:
        """Its pairs."""
        return int((batch.extras["label"] == 1).sum())


class Compared(Preference):
    """With a reference, which holds the model near to where it starts."""

    compares: ClassVar[bool] = True
    reference: Path | None = Field(
        default=None, description="a run or folder with the same tokenizer; default: the model of init"
    )


class Dpo(Compared):
    """−log σ(βδ) (arXiv 2305.18290), with the means against labels that are wrong now and then, and a term that keeps
    the better answer likely."""

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0, description="the smaller, the farther from the reference it may go")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="ε, the share of pairs that are the wrong way round (conservative DPO)"
    )
    robust: bool = Field(default=False, description="take ε's part out of the loss instead (arXiv 2403.00409)")
    nll: float = Field(
        default=0.0, ge=0, description="α: add α × the better answer's −log p a token (RPO, arXiv 2404.19733)"
    )
    length_normalised: bool = Field(
        default=False, description="compare means a token instead of sums (Tülu 3, arXiv 2411.15124), which length "
        "does not sway; beta is larger then, 5 in the paper"
    )  # fmt: skip

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        if self.robust and not self.label_smoothing:
            raise ValueError("objective.robust: needs the share of wrong labels, objective.label_smoothing above 0")
        return self

    def losses(self, found: Answers) -> tuple[Tensor, Tensor]:
        ratio, wrong = found.ratio, self.label_smoothing
        if self.length_normalised:
            ratio = ratio / found.tokens
        margin = self.beta * (ratio[:, 0] - ratio[:, 1])
        right, other = -logsigmoid(margin), -logsigmoid(-margin)
        if self.robust:
            loss = ((1 - wrong) * right - wrong * other) / (1 - 2 * wrong)
        else:
            loss = (1 - wrong) * right + wrong * other
        return loss - self.nll * found.mean[:, 0], margin


class Ipo(Compared):
    """(δ̄ − 1/(2τ))², δ̄ of means a token (arXiv 2310.12036): no reward for a margin beyond 1/(2τ)."""

    kind: Literal["ipo"] = "ipo"
    tau: float = Field(default=0.1, gt=0, description="the larger, the nearer to the reference it stays")

    def losses(self, found: Answers) -> tuple[Tensor, Tensor]:
        ratio = found.ratio / found.tokens
        margin = ratio[:, 0] - ratio[:, 1]
        return (margin - 1 / (2 * self.tau)).square(), margin


class Hinge(Compared):
    """max(0, 1 − βδ), SLiC's loss on DPO's margin (arXiv 2305.10425)."""

    kind: Literal["hinge"] = "hinge"
    beta: float = Field(default=0.1, gt=0, description="the smaller, the farther from the reference it may go")

    def losses(self, found: Answers) -> tuple[Tensor, Tensor]:
        ratio = found.ratio
        margin = self.beta * (ratio[:, 0] - ratio[:, 1])
        return relu(1 - margin), margin


class SimPo(Preference):
    """−log σ(β·(ℓ_w/|y_w| − ℓ_l/|y_l|) − γ) (arXiv 2405.14734): no reference, and no gain by mere length."""

    kind: Literal["simpo"] = "simpo"
    beta: float = Field(default=2.0, gt=0, description="the larger, the sharper a difference counts")
    gamma: float = Field(default=1.0, ge=0, description="the margin to reach; the paper takes 0.3 to 0.5 × beta")

    def losses(self, found: Answers) -> tuple[Tensor, Tensor]:
        margin = self.beta * (found.mean[:, 0] - found.mean[:, 1])
        return -logsigmoid(margin - self.gamma), margin


class Orpo(Preference):
    """−ℓ_w/|y_w| + λ·(−log σ(log odds_w − log odds_l)) (arXiv 2403.07691): SFT and preference in one, no reference.

    odds = p/(1 − p), log p the answer's mean a token.
    """

    kind: Literal["orpo"] = "orpo"
    odds: float = Field(default=0.1, gt=0, description="λ, the weight of the term of preference")

    def losses(self, found: Answers) -> tuple[Tensor, Tensor]:
        mean = found.mean.clamp(max=-1e-6)  # 1 − p would be 0
        log_odds = mean - torch.log(-torch.expm1(mean))
        margin = log_odds[:, 0] - log_odds[:, 1]
        return -found.mean[:, 0] - self.odds * logsigmoid(margin), margin
