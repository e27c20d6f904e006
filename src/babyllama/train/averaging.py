"""The mean of a training's last weights, saved in place of the last ones (SWA, arXiv 1803.05407; LAWA, 2209.14981).

With a learning rate that stays above zero to the end (`schedule.final`) weights go on moving around a good place, and
their mean is nearer to it. Not here: where the mean lies and how it is added up (engines/worker.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from babyllama.recipe import Recipe


class TailAverage(Recipe):
    """What is validated, sampled and saved is a mean of the weights after each of the last steps."""

    share: float = Field(default=0.2, gt=0, le=1, description="of all steps: those at the end, whose weights count")
    tau: int | None = Field(
        default=64, ge=1, description="steps in which a weight's part of the mean falls to 1/e; null: all count alike"
    )

    def weight(self, step: int, steps: int) -> float | None:
        """How much the weights after `step` (1 is the first) of `steps` count in the mean; None: it has not begun.

        Until `tau` steps are in it, it is their plain mean, which no start biases.
        """
        count = step - (steps - max(1, round(self.share * steps)))
        if count < 1:
            return None
        return 1 / count if self.tau is None else max(1 / count, 1 / self.tau)


def blended(mean: dict[str, Tensor], named: Sequence[tuple[str, nn.Parameter]], weight: float) -> dict[str, Tensor]:
    """The mean with the weights as they are now in it, changed in place where there is one; of sharded weights each
    rank's own part. Nothing here waits for the device."""
    if not mean:
        return {name: parameter.detach().clone() for name, parameter in named}
    now = [parameter.detach() for _, parameter in named]
    held, moved = ([getattr(tensor, "_local_tensor", tensor) for tensor in each] for each in (mean.values(), now))
    torch._foreach_lerp_(held, moved, weight)
    return mean
