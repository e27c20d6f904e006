"""GaLore (arXiv 2403.03507): AdamW whose moments live in a matrix gradient's leading directions.

Every `refresh` steps the `rank` leading singular directions of the gradient's shorter side are taken; the gradient is
projected on them, Adam works there, and its step is projected back. As in the authors' code the moments are kept when
the directions change. A matrix whose shorter side is at most `rank` gets plain AdamW. Not here: which parameters are
matrices (optim.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class GaloreAdamW(torch.optim.Optimizer):
    """W ← (1 − lr·wd)·W − lr·scale·P·adam(Pᵀ·G), or …·adam(G·P)·Pᵀ for tall matrices; decay is decoupled.

    Raises:
        ValueError: a parameter that is no matrix.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], eps: float,
                 weight_decay: float, rank: int, refresh: int, scale: float) -> None:  # fmt: skip
        params = list(params)
        for parameter in params:
            if parameter.ndim != 2:
                raise ValueError(f"GaLore takes matrices only, got shape {list(parameter.shape)}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rank": rank,
                                  "refresh": refresh, "scale": scale})  # fmt: skip
        self._calls: dict[Tensor, tuple[Tensor, int]] = {}  # parameter → (its state's `calls`, the same on the host)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient. `closure` is not supported and must be None."""
        refused: Tensor | None = getattr(self, "found_inf", None)  # as in torch's fused AdamW: 1 leaves the step out
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group, refused)

    def _step(self, parameter: Tensor, grad: Tensor, group: dict[str, Any], refused: Tensor | None) -> None:
        state = self.state[parameter]
        projected = group["rank"] < min(grad.shape)
        if projected and self._count(parameter) % group["refresh"] == 0:
            if refused is not None and bool(refused):  # no directions in what is not a number: look again next time
                return
            state["projector"] = leading(grad, group["rank"])
        low = project(grad, state["projector"]) if projected else grad
        if "step" not in state:
            state |= {"step": torch.zeros((), device=grad.device), "exp_avg": torch.zeros_like(low),
                      "exp_avg_sq": torch.zeros_like(low)}  # fmt: skip
        self._counted(parameter)
        taken = torch.ones((), device=grad.device) if refused is None else (refused == 0).float()
        low = torch.where(taken > 0, low, 0.0)
        first, second = group["betas"]
        state["step"] += taken
        state["exp_avg"].lerp_(low, taken * (1 - first))
        state["exp_avg_sq"].lerp_(low.square(), taken * (1 - second))
        bias = 1 - first ** state["step"], 1 - second ** state["step"]
        denominator = (state["exp_avg_sq"] / bias[1]).sqrt_().add_(group["eps"])
        update = torch.where(taken > 0, state["exp_avg"] / bias[0] / denominator, 0.0)
        if projected:
            update = project_back(update, state["projector"], grad.shape)
        parameter.mul_(1 - taken * (group["lr"] * group["weight_decay"]))
        parameter.add_(update, alpha=-group["lr"] * group["scale"])

    def _count(self, parameter: Tensor) -> int:
        """How many steps the matrix has seen; asks the device only after the state was put back."""
        stored = self.state[parameter].get("calls")
        if stored is None:
            return 0
        held = self._calls.get(parameter)
        return held[1] if held is not None and held[0] is stored else int(stored)

    def _counted(self, parameter: Tensor) -> None:
        count, state = self._count(parameter) + 1, self.state[parameter]
        if "calls" not in state:
            state["calls"] = torch.zeros((), device=parameter.device)
        state["calls"].fill_(count)
        self._calls[parameter] = state["calls"], count


def leading(grad: Tensor, rank: int) -> Tensor:
    """The leading singular directions of the shorter side: (rows, R) for a wide matrix, (columns, R) for a tall one."""
    left, _, right = torch.linalg.svd(grad.float(), full_matrices=False)
    tall = grad.shape[0] > grad.shape[1]
    return (right[:rank].T if tall else left[:, :rank]).contiguous()


def project(grad: Tensor, projector: Tensor) -> Tensor:
    """(rows, columns) → (R, columns), or (rows, R) for a tall matrix."""
    return grad @ projector if grad.shape[0] > grad.shape[1] else projector.T @ grad


def project_back(low: Tensor, projector: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of `project`, as far as the directions reach."""
    return low @ projector.T if shape[0] > shape[1] else projector @ low
