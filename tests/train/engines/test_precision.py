"""Half copies of float32 weights: their gradients against plain autograd, added up in float32; recomputing them."""

from __future__ import annotations

import pytest
import torch
from small_training import Formula, small_trainer
from torch import nn
from torch.func import functional_call

from babyllama.model.transformer import Transformer, recompute
from babyllama.train.engines.precision import InHalf, LossModule
from babyllama.train.losses.objectives import NextToken

HALVES = [torch.bfloat16, torch.float16]


def small_loss(tmp_path, tie=True, objective=None) -> LossModule:
    model: Transformer = small_trainer(tmp_path / "run", tie=tie).model
    return LossModule(model, objective or NextToken())


def gradients(loss):
    return {name: None if p.grad is None else p.grad.clone() for name, p in loss.named_parameters()}


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("dtype", HALVES)
def test_loss_and_gradients_are_those_of_autograd_through_to(tmp_path, dtype, tie):
    loss, batch = small_loss(tmp_path, tie), Formula().batch(0, 4)
    found, _ = InHalf(loss, dtype)(batch)
    (found * 64).backward()
    ours = gradients(loss)
    loss.zero_grad()
    copies = {name: p.to(dtype) for name, p in loss.named_parameters()}
    expected, _ = functional_call(loss, copies, (batch,))
    (expected * 64).backward()
    assert torch.equal(found, expected) and found.dtype == torch.float32
    assert ours.keys() == gradients(loss).keys()
    for name, grad in gradients(loss).items():
        assert ours[name].dtype == torch.float32 and torch.equal(ours[name], grad), name


@pytest.mark.parametrize("dtype", HALVES)
def test_tied_weights_stay_tied(tmp_path, dtype):
    seen = []

    def objective(model, batch):
        seen.append((model.lm_head.weight, model.embed_tokens.weight, model.norm.weight))
        return NextToken()(model, batch)

    loss = small_loss(tmp_path, True, objective)
    assert "model.lm_head.weight" not in dict(loss.named_parameters())  # once, as embed_tokens
    total, _ = InHalf(loss, dtype)(Formula().batch(0, 2))
    total.backward()
    (head, embedding, norm), model = seen[0], loss.model
    assert head is embedding and head.dtype == norm.dtype == dtype
    assert model.lm_head.weight is model.embed_tokens.weight and model.embed_tokens.weight.dtype == torch.float32
    apart = small_loss(tmp_path / "apart", False)
    apart.model.load_state_dict({**model.state_dict(), "lm_head.weight": model.embed_tokens.weight})
    InHalf(apart, dtype)(Formula().batch(0, 2))[0].backward()
    both = apart.model.embed_tokens.weight.grad + apart.model.lm_head.weight.grad
    torch.testing.assert_close(model.embed_tokens.weight.grad, both, rtol=2e-2, atol=2e-2)


class Slope(nn.Module):
    """A loss whose gradient is the batch, and a weight that no loss uses."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        return (self.used * batch).float(), {}


@pytest.mark.parametrize("dtype,large", [(torch.bfloat16, 256.0), (torch.float16, 2048.0)])
def test_micro_batches_add_up_in_float32(dtype, large):
    """In half precision large + 0.25 is large, sixty-four times over."""
    loss = Slope()
    half = InHalf(loss, dtype)
    for gradient in [large, *[0.25] * 64]:
        half(torch.tensor(gradient, dtype=dtype))[0].backward()
    assert loss.used.grad.item() == large + 16 and loss.used.grad.dtype == torch.float32
    total = torch.tensor(large, dtype=dtype)
    for _ in range(64):
        total += 0.25
    assert total.item() == large  # what the test would see otherwise


@pytest.mark.parametrize("dtype", HALVES)
def test_a_weight_that_is_not_used_has_no_gradient(dtype):
    loss = Slope()
    InHalf(loss, dtype)(torch.tensor(2.0, dtype=dtype))[0].backward()
    assert loss.unused.grad is None and loss.used.grad.item() == 2


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_recomputing_gives_the_same_gradients_to_the_bit(tmp_path, dtype, tie):
    loss, batch = small_loss(tmp_path, tie), Formula().batch(0, 4)
    module = loss if dtype == torch.float32 else InHalf(loss, dtype)
    module(batch)[0].backward()
    kept, passes = gradients(loss), []
    loss.zero_grad()

    def counted(block, *rest):
        passes.append(block)
        return recompute(block, *rest)

    loss.model.through = counted
    module(batch)[0].backward()
    assert len(passes) == 2
    assert all(torch.equal(kept[name], grad) for name, grad in gradients(loss).items())


def test_recomputing_trains_to_the_same_bits(tmp_path):
    ends = []
    for name, on in (("kept", False), ("again", True)):
        trainer = small_trainer(tmp_path / name, steps=3, recompute=on, dtype=torch.bfloat16, accumulate=2)
        trainer.train()
        ends.append({n: p.detach().clone() for n, p in trainer.model.named_parameters()})
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())


@pytest.mark.parametrize("dtype", HALVES)
def test_what_sleeps_is_copied_without_a_gradient(tmp_path, dtype):
    """LISA's other blocks: their half copies want none, so no product is made for it."""
    seen = {}

    def objective(model, batch):
        seen.update({name: p.requires_grad for name, p in model.named_parameters()})
        return NextToken()(model, batch)

    loss = small_loss(tmp_path, True, objective)
    loss.model.layers[0].requires_grad_(False)
    InHalf(loss, dtype)(Formula().batch(0, 2))[0].backward()
    assert {name for name, wants in seen.items() if not wants} == {n for n in seen if n.startswith("layers.0.")}
    assert all((p.grad is None) == n.startswith("model.layers.0.") for n, p in loss.named_parameters())


def saved_bytes(module, batch):
    """What one forward pass keeps for its backward pass, in bytes, each storage once."""
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(batch)
    return sum(kept.values())


def test_recomputing_keeps_less_memory(tmp_path):
    """A block that is run again keeps its input alone: less than half of all that is kept otherwise."""
    loss, batch = small_loss(tmp_path), Formula().batch(0, 64)
    whole = saved_bytes(loss, batch)
    loss.model.through = recompute
    assert saved_bytes(loss, batch) < 0.5 * whole
