"""The one function that edits a module tree, and the contract of what stands in for a weight matrix.

A linear-like module has `in_features`, `out_features`, `forward((…, in)) → (…, out)` and `dense_weight() → (out, in)`:
the matrix that it stands for. Adapters and quantised linears are such modules. What packed ones share is here too:
their product, and buffers that no change of dtype rounds. Not here: any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@dataclass(frozen=True)
class FewBits:
    """What a module of few bits computes, as plain numbers; its own `few_bits()` says so to who multiplies elsewhere.

    y = normed(W · rounded(before ⊙ x[order])) + kept · x[kept_index], W = scales · (codes − zeros) by groups of inputs.

    codes: (N, K) uint8.  scales, zeros: (G, N).  order: (K,).  before: (K,).  kept: (N, M), kept_index: (M,).
    rounds: BitNet's activations, 255 steps a token.  normed: OneBit's LayerNorm.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int
    group_size: int
    order: Tensor | None = None
    before: Tensor | None = None
    kept_index: Tensor | None = None
    kept: Tensor | None = None
    rounds: bool = False
    normed: bool = False


class Words(NamedTuple):
    """A matrix (N, K) as 32-bit words of 4 or 8 bits a code; `in_words` of a module says so to kernels of elsewhere.

    W = scales · (codes − zeros) by groups of inputs; no word's codes are of two groups.

    words: (⌈K · bits / 32⌉, N) int32, of successive codes of one output, the first in the lowest bits.
    zeros: (G, N) uint8.  scales: (G, N) float16.  order: (K,) int32: code k is of input order[k].
    """

    words: Tensor
    zeros: Tensor
    scales: Tensor
    order: Tensor | None
    bits: int
    group_size: int


def replace_modules(model: nn.Module, pick: Callable[[str, nn.Module], bool],
                    make: Callable[[str, nn.Module], nn.Module]) -> list[str]:  # fmt: skip
    """Put `make(name, module)` in the place of every module that `pick(name, module)` chooses.

    What is inside a chosen module is not visited, nor is what `make` returns. Training mode is carried over.

    Returns:
        The dotted names that were replaced, in the tree's order; whether none is a fault is the caller's to say.
    """
    chosen: list[str] = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        inside = any(name.startswith(f"{outer}.") for outer in chosen)
        if name and not inside and pick(name, module):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, make(name, module).train(module.training))
            chosen.append(name)
    return chosen


def dense_weight(module: nn.Module) -> Tensor:
    """The (out, in) matrix that a linear or linear-like module stands for."""
    return module.weight if isinstance(module, nn.Linear) else module.dense_weight()  # type: ignore[operator, return-value]


class Unrounded(nn.Module):
    """A module whose buffers named in `unrounded`, with their dtypes, keep every bit when the model's dtype changes."""

    unrounded: ClassVar[dict[str, torch.dtype]]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """`fn` meets them as integers: it may move them, and has nothing to round."""
        for name, dtype in self.unrounded.items():
            setattr(self, name, getattr(self, name).view(torch.int32 if dtype.itemsize == 4 else torch.int16))
        try:
            return super()._apply(fn, recurse)
        finally:
            for name, dtype in self.unrounded.items():
                setattr(self, name, getattr(self, name).view(dtype))


def unpacked_product(x: Tensor, unpack: Callable[..., Tensor], *packed: Any) -> Tensor:
    """x (…, in) · Wᵀ with W = unpack(*packed), (out, in), made for the product and again for the gradient of x.

    Args:
        packed: tensors, which are all that autograd keeps, then what else `unpack` takes.
    """
    return _UnpackedProduct.apply(x, unpack, *packed)  # type: ignore[return-value]


class _UnpackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, unpack: Callable[..., Tensor], *packed: Any) -> Tensor:
        tensors = [part for part in packed if isinstance(part, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.unpack, ctx.others = unpack, packed[len(tensors) :]
        return linear(x, unpack(*packed).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        packed = *ctx.saved_tensors, *ctx.others
        return grads[0] @ ctx.unpack(*packed).to(grads[0].dtype), None, *[None] * len(packed)
