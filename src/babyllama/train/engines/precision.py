"""Half precision without half-precision parameters: float32 weights, copied down for each forward pass.

The parameters that the optimiser owns stay float32, and so do their gradients, which add up over micro-batches without
loss; the model computes with bf16 or fp16 copies that live from forward to backward. Explicit and small, where autocast
decides op by op. Not here: the loss scale of fp16 (guard.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from babyllama.data.streams.batches import Batch
from babyllama.model.roles import exact
from babyllama.model.transformer import Block, Transformer
from babyllama.train.losses.objectives import Objective


class LossModule(nn.Module):
    """A model and what it is trained for, as one module: batch → (summed loss, metrics).

    The engines wrap it whole: their hooks then see every use of every weight, the head's included.
    """

    def __init__(self, model: Transformer, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective(self.model, batch)


class InHalf(nn.Module):
    """The same, computed with copies of the weights in `dtype`. Tied weights stay tied.

    Args:
        by_block: each block's copies are made as it begins, so that its gradients come up when its backward pass ends,
            for who sends them away meanwhile; else all at once, in one launch. (Autograd takes of what is ready what
            was made last: copies made before everything else would come up after everything else.)
    """

    def __init__(self, inner: LossModule, dtype: torch.dtype, by_block: bool = False) -> None:
        super().__init__()
        self.inner, self.dtype, self.by_block = inner, dtype, by_block

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.by_block:
            return functional_call(self.inner, halved(self.inner, self.dtype), (batch,))
        model = self.inner.model
        inside = {id(parameter) for parameter in model.layers.parameters()}
        through = model.through

        def lowered(block: Block, *arguments: Any) -> Tensor:
            run = _Through(block, through)
            return functional_call(run, halved(run, self.dtype), arguments)

        model.through = lowered
        try:
            return functional_call(self.inner, halved(self.inner, self.dtype, inside), (batch,))
        finally:
            model.through = through


class _Through(nn.Module):
    """A block as the model runs it."""

    def __init__(self, block: Block, through: Callable[..., Tensor]) -> None:
        super().__init__()
        self.block, self.through = block, through

    def forward(self, *arguments: Any) -> Tensor:
        return self.through(self.block, *arguments)


def halved(module: nn.Module, dtype: torch.dtype, without: Container[int] = ()) -> dict[str, Tensor]:
    """Name → copy in `dtype` of a module's weights, by which its pass is computed. `without`: ids of weights that stay.

    Of what learns at another time (LISA) a copy that wants no gradient, so that none is computed. Frozen weights that
    are in half precision already stay where they are.
    """
    named = [(name, p) for name, p in module.named_parameters() if not (exact(name) or id(p) in without)]
    trained = {name: p for name, p in named if p.requires_grad}
    copies = {name: p.detach().to(dtype) for name, p in named if not p.requires_grad and p.dtype != dtype}
    if trained:
        copies |= zip(trained, _Down.apply(dtype, *trained.values()), strict=True)
    return copies


class Lent:
    """A model as its forward passes compute: itself in float32, else a copy in `dtype`, in the same memory each time,
    so that what was recorded of it stays true."""

    def __init__(self) -> None:
        self._half: Transformer | None = None

    @torch.no_grad()
    def __call__(self, model: Transformer, dtype: torch.dtype) -> Transformer:
        if model.embed_tokens.weight.dtype == dtype:  # also a frozen base in half precision, and DeepSpeed's
            return model
        if self._half is None:
            self._half = copy.deepcopy(model).requires_grad_(False)
            for name, parameter in self._half.named_parameters():
                if parameter.is_floating_point() and not exact(name):
                    parameter.data = parameter.data.to(dtype)
        torch._foreach_copy_(list(self._half.parameters()), list(model.parameters()))
        return self._half


class _Down(torch.autograd.Function):
    """All weights to half precision in one launch, and all gradients back up in one."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # a weight that was not used gets no gradient, not zeros
        half = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(half, list(weights))
        return tuple(half)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        given = [grad for grad in grads if grad is not None]
        full = [torch.empty_like(grad, dtype=torch.float32) for grad in given]
        torch._foreach_copy_(full, given)
        found = iter(full)
        return (None, *(None if grad is None else next(found) for grad in grads))
