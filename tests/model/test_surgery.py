"""replace_modules: what is picked is replaced, once, and nothing inside it is looked at."""

from __future__ import annotations

import torch
from torch import nn

from babyllama.model.surgery import dense_weight, replace_modules


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


def _tree() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.ModuleDict({"up": nn.Linear(3, 4), "act": nn.SiLU()}))


def test_replaces_what_is_picked_and_names_it() -> None:
    model = _tree().eval()
    names = replace_modules(model, lambda name, m: isinstance(m, nn.Linear), lambda name, m: Wrapper(m))
    assert names == ["0", "1.up"]
    assert isinstance(model[0], Wrapper) and isinstance(model[0].inner, nn.Linear)
    assert not model[0].training and not model[0].inner.training


def test_does_not_visit_what_it_replaced() -> None:
    model = _tree()
    names = replace_modules(model, lambda name, m: isinstance(m, nn.ModuleDict | nn.Linear), lambda name, m: Wrapper(m))
    assert names == ["0", "1"] and isinstance(model[1].inner["up"], nn.Linear)


def test_dense_weight_of_a_linear_is_its_weight() -> None:
    linear = nn.Linear(2, 3, bias=False)
    assert dense_weight(linear) is linear.weight and torch.equal(dense_weight(linear), linear.weight)
