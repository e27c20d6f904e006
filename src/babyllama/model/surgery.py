"""The one function that edits a module tree, and the contract of what stands in for a weight matrix.

A linear-like module has `in_features`, `out_features`, `forward((…, in)) → (…, out)` and `dense_weight() → (out, in)`:
the matrix that it stands for. Adapters and quantised linears are such modules. Not here: any of them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def replace_modules(model: nn.Module, pick: Callable[[str, nn.Module], bool],
                    make: Callable[[str, nn.Module], nn.Module]) -> list[str]:  # fmt: skip
    """Put `make(name, module)` in the place of every module that `pick(name, module)` chooses.

    What is inside a chosen module is not visited, nor is what `make` returns. Training mode is carried over.

    Returns:
        The dotted names that were replaced, in the tree's order; whether none is a fault is the caller's to say.
    """
    chosen: list[str] = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        inside = any(name.startswith(f"{outer}.") for outer in chosen)
        if name and not inside and pick(name, module):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, make(name, module).train(module.training))
            chosen.append(name)
    return chosen


def dense_weight(module: nn.Module) -> Tensor:
    """The (out, in) matrix that a linear or linear-like module stands for."""
    return module.weight if isinstance(module, nn.Linear) else module.dense_weight()  # type: ignore[operator, return-value]
