"""Run by test_since_kernels.py in a process of its own: attention's kernels in Triton's interpreter, on a CPU."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch.nn.functional import scaled_dot_product_attention

from babyllama.model import since_kernels
from babyllama.model.attention import ShiftedSparse, documents, documents_for, sums_width
from babyllama.model.since_kernels import Tile, Tiles

torch.use_deterministic_algorithms(True)  # what is not written is NaN
CASES = [(2, 4, 2, 75, 16, None), (1, 4, 4, 96, 32, 24), (2, 6, 3, 64, 16, 40), (1, 3, 1, 33, 16, 10)]
TILES = [
    Tiles(Tile(32, 16, 4, 1), Tile(16, 32, 4, 1), Tile(16, 32, 4, 1)),
    Tiles(Tile(16, 32, 4, 1), Tile(32, 16, 4, 1), Tile(32, 16, 4, 1)),
]

for number, (B, H, K, T, D, group) in enumerate(CASES):
    since_kernels.SHORT = TILES[number % 2]
    generator = torch.Generator().manual_seed(number)
    segments = (torch.rand(B, T, generator=generator) < 0.06).long().cumsum(1)
    mask = documents(segments) if group is None else documents_for(ShiftedSparse(group_size=group), segments)
    q, k, v, grad = (torch.randn(B, T, n, D, generator=generator).transpose(1, 2) for n in (H, K, K, H))
    parts = [x.double().requires_grad_() for x in (q, k, v)]
    expected = scaled_dot_product_attention(*parts, attn_mask=mask.dense(H), enable_gqa=True)
    expected.backward(grad.double())
    for engine in (False, True):  # whether blocks are read by Hopper's copying engine
        since_kernels._hopper = lambda _, engine=engine: engine
        out, sums = since_kernels.forward(q, k, v, mask.first, sums_width(T))
        gradients = since_kernels.backward(grad, out, sums, q, k, v, *mask)
        for found, wanted in zip((out, *gradients), (expected, *(part.grad for part in parts)), strict=True):
            torch.testing.assert_close(found.transpose(1, 2).double(), wanted, rtol=0, atol=1e-5)
print("all as the mask of all pairs")
