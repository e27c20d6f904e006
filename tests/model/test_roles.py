"""Every parameter has one role, wherever the model is wrapped; the oracle is where the modules lie."""

import pytest
from small_training import small_trainer
from torch import nn

from babyllama.model.laws import ClexRope
from babyllama.model.lora import Dora
from babyllama.model.roles import Role, exact, role
from babyllama.train.engines.precision import LossModule
from babyllama.train.losses.objectives import NextToken


@pytest.mark.parametrize("adapter", [None, Dora(rank=2, train=("embed_tokens", "lm_head", "norms"))])
def test_every_parameter_has_the_role_of_its_place(tmp_path, adapter):
    wanted = {} if adapter is None else {"adapter": adapter}
    model = small_trainer(tmp_path / "run", tie=False, rope=ClexRope(max_t=4), **wanted).model
    places = {Role.EMBEDDING: model.embed_tokens, Role.HEAD: model.lm_head, Role.ROPE: model.rope}
    owner = {id(p): place for place, module in places.items() for p in module.parameters()}
    for name, parameter in LossModule(model, NextToken()).named_parameters():
        inside = Role.MATRIX if parameter.ndim == 2 else Role.VECTOR
        assert role(name, parameter) == owner.get(id(parameter), inside), name
        assert exact(name) == (owner.get(id(parameter)) == Role.ROPE)


def test_a_tied_head_is_the_embedding(tmp_path):
    model = small_trainer(tmp_path / "run").model
    assert isinstance(model.lm_head, nn.Linear)
    assert Role.HEAD not in {role(name, p) for name, p in model.named_parameters()}
