"""Distillation: a model learns another's soft predictions and hidden states (OneBit, arXiv 2402.11295, section 3.3).

Not here: who is taught (tuning.py), where the teacher lies (commands/train.py), the next token alone (objectives.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.errors import InputError
from babyllama.model.transformer import Transformer
from babyllama.recipe import Recipe
from babyllama.train.losses.head import aligned, head_loss

CHUNK_ROWS = 1024  # tokens whose logits, the student's and the teacher's, exist at a time


class Distil(Recipe):
    """Cross-entropy to the teacher's probabilities + α · Σ over blocks of ‖t/‖t‖ − s/‖s‖‖², at every counted token.

    t and s are what the same block of teacher and student puts out.
    """

    compiles: ClassVar[bool] = False
    kind: Literal["distil"] = "distil"
    alpha: float = Field(
        default=1.0,
        ge=0,
        description="weight of the layers' part of the loss; with 0 the teacher may have another width or depth",
    )
    teacher: Path | None = Field(
        default=None, description="a run or folder with the same tokenizer; default: the model of init"
    )

    def check(self, new: bool, compiled: bool | None) -> None:
        """Raise InputError for a new model without a teacher, and for a compiled one."""
        if new and self.teacher is None:
            raise InputError("objective.teacher: a new model needs a teacher: give a run or a folder")
        if compiled:
            raise InputError("compile: objective.kind=distil reads what each block puts out, which compiling hides; "
                             "leave compile out")  # fmt: skip

    def of(self, teacher: Transformer, student: Transformer) -> Taught:
        """The objective. `teacher` becomes its own, and is frozen.

        Raises:
            InputError: the two do not fit.
        """
        theirs, ours = teacher.config, student.config
        for key in ("vocab_size", *(("hidden_size", "num_hidden_layers") if self.alpha else ())):
            if getattr(theirs, key) != getattr(ours, key):
                remedy = "give another" if key == "vocab_size" else "give another, or objective.alpha=0"
                raise InputError(f"objective.teacher: its {key} is {getattr(theirs, key)}, the student's "
                                 f"{getattr(ours, key)}; {remedy}")  # fmt: skip
        return Taught(self, teacher.eval().requires_grad_(False))


@dataclass(frozen=True)
class Taught:
    """An objective; its metrics are the two parts of its loss: `soft`, and `apart` before α. Holds the teacher, which
    moves to the batch's device and the student's dtype."""

    plain: ClassVar[bool] = False
    recipe: Distil
    teacher: Transformer

    def __call__(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        kept = batch.targets.flatten() != IGNORE  # (N,)
        with torch.no_grad():
            self.teacher.to(batch.tokens.device, model.embed_tokens.weight.dtype)
            known, states = observed(self.teacher, batch)
        hidden, own = observed(model, batch)
        soft = soft_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, known.flatten(0, 1),
                                  self.teacher.lm_head.weight, kept)  # fmt: skip
        apart = torch.zeros((), device=kept.device)
        if self.recipe.alpha:
            apart = sum((difference(*pair, kept) for pair in zip(own, states, strict=True)), apart)
        loss = soft + self.recipe.alpha * apart
        return loss, {"soft": soft.detach(), "apart": apart.detach()}

    def weight(self, batch: Batch) -> float:
        """Its targets."""
        return batch.weight


def observed(model: Transformer, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """The normed hidden states (B, T, C) and what each block puts out (B, T, C)."""
    states: list[Tensor] = []
    through = model.through

    def noted(*arguments: object) -> Tensor:
        states.append(through(*arguments))  # type: ignore[arg-type]
        return states[-1]

    model.through = noted
    try:
        return model.hidden(batch.tokens, batch.positions, batch.segments), states
    finally:
        model.through = through


def difference(student: Tensor, teacher: Tensor, kept: Tensor) -> Tensor:
    """Σ over kept tokens of ‖t/‖t‖ − s/‖s‖‖²; states (B, T, C), kept (N,); float32."""
    s, t = (normalize(states.flatten(0, 1).float(), dim=-1) for states in (student, teacher))
    return ((t - s).square().sum(-1) * kept).sum()


def soft_cross_entropy(hidden: Tensor, weight: Tensor, known: Tensor, teacher: Tensor, kept: Tensor) -> Tensor:
    """Σ over kept tokens of −Σ_v p_v log q_v, p the teacher's softmax, q the student's; float32.

    Args:
        hidden: (N, C) the student's.  weight: (V, C) its head.
        known: (N, C') the teacher's.  teacher: (V, C') its head. Neither gets a gradient.
        kept: (N,) bool.
    """
    vocab, teacher = weight.shape[0], aligned(teacher)

    def slope(logits: Tensor, rows: slice) -> Tensor:
        p = (known[rows] @ teacher.T)[:, :vocab].softmax(-1, dtype=torch.float32)
        log_q = logits[:, :vocab].log_softmax(-1, dtype=torch.float32)
        loss = -((p * log_q).sum(-1) * kept[rows]).sum()
        logits[:, :vocab], logits[:, vocab:] = log_q.exp_().sub_(p).mul_(kept[rows, None]), 0
        return loss

    return head_loss(hidden, weight, slope, CHUNK_ROWS)
