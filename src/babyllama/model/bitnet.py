"""Linears whose matrices are trained to be few-bit numbers: BitNet b1.58 (arXiv 2402.17764), OneBit (arXiv 2402.11295).

Both keep a float matrix, round it for every product, and give its gradient to the float one as if nothing had been
rounded (straight-through). A model's config says which it has (`weights`): its folder holds the float matrices, so that
training can go on. Shapes: N rows of x, in, out. Not here: packed forms and the start from a dense model (quant/).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from babyllama.model.config import Weights
from babyllama.model.surgery import FewBits, replace_modules

LARGEST = 127  # code of an activation
EPS = 1e-5  # of OneBit's LayerNorm


class _Trained(nn.Module):
    """A (out, in) float matrix, `weight`, that is rounded where it is used."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


# ── BitNet b1.58 ───────────────────────────────────────────────────────────────────────────────────────────────────
def ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """RoundClip(W / mean|W|, −1, 1) in int8, and mean|W| in float32: the codes and the scale of a matrix."""
    scale = weight.float().abs().mean()
    return (weight.float() / torch.where(scale == 0, 1.0, scale)).round_().clamp_(-1, 1).to(torch.int8), scale


def rounded_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (…, in) → int8 codes of the same shape and float32 steps (…, 1), each token's largest magnitude / 127."""
    step = x.float().abs().amax(-1, keepdim=True) / LARGEST
    return (x.float() / torch.where(step == 0, 1.0, step)).round_().to(torch.int8), step


class BitLinear(_Trained):
    """Y = Q₈(X) · (RoundClip(W / mean|W|, −1, 1) · mean|W|)ᵀ, Q₈ rounding each token to 255 equal steps.

    The paper's LLaMA-like blocks: what goes in is normed by the block's RMSNorm, no norm is added here.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self._known: tuple[Tensor, int, Tensor, Tensor] | None = None

    def dense_weight(self) -> Tensor:
        """(out, in) float32: −s, 0 and s. The activations' rounding has no matrix."""
        codes, scale = ternary(self.weight)
        return codes * scale

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            codes, step = rounded_tokens(x.flatten(0, -2))
            signs, scale = self.rounded()
            y = torch._int_mm(codes, signs.T).float() * (step * scale)
            return y.to(x.dtype).view(*x.shape[:-1], -1)
        return _TernaryProduct.apply(x, self.weight)  # type: ignore[return-value]

    def few_bits(self) -> FewBits:
        """−1, 0 and 1 times one scale, for inputs rounded token by token."""
        signs, scale = self.rounded()
        scales = scale.expand(1, self.out_features)
        return FewBits((signs + 1).to(torch.uint8), scales, torch.ones_like(scales), 2, self.in_features, rounds=True)

    def rounded(self) -> tuple[Tensor, Tensor]:
        """`ternary` of the weight, made once for as long as nobody changes it."""
        weight = self.weight
        if weight.is_inference():  # nobody counts its changes
            return ternary(weight)
        known = self._known
        if known is None or known[0].data_ptr() != weight.data_ptr() or known[1] != weight._version:
            self._known = known = weight.detach(), weight._version, *ternary(weight.detach())  # keeps its address taken
        return known[2:]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._known = None
        return super()._apply(fn, recurse)


class _TernaryProduct(torch.autograd.Function):
    """Sums of integers, exact in the float dtype where it holds them, then the scales. Straight-through for x and W.

    Codes are divided by 128, a change of exponent alone: float16 could not hold the sums of a thousand codes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        codes, step = rounded_tokens(x)
        signs, scale = ternary(weight)
        ctx.save_for_backward(codes, step, signs, scale)
        sums = linear(codes.to(x.dtype) / 128, signs.to(x.dtype))
        return (sums.float() * (step * scale * 128)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        codes, step, signs, scale = ctx.saved_tensors
        grad, to_x, to_weight = grads[0], None, None
        if ctx.needs_input_grad[0]:
            to_x = grad @ (signs * scale).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            to_weight = grad.flatten(0, -2).T @ (codes * step).to(grad.dtype).flatten(0, -2)
        return to_x, to_weight


# ── OneBit ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class OneBitLinear(_Trained):
    """Y = LN(((X ⊙ g) · sign(W)ᵀ) ⊙ h), g (in,), h (out,), LN without weights of its own. sign(+0) = 1, sign(−0) = −1.

    Signs of zeros: a tiny weight keeps its sign where a shorter float flushes it to zero.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.g, self.h = nn.Parameter(torch.ones(in_features)), nn.Parameter(torch.ones(out_features))

    def dense_weight(self) -> Tensor:
        """(out, in) float32: sign(W) ⊙ h gᵀ, which is what LN gets; LN itself has no matrix."""
        return signs(self.weight).float() * torch.outer(self.h.float(), self.g.float())

    def forward(self, x: Tensor) -> Tensor:
        return normed(linear(x * self.g, _Sign.apply(self.weight)) * self.h)  # type: ignore[arg-type]


def signs(weight: Tensor) -> Tensor:
    """±1 in the dtype of `weight`, by the sign bit."""
    return torch.ones_like(weight).copysign(weight)


def normed(y: Tensor) -> Tensor:
    """LayerNorm over the outputs, in float32."""
    return layer_norm(y.float(), y.shape[-1:], eps=EPS).to(y.dtype)


class _Sign(torch.autograd.Function):
    """sign(W); the gradient goes through as it is."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return signs(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0]


KINDS: dict[str, type[_Trained]] = {"ternary": BitLinear, "onebit": OneBitLinear}


def replace_matrices(model: nn.Module, weights: Weights) -> None:
    """Put the trained form of `weights` in the place of all plain linears inside the blocks, their matrices kept."""
    if weights == "dense":
        return

    def made(_: str, module: nn.Module) -> nn.Module:
        assert isinstance(module, nn.Linear)
        with module.weight.device:
            found = KINDS[weights](module.in_features, module.out_features)
        found.weight = module.weight  # type: ignore[assignment]  # the same Parameter
        return found

    replace_modules(model, lambda name, module: name.startswith("layers.") and isinstance(module, nn.Linear), made)
