"""Muon (K. Jordan 2024) for many matrices at once: those of one shape are orthogonalised as one stack.

The update is torch.optim.Muon's, which walks over the matrices one by one: at 512 × 8 that is 840 products and a few
thousand launches a step, here 45. The rest is bound by memory; on a GPU two kernels do it. With `beta2` it is NorMuon's
(arXiv 2510.05491): orthogonalising evens out directions but not neurons, so each row is divided by the root of a
running mean of its own squares. A group with `rows` is orthogonalised in parts of so many rows, such as an attention's
heads, each of which then learns at one speed in all its directions. Not here: which parameters are matrices (optim.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton–Schulz iteration
ITERATIONS = 5
EPS = 1e-10  # beside the root of a row's power, which is about 1 / √columns


class StackedMuon(torch.optim.Optimizer):
    """Momentum with Nesterov's look-ahead, orthogonalised; rate lr · √max(1, rows / columns); decoupled decay.

    A parameter (A, B) is a matrix, one (E, A, B) a stack of them. Of a sharded one (a DTensor, split along its first
    dimension) a rank holds some rows of the matrix, or some matrices of the stack.

    Args:
        params: parameters, or groups of them, each with `rows` if its matrices are to be orthogonalised in parts.
        beta2: of the running mean of each row's squares, which evens out the rows' steps; the step of the whole matrix
            keeps its length. None: plain Muon.
        dtype: of the products that orthogonalise.
        ranks: processes of the default group that hold these same parameters and gradients, and share the work out.

    Raises:
        ValueError: a parameter that is no matrix.
    """

    def __init__(self, params: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float, momentum: float,
                 weight_decay: float, beta2: float | None = None, dtype: torch.dtype = torch.bfloat16,
                 ranks: int = 1) -> None:  # fmt: skip
        usual = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "beta2": beta2, "rows": None}
        super().__init__(params, usual)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim not in (2, 3):
                    raise ValueError(f"Muon takes matrices only, got shape {list(parameter.shape)}")
                if parameter.shape[-2] % (group["rows"] or 1):
                    raise ValueError(f"shape {list(parameter.shape)} does not fall into parts of {group['rows']} rows")
        self._dtype, self._ranks = dtype, ranks

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient. `closure` is not supported and must be None."""
        for group in self.param_groups:
            for same in _by_shape([p for p in group["params"] if p.grad is not None]):
                self._step_stack(same, group)

    def _step_stack(self, same: list[Tensor], group: dict[str, Any]) -> None:
        refused: Tensor | None = getattr(self, "found_inf", None)  # as in torch's fused AdamW: 1 leaves the step out
        buffers = self._moments(same, "momentum_buffer", torch.zeros_like)
        ahead = look_ahead_([_here(p.grad) for p in same if p.grad is not None], buffers, group["momentum"], refused)
        updates = self._orthogonal(ahead, same[0], group["rows"])
        rows, columns = group["rows"] or same[0].shape[-2], same[0].shape[-1]
        rates = group["lr"] * math.sqrt(max(1.0, rows / columns))
        if group["beta2"] is not None:
            rates = self._evened(updates, same, group["beta2"], refused) * rates
        move_([_here(p) for p in same], updates, rates, 1 - group["lr"] * group["weight_decay"], refused)

    def _evened(self, updates: Tensor, same: list[Tensor], beta2: float, refused: Tensor | None) -> Tensor:
        """What each row's step is multiplied by, (N, …, rows, 1); moves the mean squares on."""
        powers = self._moments(same, "row_power", lambda p: torch.zeros_like(p[..., :1]))
        power = torch.linalg.vector_norm(updates, dim=-1, keepdim=True, dtype=torch.float32).square()
        power, earlier = power / updates.shape[-1], torch.stack(powers)
        running = earlier.lerp(power, 1 - beta2)
        kept = running if refused is None else torch.where(refused == 0, running, earlier)
        torch._foreach_copy_(powers, list(kept.unbind()))
        return _evening(power, running, same[0])

    def _orthogonal(self, held: Tensor, like: Tensor, rows: int | None) -> Tensor:
        """`orthogonalise` of what this rank holds, (N, …, rows, B), of matrices like the parameter `like`; in bf16."""
        flat, split = held.flatten(0, -3), hasattr(like, "_local_tensor")
        own = partial(self._work, rows=rows)
        if self._ranks == 1 and not split:
            return own(flat).view_as(held)
        from babyllama.train.optimizers.rows import copies, on_whole, shared_out

        flat, work, others = flat.bfloat16(), own, copies(like) if split else None
        if _by_rows(like):
            work = partial(on_whole, like=like, work=own)
        if others is not None or not split:
            return shared_out(flat, work, others).view_as(held)
        return work(flat).view_as(held)

    def _work(self, matrices: Tensor, rows: int | None) -> Tensor:
        if rows is None:
            return orthogonalise(matrices, self._dtype)
        parts = matrices.unflatten(1, (-1, rows)).flatten(0, 1)
        return orthogonalise(parts, self._dtype).reshape(matrices.shape)

    def _moments(self, same: list[Tensor], name: str, begin: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """This rank's rows of a moment of each parameter; where there is none yet, what `begin` makes of it."""
        for p in same:
            if name not in self.state[p]:
                self.state[p][name] = begin(p)
        return [_here(self.state[p][name]) for p in same]


def look_ahead_(grads: list[Tensor], buffers: list[Tensor], momentum: float, refused: Tensor | None) -> Tensor:
    """Move the means of gradients on, unless `refused` is 1, and look ahead (Nesterov): (N, …) as grads, on a GPU bf16.

    Args:
        grads, buffers: N of one shape.
    """
    if _plain(grads) and _plain(buffers):
        from babyllama.train.optimizers.kernels import look_ahead_ as fused

        return fused(grads, buffers, momentum, refused)
    given, before = torch.stack(grads), torch.stack(buffers)
    after = before.lerp(given, 1 - momentum)
    kept = after if refused is None else torch.where(refused == 0, after, before)
    torch._foreach_copy_(buffers, list(kept.unbind()))
    return given.lerp(after, momentum)


def move_(weights: list[Tensor], updates: Tensor, rates: Tensor | float, decay: Tensor | float,
          refused: Tensor | None) -> None:  # fmt: skip
    """weight · decay − rate · update, unless `refused` is 1.

    Args:
        weights: N of one shape.  updates: (N, …) bf16.  rates: one, or (N, …, rows, 1).
    """
    if _plain(weights):
        from babyllama.train.optimizers.kernels import move_ as fused

        fused(weights, updates, rates, decay, refused)
        return
    steps = updates.to(weights[0].dtype) * rates
    if refused is not None:  # what it holds may be anything, which 0 times would not undo
        steps = torch.where(refused == 0, steps, 0)
    if isinstance(decay, Tensor) or decay != 1:
        torch._foreach_mul_(weights, decay if refused is None else torch.where(refused == 0, decay, 1.0))
    torch._foreach_sub_(weights, list(steps.unbind()))


def _plain(tensors: list[Tensor]) -> bool:
    """Whether a kernel may walk over their numbers."""
    return all(t.is_cuda and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)


def _evening(power: Tensor, running: Tensor, like: Tensor) -> Tensor:
    """What each row's step is multiplied by: 1 / √running, then all rows of a matrix alike, so that its norm stays.

    Args:
        power, running: (N, …, rows of this rank, 1), the rows' mean squares now and over time.
        like: a parameter, sharded or not as the rows are.
    """
    factor = 1 / (running.sqrt() + EPS)
    both = torch.stack([power, power * factor.square()]).sum(-2, keepdim=True)
    if _by_rows(like):
        from babyllama.train.optimizers.rows import sum_over

        both = sum_over(both, like)
    return factor * (both[0] / (both[1] + EPS**2)).sqrt()


def _here(tensor: Tensor) -> Tensor:
    """The rows of a sharded tensor (a DTensor) that lie on this rank; a plain tensor as it is."""
    return getattr(tensor, "_local_tensor", tensor)


def _by_rows(parameter: Tensor) -> bool:
    """Whether this rank holds some rows of a matrix, and others the rest."""
    return hasattr(parameter, "_local_tensor") and parameter.ndim == 2


def _by_shape(parameters: list[Tensor]) -> list[list[Tensor]]:
    shapes: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        shapes.setdefault(parameter.shape, []).append(parameter)
    return list(shapes.values())


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.bfloat16, eps: float = 1e-7) -> Tensor:
    """(N, A, B) → (N, A, B) bf16: each U·S·Vᵀ becomes about U·Vᵀ, singular values within about 0.7 … 1.2.

    Five quintic Newton–Schulz iterations on the short side, of the matrices rounded to bf16, in `dtype`.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16().to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(ITERATIONS):
        gram = x.mT @ x if tall else x @ x.mT
        power = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, *((x, power) if tall else (power, x)), beta=a)
    return x.bfloat16()
