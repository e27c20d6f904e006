"""GroupedLinear: its matrix is the grid's, dtypes leave it alone, gradients reach the input and adapters."""

from __future__ import annotations

import pytest
import torch

from babyllama.model.wrappers import LoraLinear
from babyllama.quant.grid import Grid
from babyllama.quant.linear import GroupedLinear, PackedEmbedding


def made(bits=4, group_size=32, inputs=56, outputs=24, ordered=False):
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(outputs, inputs, generator=generator)
    order = torch.randperm(inputs, generator=generator) if ordered else None
    grid = Grid(bits=bits, group_size=group_size)
    solution = grid.nearest(weight if order is None else weight[:, order])._replace(order=order)
    return GroupedLinear.of(solution), solution.dense()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size,ordered", [(32, False), (32, True), (None, False), (16, True)])
def test_it_is_the_grids_matrix_and_its_gradient(bits, group_size, ordered):
    module, dense = made(bits, group_size, ordered=ordered)
    assert torch.equal(module.dense_weight(), dense)
    x = torch.randn(2, 3, 56, requires_grad=True)
    y = module(x)
    torch.testing.assert_close(y, x @ dense.T)
    y.sum().backward()
    torch.testing.assert_close(x.grad, dense.sum(0).expand(2, 3, -1))


def test_another_dtype_leaves_the_weights_alone():
    module, dense = made()
    module.to(torch.bfloat16).float()
    assert torch.equal(module.dense_weight(), dense) and module.state_dict()["scales"].dtype == torch.float16
    assert module(torch.randn(2, 56).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("outputs", [16, 37])
@pytest.mark.parametrize("group_size,inputs", [(32, 96), (64, 128), (128, 256), (256, 512), (512, 512), (None, 96)])
@pytest.mark.parametrize("ordered", [False, True])
def test_few_rows_on_a_cpu_are_multiplied_packed(monkeypatch, bits, outputs, group_size, inputs, ordered):
    """In bfloat16, by PyTorch's own product, which knows some groups and whole blocks of outputs only."""
    module, dense = made(bits, group_size=group_size, inputs=inputs, outputs=outputs, ordered=ordered)
    monkeypatch.setattr("babyllama.quant.linear.unpacked_product", None)  # the slow way is not taken
    for shape in ((1, inputs), (2, 3, inputs)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
        found, expected = module(x), x.float() @ dense.T
        assert found.shape == expected.shape and found.dtype == torch.bfloat16
        assert (found.float() - expected).norm() < 5e-3 * expected.norm()  # a dense product in bfloat16: 3e-3


def test_what_a_cpu_multiplies_moves_with_the_model():
    """The packed product's own copy is made anew after new weights came in by way of a dtype or a device."""
    module, _ = made(4, 32, 96, 16)
    x = torch.randn(1, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = module(x)
    module.scales *= 2
    assert torch.equal(module.to(torch.bfloat16)(x), 2 * before)


def test_autograd_keeps_packed_words_only():
    module, _ = made(inputs=128, outputs=64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        module(torch.randn(2, 128, requires_grad=True))
    assert kept and max(t.nbytes for t in kept) <= 64 * 128 // 2


def test_adapters_train_on_top():
    module, dense = made()
    lora = LoraLinear(module, rank=2, scale=1.0)
    torch.nn.init.normal_(lora.lora_A)
    torch.nn.init.normal_(lora.lora_B)
    x = torch.randn(3, 56, requires_grad=True)
    lora(x).sum().backward()
    full = dense + lora.lora_B.detach() @ lora.lora_A.detach()
    torch.testing.assert_close(x.grad, full.sum(0).expand(3, -1))
    assert lora.lora_A.grad is not None and not list(module.parameters())


def test_an_embedding_reads_rows():
    module, dense = made(ordered=True)
    tokens = torch.tensor([[0, 5], [2, 2]])
    found = PackedEmbedding(module, torch.float32)
    assert torch.equal(found(tokens), dense[tokens])
    assert found.to(torch.bfloat16)(tokens).dtype == torch.bfloat16
