"""What an engine is given to begin with. Not here: what it makes of it (worker.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from babyllama.model.attention import Attend, attend_sdpa
from babyllama.model.roles import exact
from babyllama.model.transformer import Transformer
from babyllama.train.engines.mesh import ALONE, Mesh
from babyllama.train.engines.world import World
from babyllama.train.lisa import Lisa
from babyllama.train.losses.objectives import Objective
from babyllama.train.optimizers.optim import Optimizer


@dataclass(kw_only=True)
class Setting:
    """What every engine needs to begin; made once by the trainer.

    Attributes:
        micro_batches: of one rank in one step.
        attend: while it trains; validation and samples attend in full.
        float8: multiply in the blocks in float8 going forward, where that is compiled for a GPU that does.
        adapter: names of what is trained, where that is a part; else empty.
        mesh: what the engine makes of the world.
    """

    model: Transformer
    objective: Objective
    optimizer: Optimizer
    world: World
    device: torch.device
    dtype: torch.dtype
    clip: float
    micro_batches: int
    compiled: bool
    attend: Attend = attend_sdpa
    float8: bool = False
    lisa: Lisa | None = None
    seed: int = 1
    mesh: Mesh = ALONE
    adapter: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        trained = frozenset(name for name, p in self.model.named_parameters() if p.requires_grad)
        self.adapter = trained if len(trained) < sum(1 for _ in self.model.parameters()) else frozenset()

    def copied(self, name: str) -> torch.dtype:
        """The dtype of a parameter in a copy of the model: what it computes in, but an adapter's float32."""
        return torch.float32 if name in self.adapter or exact(name) else self.dtype
