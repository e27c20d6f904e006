"""GPTQ (arXiv 2210.17323): columns are rounded one after the other, the rest makes up for each one's error.

H = 2·X·Xᵀ over the inputs, U the upper Cholesky factor of H⁻¹. Column j: q the nearest point, e = (w_j − q) / U_jj,
W[:, >j] −= e · U[j, >j]. Not here: the inputs (calibrate.py).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import pad

from babyllama.errors import InputError
from babyllama.hardware import finest
from babyllama.quant.grid import Scales, Solution, groups
from babyllama.quant.rtn import Method, Moments


class Gptq(Method):
    """Without `act_order` columns come in the model's order. With it the largest inputs come first, and groups are of
    columns in that order, unless `static_groups` lays them down beforehand in the model's. With `act_order: groups`
    they are the model's too, but come as wholes, the one with the largest input first, and are ordered inside (group
    aware reordering, arXiv 2505.14638); a short last one stays last. Where groups are the model's, so is the result's
    order, which more programs read."""

    kind: Literal["gptq"] = "gptq"
    mse: bool = Field(default=True, description="search for a clipped range with a smaller error (norm 2.4)")
    damp: float = Field(
        default=0.01, gt=0, le=1, description="fraction of the Hessian's mean diagonal that is added to it"
    )
    act_order: Literal[False, True, "groups"] = Field(
        default=False,
        description="quantise columns of large inputs first; groups: whole groups, and the columns inside each",
    )
    static_groups: bool = Field(default=False, description="scales from the unchanged matrix")
    block: int = Field(default=128, ge=16, multiple_of=16, description="columns between updates of all the rest")

    @model_validator(mode="after")
    def _groups(self) -> Gptq:
        if self.static_groups and self.group_size is None:
            raise ValueError("static_groups needs a group_size")
        return self

    def solve(self, weight: Tensor, inputs: Moments, name: str) -> Solution:
        hessian, size = inputs.hessian, self.group_size or weight.shape[1]
        order = self._order(hessian.diagonal())
        own = self.act_order is not True or self.static_groups or self.group_size is None
        group = (order if own else torch.arange(len(order))) // size
        static = self.fit(groups(weight, self.group_size)) if self.static_groups or self.group_size is None else None
        factor = _factor(hessian[order][:, order], self.damp, name)
        codes, scales = self._columns(weight[:, order], factor, group.tolist(), static)
        if own:
            codes = codes[:, order.argsort()]
        return Solution(codes, *scales, self.bits, self.group_size, None if own else order)

    def _order(self, sizes: Tensor) -> Tensor:
        """Which input comes when, by their sizes; (K,) both."""
        size, K = self.group_size, len(sizes)
        if not self.act_order:
            return torch.arange(K, device=sizes.device)
        if self.act_order is True or size is None:
            return sizes.argsort(descending=True, stable=True)
        inside = pad(sizes, (0, -K % size), value=-1.0).view(-1, size).sort(dim=1, descending=True, stable=True)
        largest = inside.values[:, 0]
        if K % size:
            largest[-1] = -1.0
        starts = torch.arange(0, K, size, device=sizes.device)[:, None]
        return (inside.indices + starts)[largest.argsort(descending=True, stable=True)].flatten()[:K]

    def _columns(self, weight: Tensor, factor: Tensor, group: list[int],
                 static: Scales | None) -> tuple[Tensor, Scales]:  # fmt: skip
        """weight (N, K) is used up. Blocks are such that no group has columns that updates have not reached.

        Args:
            group: which of the G groups each column belongs to.
            static: the scales, (N, G); None: each group's when it is entered, from the weights as they are then.
        """
        N, K = weight.shape
        codes = torch.empty(N, K, dtype=torch.uint8, device=weight.device)
        count = -(-K // (self.group_size or K))
        scales = static or Scales(*(torch.empty(N, count, device=weight.device) for _ in range(2)))
        for start in range(0, K, self._width):
            stop = min(start + self._width, K)
            here, errors = weight[:, start:stop], torch.zeros(N, stop - start, device=weight.device)
            for column in range(start, stop):
                i, g = column - start, group[column]
                if static is None and column % (self.group_size or K) == 0:
                    for all_groups, one in zip(scales, self.fit(weight[:, column : column + (self.group_size or K)]),
                                               strict=True):  # fmt: skip
                        all_groups[:, g] = one
                scale, zero = scales.scale[:, g], scales.zero[:, g]
                code = (here[:, i] / scale + zero).round_().clamp_(0, self.top)
                codes[:, column] = code
                error = (here[:, i] - (code - zero) * scale) / factor[column, column]
                here[:, i + 1 :].addr_(error, factor[column, column + 1 : stop], alpha=-1)
                errors[:, i] = error
            weight[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
        return codes, scales

    @property
    def _width(self) -> int:
        """Columns of a block: about `block`, whole groups or one part of a group's start."""
        size = self.group_size or self.block
        if size > self.block:
            return size
        return self.block // size * size


def _factor(hessian: Tensor, damp: float, name: str) -> Tensor:
    """The upper Cholesky factor of the damped H⁻¹, (K, K) float32, made in `finest`. An input that is always 0 gets 1.

    Raises:
        InputError: H is not finite.
    """
    if not hessian.isfinite().all():
        raise InputError(f"{name}: its inputs are not finite on the calibration data; is the model damaged? "
                         "babyllama doctor looks at its run")  # fmt: skip
    damped = hessian.to(finest(hessian.device))
    diagonal = damped.diagonal()
    share = damp
    while True:
        tried = damped + torch.diag(torch.where(diagonal == 0, 1.0, diagonal.mean() * share))
        lower, fault = torch.linalg.cholesky_ex(tried)
        if not fault:
            return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()
        share *= 10  # rounding made H indefinite; with enough on its diagonal it cannot be
