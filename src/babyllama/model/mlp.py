"""What follows attention in a block: SwiGLU (arXiv 2002.05202), or a mixture of experts that are each one.

Parameters carry the names of transformers' Qwen2-MoE, all experts' matrices of a kind in one stack. Not here: products
by expert (grouped.py), what keeps the experts equally busy (train/losses/router.py), names in files (expert_names.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from babyllama.model.config import Moe, Swiglu
from babyllama.model.fused import swiglu_down
from babyllama.model.grouped import collect, grouped, order_by, spread
from babyllama.model.products import float8_linear


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)). `float8` may be set while training: its products going forward (products.py)."""

    float8 = False

    def __init__(self, mlp: Swiglu, hidden_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, mlp.width, bias=False)
        self.up_proj = nn.Linear(hidden_size, mlp.width, bias=False)
        self.down_proj = nn.Linear(mlp.width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = joined(x, self.gate_proj, self.up_proj, self.down_proj)
        if weights is not None:
            gate, up, down = weights
            multiply = float8_linear if self.float8 else linear
            return swiglu_down(multiply(x, torch.cat((gate, up))), down, self.float8)
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


def joined(x: Tensor, *linears: nn.Module) -> list[Tensor] | None:
    """The weights of linears that may be computed together: on a GPU in training, and only plain ones.

    One product of joined weights reads x once instead of once each, and adds up its gradient inside one product.
    Elsewhere joining costs more than it saves: decoding is bound by reading weights. Adapters and quantised linears go
    their own way.
    """
    if not (x.is_cuda and torch.is_grad_enabled()):
        return None
    weights = [module.weight for module in linears if type(module) is nn.Linear and module.bias is None]
    return weights if len(weights) == len(linears) else None


class Experts(nn.Module):
    """E SwiGLUs, their matrices in three stacks: gate_proj, up_proj (E, F, C), down_proj (E, C, F)."""

    def __init__(self, count: int, width: int, hidden_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.zeros(count, width, hidden_size))
        self.up_proj = nn.Parameter(torch.zeros(count, width, hidden_size))
        self.down_proj = nn.Parameter(torch.zeros(count, hidden_size, width))

    def forward(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """(N, C) → (N, C): the sum of what each token's experts make of it, by their shares.

        Args:
            chosen, shares: (N, K), the experts and their weights.
        """
        order = order_by(chosen, len(self.gate_proj))
        rows = spread(x, order)
        if x.is_cuda and torch.is_grad_enabled():  # as `joined`: x is read once
            both = grouped(rows, torch.cat((self.gate_proj, self.up_proj), 1), order.ends)
            gate, up = both.chunk(2, -1)
        else:
            gate, up = (grouped(rows, stack, order.ends) for stack in (self.gate_proj, self.up_proj))
        made = collect(grouped(silu(gate) * up, self.down_proj, order.ends), order)
        return (made.view(*chosen.shape, -1) * shares[..., None]).sum(1)


class MoE(nn.Module):
    """Each token through its `active` likeliest experts, their shares the router's softmax over them; with shared ones
    also through those, as one SwiGLU under a sigmoid of the token. The mathematics of transformers' Mixtral, and with
    shared experts of its Qwen2-MoE.

    Attributes:
        seen: the router's logits of the last pass, (N, E), while `watched`.
    """

    def __init__(self, mlp: Moe, hidden_size: int) -> None:
        super().__init__()
        self.active, self.watched = mlp.active, False
        self.seen: Tensor | None = None
        self.gate = nn.Linear(hidden_size, mlp.experts, bias=False)
        self.experts = Experts(mlp.experts, mlp.expert_width, hidden_size)
        self.shared_expert: SwiGLU | None = None
        if mlp.shared:
            self.shared_expert = SwiGLU(Swiglu(width=mlp.shared * mlp.expert_width), hidden_size)
            self.shared_expert_gate = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        logits = self.gate(tokens)
        if self.watched:
            self.seen = logits
        shares, chosen = choose(logits, self.active)
        found = self.experts(tokens, chosen, shares.to(x.dtype))
        if self.shared_expert is not None:
            found = found + self.shared_expert_gate(tokens).sigmoid() * self.shared_expert(tokens)
        return found.view(x.shape)


def choose(logits: Tensor, active: int) -> tuple[Tensor, Tensor]:
    """A router's logits (N, E) → float32 shares (N, K), which add up to 1, and the experts, likeliest first, (N, K)."""
    shares, chosen = logits.softmax(-1, dtype=torch.float32).topk(active, dim=-1)
    return shares / shares.sum(-1, keepdim=True), chosen


@contextmanager
def routers(blocks: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Inside, passes note what the blocks' routers say; at the end the list holds the last one's logits, (N, E) of each
    block that has experts, with their gradient."""
    found: list[Tensor] = []
    watched = [block.mlp for block in blocks if isinstance(block.mlp, MoE)]
    try:
        for module in watched:
            module.watched = True
        yield found
        found += [module.seen for module in watched if module.seen is not None]
    finally:
        for module in watched:
            module.watched, module.seen = False, None


MLPS: dict[str, type[nn.Module]] = {
    "swiglu": SwiGLU,
    "moe": MoE,
}  # kind of ModelConfig.mlp → (mlp, hidden_size) → module
