"""Optimisers and schedules as frozen values.

Not here: when to step (trainer.py), on whose gradients (engines.py), what is minimised (objectives.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import nn

from babyllama.hardware import bf16_is_faster
from babyllama.model.roles import Role, by_heads, role
from babyllama.model.wrappers import is_whole
from babyllama.recipe import Recipe
from babyllama.train.optimizers.galore import GaloreAdamW
from babyllama.train.optimizers.muon import StackedMuon

Named = Iterable[tuple[str, nn.Parameter]]  # of what is trained


class Cosine(Recipe):
    """Linear warm-up, then half a cosine down to `final` × lr."""

    kind: Literal["cosine"] = "cosine"
    warmup: float = Field(default=0.02, ge=0, lt=1, description="fraction of all steps")
    final: float = Field(default=0.1, ge=0, le=1, description="the rate at the end, as a share of the highest")

    def __call__(self, step: int, steps: int) -> float:
        """The multiplier of the learning rate at `step` (0 is the first) of `steps`."""
        rising, progress = _warm(step, steps, self.warmup)
        return rising * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress)))

    def branch(self, steps: int) -> int:
        """None: where it ends is felt from the first step on."""
        return 0

    def branches(self, step: int, steps: int) -> bool:
        """Never."""
        return False


class Wsd(Recipe):
    """Warm-up, stable, decay (arXiv 2404.06395): constant, then linear to `final` × lr over the last `decay` share."""

    kind: Literal["wsd"] = "wsd"
    warmup: float = Field(default=0.02, ge=0, lt=1, description="fraction of all steps")
    decay: float = Field(default=0.5, gt=0, le=1, description="fraction of all steps")
    final: float = Field(default=0.0, ge=0, le=1, description="the rate at the end, as a share of the highest")

    def __call__(self, step: int, steps: int) -> float:
        rising, _ = _warm(step, steps, self.warmup)
        falling = min(1.0, (steps - step) / (self.decay * steps))
        return rising * (self.final + (1 - self.final) * falling)

    def branch(self, steps: int) -> int:
        """After how many steps the decay begins; 0: with the first. Up to there the length is not felt."""
        return math.floor((1 - self.decay) * steps)

    def branches(self, step: int, steps: int) -> bool:
        """Whether a training that has taken `step` steps at the full rate may go on as one of `steps` steps."""
        return round(self.warmup * steps) <= step <= self.branch(steps)


def _warm(step: int, steps: int, share: float) -> tuple[float, float]:
    warmup = round(share * steps)
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rising, max(0.0, (step - warmup) / max(1, steps - warmup))


Schedule = Annotated[Cosine | Wsd, Field(discriminator="kind")]


@dataclass(frozen=True)
class AdamPart:
    """The part of an optimiser whose first step has a size that is known beforehand: Adam's, at most its rate.

    Attributes:
        matrices: whether the matrices inside the blocks belong to it.
    """

    lr: float
    eps: float
    matrices: bool = False

    def owns(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether Adam trains this parameter."""
        return self.matrices or not in_block(name, parameter)


class _Optimizer(Recipe):
    """What engines, adapters, runs and the doctor ask of an optimiser, instead of its name."""

    captured: ClassVar[bool] = True  # every step is the same work, so that a CUDA graph can hold it
    by_rows: ClassVar[bool] = True  # a matrix may lie on several ranks, each with some of its rows
    stacks: ClassVar[bool] = True  # a parameter may be many matrices, as experts' are
    by_numbers: ClassVar[bool] = False  # any cut of any parameter will do: ZeRO's flat parts, an adapter's factors

    def build(self, named: Named, ranks: int = 1, head_dim: int | None = None) -> list[torch.optim.Optimizer]:
        """Those that step these parameters.

        Args:
            ranks: processes that hold the same parameters, and may share the work out.
            head_dim: rows of a query, key or value projection that belong to one head; None: of no matter.
        """
        raise NotImplementedError

    @property
    def adam(self) -> AdamPart:
        """What of it is Adam."""
        raise NotImplementedError

    @property
    def beside_factors(self) -> float | None:
        """Its own rate for whole modules that learn beside an adapter's factors."""
        return None

    @property
    def chosen(self) -> dict[str, str]:
        """Field → what a machine may choose by a stopwatch, as it stands; a run notes it and keeps to it."""
        return {}

    def settled(self, device: torch.device, chosen: Mapping[str, str] | None = None) -> Self:
        """The same with every ``auto`` replaced: by what was `chosen` before, else by what suits the device."""
        return self

    def usual(self) -> Self:
        """The same at its default rates, without weight decay."""
        fields = type(self).model_fields
        rates: dict[str, Any] = {name: fields[name].default for name in fields if name.endswith("lr")}
        return self.model_copy(update=rates | ({"weight_decay": 0.0} if "weight_decay" in fields else {}))


class AdamW(_Optimizer):
    """AdamW (arXiv 1711.05101); weight decay on matrices only, not on norms."""

    by_numbers: ClassVar[bool] = True
    kind: Literal["adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0, description="the learning rate at its highest")
    whole_lr: float | None = Field(
        default=None, gt=0, description="learning rate of the modules in adapter.train; default: lr"
    )
    betas: tuple[float, float] = Field(
        default=(0.9, 0.95), description="decays of the means of gradients and of their squares"
    )
    eps: float = Field(default=1e-8, gt=0, description="added to the root of the mean square")
    weight_decay: float = Field(default=0.1, ge=0, description="share of a weight taken off a step, times the rate")

    @property
    def adam(self) -> AdamPart:
        return AdamPart(self.lr, self.eps, matrices=True)

    @property
    def beside_factors(self) -> float | None:
        return self.whole_lr

    def build(self, named: Named, ranks: int = 1, head_dim: int | None = None) -> list[torch.optim.Optimizer]:
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in named:
            groups.setdefault((is_whole(name), parameter.ndim >= 2), []).append(parameter)
        return [_adamw([
            {"params": groups[whole, matrix], "lr": self.whole_lr if whole and self.whole_lr else self.lr,
             "weight_decay": self.weight_decay if matrix else 0.0}
            for whole, matrix in sorted(groups, key=lambda kind: (kind[0], not kind[1]))
        ], self.lr, self.betas, self.eps)]  # fmt: skip


class Muon(_Optimizer):
    """Muon for the matrices inside the blocks, AdamW for embedding, head and norms.

    Muon (K. Jordan 2024) steps along the orthogonalised momentum: all directions of a matrix learn at one speed; with
    `beta2` all rows too (NorMuon, arXiv 2510.05491). An attention's heads are so many matrices, one below the other.
    """

    kind: Literal["muon"] = "muon"
    lr: float = Field(default=0.02, gt=0, description="learning rate of the matrices at its highest")
    momentum: float = Field(default=0.95, ge=0, lt=1, description="decay of the mean of gradients")
    beta2: float | None = Field(
        default=0.95, ge=0, lt=1, description="decay of the mean square of each row (NorMuon); null: plain Muon"
    )
    by_head: bool = Field(
        default=True, description="each head's queries, keys and values are a matrix; false: those of all heads are one"
    )
    rounding: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="of the products that orthogonalise; auto: bf16, but fp32 on a CPU that emulates it"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="share of a weight taken off a step, times the rate")
    adam_lr: float = Field(default=3e-3, gt=0, description="learning rate of that AdamW")
    adam_betas: tuple[float, float] = Field(
        default=(0.9, 0.95), description="betas of AdamW, which moves embedding, head and norms"
    )
    adam_eps: float = Field(default=1e-8, gt=0, description="eps of that AdamW")

    def build(self, named: Named, ranks: int = 1, head_dim: int | None = None) -> list[torch.optim.Optimizer]:
        named = list(named)
        matrices, others = _inside_and_out(named)
        device = matrices[0].device if matrices else torch.device("cpu")
        dtype = torch.float32 if self.settled(device).rounding == "fp32" else torch.bfloat16
        heads = {p for name, p in named if self.by_head and head_dim and in_block(name, p) and by_heads(name)}
        groups = [{"params": [p for p in matrices if (p in heads) == cut], "rows": head_dim if cut else None}
                  for cut in (False, True)]  # fmt: skip
        muon = StackedMuon([group for group in groups if group["params"]], self.lr, self.momentum, self.weight_decay,
                           self.beta2, dtype, ranks)  # fmt: skip
        return [muon, _adamw([{"params": others, "weight_decay": 0.0}], self.adam_lr, self.adam_betas, self.adam_eps)]

    @property
    def adam(self) -> AdamPart:
        return AdamPart(self.adam_lr, self.adam_eps)

    @property
    def chosen(self) -> dict[str, str]:
        return {"rounding": self.rounding}

    def settled(self, device: torch.device, chosen: Mapping[str, str] | None = None) -> Self:
        """As of every optimiser; on a CPU a stopwatch chooses."""
        if self.rounding != "auto":
            return self
        rounding = (chosen or {}).get("rounding")
        if rounding is None:
            rounding = "bf16" if device.type != "cpu" or bf16_is_faster(device) else "fp32"
        return self.model_copy(update={"rounding": rounding})


class GaLore(_Optimizer):
    """AdamW in the gradient's leading directions for the matrices inside the blocks, AdamW for all else.

    Its moments take rank / (shorter side) of AdamW's memory, plus the directions themselves. Matrices move at
    lr × scale.
    """

    captured: ClassVar[bool] = False  # every `refresh` steps it looks for its directions
    by_rows: ClassVar[bool] = False
    stacks: ClassVar[bool] = False
    kind: Literal["galore"] = "galore"
    lr: float = Field(default=1e-3, gt=0, description="the learning rate at its highest")
    rank: int = Field(default=128, ge=1, description="matrices no wider than this get plain AdamW at lr × scale")
    refresh: int = Field(default=200, ge=1, description="steps between singular value decompositions")
    scale: float = Field(default=0.25, gt=0, description="of the step in the leading directions")
    betas: tuple[float, float] = Field(
        default=(0.9, 0.95), description="decays of the means of gradients and of their squares"
    )
    eps: float = Field(default=1e-8, gt=0, description="added to the root of the mean square")
    weight_decay: float = Field(default=0.0, ge=0, description="share of a weight taken off a step, times the rate")

    @property
    def adam(self) -> AdamPart:
        return AdamPart(self.lr, self.eps)

    def build(self, named: Named, ranks: int = 1, head_dim: int | None = None) -> list[torch.optim.Optimizer]:
        matrices, others = _inside_and_out(named)
        galore = GaloreAdamW(matrices, self.lr, self.betas, self.eps, self.weight_decay, self.rank, self.refresh,
                             self.scale)  # fmt: skip
        return [galore, _adamw([{"params": others, "weight_decay": 0.0}], self.lr, self.betas, self.eps)]


def in_block(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is a matrix inside a block, which Muon takes."""
    return role(name, parameter) is Role.MATRIX


def _inside_and_out(named: Named) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices inside the blocks, and all else."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        (matrices if in_block(name, parameter) else others).append(parameter)
    return matrices, others


def _adamw(groups: list[dict], lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


Optimizer = Annotated[AdamW | Muon | GaLore, Field(discriminator="kind")]
