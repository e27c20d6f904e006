"""Distillation: a model learns another's soft predictions and hidden states (OneBit, arXiv 2402.11295, section 3.3), on
stored texts or, with rollouts, on its own answers (GKD, arXiv 2306.13649).

Not here: who is taught (tuning.py), where answers come from (rl/rollouts.py), where the teacher lies
(commands/teacher.py), the next token alone (objectives.py).
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
    """A divergence from the teacher's probabilities + α · Σ over blocks of ‖t/‖t‖ − s/‖s‖‖², at every counted token.

    t and s are what the same block of teacher and student puts out. Both models' logits are divided by τ, and the
    divergence is multiplied by τ² (arXiv 1503.02531). forward: −Σ p log q, KL(p ‖ q) but for a constant; reverse:
    KL(q ‖ p); jsd: β·KL(p ‖ m) + (1 − β)·KL(q ‖ m), m = βp + (1 − β)q; p the teacher's, q the student's.
    """

    kind: Literal["distil"] = "distil"
    alpha: float = Field(
        default=1.0,
        ge=0,
        description="weight of the layers' part of the loss; with 0 the teacher may have another width or depth",
    )
    divergence: Literal["forward", "reverse", "jsd"] = Field(
        default="forward",
        description="forward: what the teacher finds likely; reverse: only what the teacher finds likely; jsd: between",
    )
    temperature: float = Field(default=1.0, gt=0, description="τ, above 1 shows more of what is unlikely")
    mixture: float = Field(default=0.5, gt=0, lt=1, description="β of jsd, the teacher's share of the middle")
    teacher: Path | None = Field(
        default=None, description="a run or folder with the same tokenizer; default: the model of init"
    )

    @property
    def compiles(self) -> bool:
        """What blocks put out, a compiled forward pass hides."""
        return not self.alpha

    def check(self, new: bool, compiled: bool | None) -> None:
        """Raise InputError for a new model without a teacher, and for a compiled one whose layers are compared."""
        if new and self.teacher is None:
            raise InputError("objective.teacher: a new model needs a teacher: give a run or a folder")
        if compiled and not self.compiles:
            raise InputError("compile: objective.kind=distil reads what each block puts out, which compiling hides; "
                             "leave compile out, or use objective.alpha=0")  # fmt: skip

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
    recorded: ClassVar[bool] = False
    recipe: Distil
    teacher: Transformer

    @property
    def steady(self) -> bool:
        """Unless the teacher asks the host, as one with experts or a RoPE that changes with the length may."""
        return self.recipe.compiles and self.teacher.rope.static and self.teacher.config.moe is None

    def __call__(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        kept, layers = batch.targets.flatten() != IGNORE, bool(self.recipe.alpha)  # (N,)
        with torch.no_grad():
            self.teacher.to(batch.tokens.device, model.embed_tokens.weight.dtype)
            known, states = observed(self.teacher, batch, layers)
        hidden, own = observed(model, batch, layers)
        soft = soft_loss(self.recipe, hidden.flatten(0, 1), model.lm_head.weight, known.flatten(0, 1),
                         self.teacher.lm_head.weight, kept)  # fmt: skip
        zero = torch.zeros((), device=kept.device)
        apart = sum((difference(*pair, kept) for pair in zip(own, states, strict=True)), zero)
        loss = soft + self.recipe.alpha * apart
        return loss, {"soft": soft.detach(), "apart": apart.detach()}

    def weight(self, batch: Batch) -> float:
        """Its targets."""
        return batch.weight


def observed(model: Transformer, batch: Batch, layers: bool) -> tuple[Tensor, list[Tensor]]:
    """The normed hidden states (B, T, C) and, with `layers`, what each block puts out (B, T, C)."""
    if not layers:
        return model.hidden(batch.tokens, batch.positions, batch.segments), []
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


def soft_loss(recipe: Distil, hidden: Tensor, weight: Tensor, known: Tensor, teacher: Tensor, kept: Tensor) -> Tensor:
    """Σ over kept tokens of the recipe's divergence; float32.

    Args:
        hidden: (N, C) the student's.  weight: (V, C) its head.
        known: (N, C') the teacher's.  teacher: (V, C') its head. Neither gets a gradient.
        kept: (N,) bool.
    """
    vocab, teacher, tau = weight.shape[0], aligned(teacher), recipe.temperature

    def slope(logits: Tensor, rows: slice) -> Tensor:
        log_p = (known[rows] @ teacher.T)[:, :vocab].float().div(tau).log_softmax(-1)
        log_q = logits[:, :vocab].float().div(tau).log_softmax(-1)
        loss, by = divergence(recipe, log_p, log_q)
        logits[:, :vocab], logits[:, vocab:] = by.mul_(kept[rows, None]).mul_(tau), 0
        return (loss * kept[rows]).sum() * tau**2

    return head_loss(hidden, weight, slope, CHUNK_ROWS)


def divergence(recipe: Distil, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row (N, V) its divergence (N,), and the gradient of that with respect to the logits of q (N, V)."""
    q = log_q.exp()
    if recipe.divergence == "forward":
        p = log_p.exp()
        return -(p * log_q).sum(-1), q - p
    if recipe.divergence == "reverse":
        away = log_q - log_p
        loss = (q * away).sum(-1)
        return loss, q * (away - loss[:, None])
    p, beta = log_p.exp(), recipe.mixture
    log_m = (beta * p + (1 - beta) * q).clamp(min=torch.finfo(torch.float32).tiny).log()
    towards = (1 - beta) * (log_q - log_m)
    mine = (q * towards).sum(-1)
    return beta * (p * (log_p - log_m)).sum(-1) + mine, q * (towards - mine[:, None])
