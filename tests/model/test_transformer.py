"""Running blocks: recomputing keeps a block's input only, runs the block again, and changes no number."""

from __future__ import annotations

import pytest
import torch

from babyllama.model.transformer import direct, recompute
from conftest import sharp_model


def kept_and_runs(model, tokens, through):
    """(numbers that the forward pass kept for backward inside the blocks, runs of each block, gradients)."""
    model.through, kept, runs = through, [0], [0]

    def run(block, *rest):
        def note(tensor):
            kept[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            return through(block, *rest)

    model.through = run
    handles = [block.register_forward_pre_hook(lambda *_: runs.append(1)) for block in model.layers]
    model(tokens).square().mean().backward()
    for handle in handles:
        handle.remove()
    return kept[0], sum(runs) / len(model.layers), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("lent", [False, True], ids=["own", "lent"])
def test_recompute_keeps_the_input_only_and_runs_twice(config, tokens, lent):
    found = []
    for through in (direct, recompute):
        model = sharp_model(config).requires_grad_(True)
        if lent:  # half copies stand in for parameters so: tensors, no parameters
            name = "input_layernorm"
            own = model.layers[0].get_submodule(name).weight
            del model.layers[0].get_submodule(name).weight
            model.layers[0].get_submodule(name).weight = own * 1
        found.append(kept_and_runs(model, tokens, through))
    (whole, once, expected), (little, twice, gradients) = found
    assert (once, twice) == (1, 2)
    inputs = 2 * tokens.numel() * config.hidden_size * config.num_hidden_layers
    assert little <= inputs < whole / 8
    assert all(map(torch.equal, gradients, expected))
