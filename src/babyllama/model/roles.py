"""What a parameter is in the model, by its name and shape: the one place that knows.

Optimisers, precision, freezing and checks ask here. A name may be of the model, of a module around it (``model.``…) or
of a wrapper inside (``embed_tokens.own.weight``). A tied head and its embedding are one parameter, whose first name is
the embedding's. Not here: what follows from a role.
"""

from __future__ import annotations

from enum import StrEnum

from torch import Tensor


class Role(StrEnum):
    """Matrix: inside a block, of experts a stack of them. Router: what weighs experts, logits as a head's. Vector: a
    norm's weights, and an adapter's or OneBit's factors of rows."""

    EMBEDDING = "embedding"
    HEAD = "head"
    MATRIX = "matrix"
    ROUTER = "router"
    VECTOR = "vector"
    ROPE = "rope"


_PLACES = {"rope": Role.ROPE, "embed_tokens": Role.EMBEDDING, "lm_head": Role.HEAD, "value": Role.HEAD,
           "gate": Role.ROUTER, "shared_expert_gate": Role.ROUTER}  # fmt: skip


def role(name: str, parameter: Tensor) -> Role:
    """The role of the parameter of that dotted name."""
    place = next((_PLACES[part] for part in name.split(".") if part in _PLACES), None)
    return place or (Role.MATRIX if parameter.ndim >= 2 else Role.VECTOR)


def by_heads(name: str) -> bool:
    """Whether the rows of the matrix of that name are those of one head after another."""
    return not {"q_proj", "k_proj", "v_proj"}.isdisjoint(name.split("."))


def exact(name: str) -> bool:
    """Whether a parameter is a RoPE kind's own: those stay float32 in a model of half precision."""
    return "rope" in name.split(".")
