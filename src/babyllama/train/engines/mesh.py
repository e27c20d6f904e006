"""The mesh: how the processes of a training share out its states, its rows and the tokens of a row.

Pure numbers, no torch: plans (foresight/) count with it as the engines do. Not here: torch's groups of it (world.py),
what travels over them (replica.py, fsdp.py, context.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from babyllama.errors import InputError
from babyllama.model.config import ModelConfig


@dataclass(frozen=True)
class Mesh:
    """Two views of the same processes, both with neighbours in the last dimension.

    replicate × shard: `shard` processes hold one copy of weights, gradients and moments together, and there are
    `replicate` such copies. rows × context: `context` processes read the same rows, each its part of their tokens, and
    there are `readers` such groups, each with rows of its own.
    """

    replicate: int = 1
    shard: int = 1
    context: int = 1

    @property
    def size(self) -> int:
        """Processes in all."""
        return self.replicate * self.shard

    @property
    def readers(self) -> int:
        """Groups of processes that read rows of their own."""
        return self.size // self.context

    def reader(self, rank: int) -> int:
        """Which of these groups a rank belongs to."""
        return rank // self.context

    def counts(self, rank: int) -> bool:
        """Whether it is this rank that counts what its group read."""
        return rank % self.context == 0

    def check(self, config: ModelConfig, tokens: int, objective: str = "next_token", halved: bool = False) -> None:
        """Raise InputError where rows of `tokens` cannot be shared out so.

        Args:
            objective: its kind. The others' losses are over whole answers, and a row's experts are balanced over it.
            halved: whether either half of the heads attends in its own way (S²-Attn), so that each is shared out.
        """
        if self.context == 1:
            return
        wrong = f"engine.context: {self.context} processes cannot share a row"
        if objective != "next_token":
            raise InputError(f"{wrong} of objective.kind={objective}, whose loss goes by whole answers; leave it out")
        if config.moe is not None:
            raise InputError(f"{wrong} of a model with experts, which are balanced over all of it; leave it out")
        if tokens % self.context:
            raise InputError(f"{wrong} of {tokens} tokens; give a multiple of {self.context} in plan.context")
        if config.num_attention_heads % (self.context * (2 if halved else 1)):
            halves = " halved by attend.kind=shifted_sparse" if halved else ""
            heads = f"{config.num_attention_heads} heads{halves}"
            raise InputError(f"{wrong} of a model with {heads}: they share these out; choose a divisor")

    def __str__(self) -> str:
        """``replicate 2 × shard 4, context 2``: the dimensions that have more than one process."""
        replicate, shard, context = (
            f"{name} {size}" if size > 1 else ""
            for name, size in (("replicate", self.replicate), ("shard", self.shard), ("context", self.context))
        )
        return ", ".join(filter(None, (" × ".join(filter(None, (replicate, shard))), context)))


ALONE = Mesh()
