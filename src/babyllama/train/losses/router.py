"""What keeps the experts of a model busy: a balance loss and a z-loss of its routers (arXiv 2101.03961, 2202.08906).

Both are sums over the rows of a batch, each row balanced by itself and counted by its targets, so that neither
accumulation nor the number of processes changes them. Not here: routing itself (model/mlp.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from babyllama.data.streams.batches import IGNORE
from babyllama.model.mlp import choose
from babyllama.recipe import Recipe


class RouterLoss(Recipe):
    """Beside the loss of a model with experts: balance · E · Σ f·P + z · log²Σexp, the mean over blocks.

    Of a row's tokens that have a target, f is the share of choices that fall on an expert, P the mean of its
    probability. The balance is 1 where all experts are equally busy, and E / active where always the same ones are.
    """

    balance: float = Field(default=0.01, ge=0, description="weight of the balance loss, which is 1 at best")
    z: float = Field(default=0.001, ge=0, description="weight of the z-loss, which keeps the routers' logits small")

    def __call__(self, routed: Sequence[Tensor], active: int, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to be added, and what is measured of the routing, as sums over targets.

        Args:
            routed: each block's router logits, (B · T, E).  active: experts of a token.  targets: (B, T).

        Returns:
            The loss, and ``balance``, ``router_z`` and ``busiest``: how often a row's busiest expert is chosen, 1 being
            as often as the others.
        """
        kept = (targets != IGNORE).float()[..., None]  # (B, T, 1)
        count = kept.sum(1)  # (B, 1)
        balance, z, busiest = (kept.new_zeros(()) for _ in range(3))
        for logits in routed:
            logits = logits.float().view(*targets.shape, -1)  # (B, T, E)
            experts = logits.shape[-1]
            chosen = one_hot(choose(logits.detach(), active)[1], experts).sum(2)  # (B, T, E)
            load = (chosen * kept).sum(1) * (experts / active) / count.clamp(min=1)  # (B, E), 1 where all are alike
            balance = balance + (load * (logits.softmax(-1) * kept).sum(1)).sum()
            z = z + (logits.logsumexp(-1, keepdim=True).square() * kept).sum()
            busiest = busiest + (load.amax(-1, keepdim=True) * count).sum()
        balance, z, busiest = balance / len(routed), z / len(routed), busiest / len(routed)
        measured = {"balance": balance.detach(), "router_z": z.detach(), "busiest": busiest}
        return self.balance * balance + self.z * z, measured
