"""A module tree without weights, kept by engines that take the real one apart: gathered weights make it whole again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from babyllama.model.transformer import Transformer


class Skeleton:
    """The structure of `model` as it is now; its parameters take no memory, tied ones stay tied."""

    def __init__(self, model: Transformer) -> None:
        empty: dict[int, Any] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()
        }
        self.bare = copy.deepcopy(model, empty)
        first = {id(p): name for name, p in model.named_parameters()}
        self.first_name = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}

    def filled(self, gather: Callable[[str], Tensor | None], device: torch.device) -> Transformer:
        """A new model on `device`.

        Args:
            gather: name → the whole weight, or None on ranks that do without; called in the same order everywhere.

        Returns:
            The model; without weights where `gather` gave none.
        """
        model = copy.deepcopy(self.bare)
        trained = {name: p.requires_grad for name, p in model.named_parameters()}
        found = {}
        for name in trained:
            whole = gather(name)
            if whole is not None:
                found[name] = nn.Parameter(whole, trained[name])
        if not found:
            return model
        model.load_state_dict({name: found[first] for name, first in self.first_name.items()}, assign=True)
        return model.to(device)
