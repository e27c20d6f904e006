"""AWQ (arXiv 2306.00978): before rounding, columns with large inputs are scaled up, and the inputs down.

For the linears that share an input, s = mean|x|^α / √(max · min); the α of the least error of their outputs wins. s⁻¹
goes into what makes the input: a norm, or the rows of the linear before. Then the range of every group is clipped to
the share of the least output error. All errors are exact: quadratic forms of the inputs' second moments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from babyllama.quant.grid import Solution, groups
from babyllama.quant.rtn import Method, Moments, output_error


class Shared(NamedTuple):
    """Linears that share an input, and what makes it: a norm's weight or a linear's rows are divided by s."""

    linears: tuple[str, ...]
    source: str


SHARED = (
    Shared(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"),
    Shared(("self_attn.o_proj",), "self_attn.v_proj"),
    Shared(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
    Shared(("mlp.down_proj",), "mlp.up_proj"),
)
UNCLIPPED = ("q_proj", "k_proj")  # the paper's code: their product is too sensitive


class Awq(Method):
    """Scales that the model absorbs, then round to nearest. With grouped queries `o_proj` is not scaled: each row of
    `v_proj` feeds several of its columns."""

    kind: Literal["awq"] = "awq"
    steps: int = Field(default=20, ge=1, description="values of α tried, from 0 to below 1")
    clip: bool = Field(default=True, description="search each group's range, 1 to 0.5 of it")
    prepares: ClassVar[bool] = True

    @model_validator(mode="after")
    def _one_search(self) -> Awq:
        if self.mse:
            raise ValueError("mse is not for awq, which has its own search: clip")
        return self

    def prepare(self, linears: Mapping[str, nn.Linear], norms: Mapping[str, nn.Module],
                inputs: Mapping[str, Moments]) -> None:  # fmt: skip
        for shared in SHARED:
            users = [linears[name] for name in shared.linears]
            source: Tensor = (linears.get(shared.source) or norms[shared.source]).weight  # type: ignore[assignment]
            if len(source) == users[0].in_features:
                scale = self.scale([user.weight for user in users], inputs[shared.linears[0]])
                fold(source, users, scale)

    def scale(self, weights: Sequence[Tensor], inputs: Moments) -> Tensor:
        """The best s (K,) for matrices (N, K) with the same inputs; ones where no α gains."""
        best, least, hessian = torch.ones_like(inputs.size), torch.inf, inputs.hessian
        for step in range(self.steps):
            scale = scale_of(inputs.size, step / self.steps)
            error = sum(float(output_error(self.nearest(weight.float() * scale).dense() / scale - weight.float(),
                                           hessian)) for weight in weights)  # fmt: skip
            if error < least:
                best, least = scale, error
        return best

    def solve(self, weight: Tensor, inputs: Moments, name: str) -> Solution:
        if not self.clip or name.endswith(UNCLIPPED):
            return self.nearest(weight)
        return self.nearest(weight, self.shrink(weight, inputs.hessian))

    def shrink(self, weight: Tensor, hessian: Tensor) -> Tensor:
        """The best share of each group's range, (N, G): 1 to 0.5 in 20 steps."""
        size = self.group_size or weight.shape[1]
        blocks = _diagonal_blocks(hessian, size)  # (G, g, g)
        grouped = groups(weight, self.group_size)  # (N, G, g)
        best = torch.ones(grouped.shape[:-1], device=weight.device)
        least = torch.full_like(best, torch.inf)
        for ratio in torch.linspace(1.0, 0.5, 21).tolist():
            change = self.round(grouped, self.fit(grouped, torch.full_like(best, ratio))) - grouped
            error = torch.einsum("ngk,gkl,ngl->ng", change, blocks, change)
            best = torch.where(error < least, ratio, best)
            least = torch.minimum(error, least)
        return best


def scale_of(size: Tensor, alpha: float) -> Tensor:
    """mean|x| (K,) → s (K,): size^α, normalised by √(max · min); inputs that are hardly there count as 10⁻⁴."""
    scale = size.clamp(min=1e-4) ** alpha
    return scale / (scale.max() * scale.min()).sqrt()


@torch.no_grad()
def fold(source: Tensor, users: Sequence[nn.Linear], scale: Tensor) -> None:
    """Divide `source` (a norm's weight (K,), or a matrix with K rows) by s, and multiply the users' columns by it."""
    source /= scale.to(source.dtype).view(-1, *[1] * (source.ndim - 1))
    for user in users:
        user.weight *= scale.to(user.weight.dtype)


def _diagonal_blocks(hessian: Tensor, size: int) -> Tensor:
    """(K, K) → (G, g, g), what is behind a short last group 0."""
    count = -(-len(hessian) // size)
    full = torch.nn.functional.pad(hessian, (0, count * size - len(hessian)) * 2)
    return full.view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
