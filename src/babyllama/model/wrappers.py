"""The modules of an adapter: factors around a linear-like module, and a whole module beside another.

A wrapper is linear-like itself. Shapes: R rank. Not here: what is wrapped, switched and merged (lora.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import dropout, linear

from babyllama.model.surgery import dense_weight


class LoraLinear(nn.Module):
    """base(x) + s·B·A·x. `on` False: base(x)."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0, name: str = "default") -> None:
        super().__init__()
        self.base, self.rank, self.scale, self.dropout, self.name, self.on = base, rank, scale, dropout, name, True
        self.out_features, self.in_features = dense_weight(base).shape
        device = dense_weight(base).device
        self.lora_A = nn.Parameter(torch.zeros(rank, self.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=device))

    def initialise(self, generator: torch.Generator) -> None:
        """A Kaiming-uniform with a = √5, which is ±1/√in; B stays zero. Drawn on the CPU."""
        with torch.no_grad():
            drawn = torch.rand(self.lora_A.shape, generator=generator)
            self.lora_A.copy_((2 * drawn - 1) / math.sqrt(self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self._low(x) if self.on else self.base(x)

    def _low(self, x: Tensor) -> Tensor:
        down, up = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        return linear(linear(dropout(x, self.dropout, self.training), down), up) * self.scale

    def dense_weight(self) -> Tensor:
        """(out, in), float32 when the adapter is on, else the base's own."""
        if not self.on:
            return dense_weight(self.base)
        return dense_weight(self.base).float() + self.scale * (self.lora_B.float() @ self.lora_A.float())


class DoraLinear(LoraLinear):
    """(m / ‖W + s·B·A‖) ⊙ (base(x) + s·B·A·x). The norm is of each output row, in float32, without gradient."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0, name: str = "default") -> None:
        super().__init__(base, rank, scale, dropout, name)
        # Of the weights as they are now: attach after loading.
        self.magnitude = nn.Parameter(self._norm())

    def _norm(self) -> Tensor:
        """(out,) float32: the rows' lengths now."""
        with torch.no_grad():
            return torch.linalg.vector_norm(super().dense_weight().float(), dim=1)

    def _gain(self, norm: Tensor) -> Tensor:
        # The norm is rounded as the magnitude is, so that they cancel at the start in half precision too. A row of
        # zeros has no direction: it stays zero.
        norm = norm.to(self.magnitude.dtype)
        return self.magnitude / torch.where(norm == 0, 1.0, norm)

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return self.base(x)
        return self._gain(self._norm()).to(x.dtype) * (self.base(x) + self._low(x))

    def dense_weight(self) -> Tensor:
        turned = super().dense_weight()
        return self._gain(self._norm()).float()[:, None] * turned if self.on else turned


class Trained(nn.Module):
    """A module that an adapter trains whole: `own` stands in for `base` while it is on, and computes in its dtype.

    `weight` is the one in use.
    """

    def __init__(self, base: nn.Module, own: nn.Module, name: str = "default") -> None:
        super().__init__()
        self.base, self.own, self.name, self.on = base, own, name, True

    @property
    def weight(self) -> Tensor:
        base: Tensor = self.base.weight  # type: ignore[assignment]
        own: Tensor = self.own.weight  # type: ignore[assignment]
        return base if not self.on else own if own.dtype == base.dtype else own.to(base.dtype)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if not self.on or weight is self.own.weight:
            return (self.own if self.on else self.base)(x)
        return functional_call(self.own, {"weight": weight}, (x,))


def is_whole(name: str) -> bool:
    """Whether a parameter is one of a module that an adapter trains whole."""
    return name.endswith(".own.weight")


Adapted = (LoraLinear, Trained)


def in_use(module: nn.Module) -> nn.Module:
    """What computes under wrappers of whole modules, as they are on or off."""
    while isinstance(module, Trained):
        module = module.own if module.on else module.base
    return module


def is_tied(model: nn.Module) -> bool:
    """Whether embedding and head are one parameter, under wrappers too, whose `weight` may be a copy of it."""
    return in_use(model.lm_head).weight is in_use(model.embed_tokens).weight  # type: ignore[arg-type]


def base_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the weights under all adapters."""
    module = model.embed_tokens
    while isinstance(module, Trained):
        module = module.base
    return module.weight.dtype  # type: ignore[union-attr, return-value]
