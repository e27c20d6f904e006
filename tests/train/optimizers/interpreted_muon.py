"""Run by test_muon_kernels.py in a process of its own: Muon's kernels in Triton's interpreter, on a CPU."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from babyllama.train.optimizers import kernels, muon

kernels.BLOCK = 64


def drawn(*shape):
    return [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


for shape in ((8, 24), (3, 5, 7)):
    for number in (None, 0.0, 1.0):
        refused = None if number is None else torch.tensor(number)
        grads, ours, theirs = drawn(*shape), drawn(*shape), drawn(*shape)
        if number == 1.0:
            grads[1][0] = torch.nan
        ahead = kernels.look_ahead_(grads, ours, 0.9, refused)
        expected = muon.look_ahead_(grads, theirs, 0.9, refused)
        torch.testing.assert_close(ahead.float(), expected, atol=1e-2, rtol=1e-2, equal_nan=True)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
        every_row = torch.rand(3, *shape[:-1], 1)
        for rates in (0.1, torch.tensor(0.1), every_row):
            for decay in (1.0, 0.9, torch.tensor(0.9)):
                kernels.move_(ours, ahead, rates, decay, refused)
                muon.move_(theirs, ahead, rates, decay, refused)
                torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
print("all as in PyTorch")
