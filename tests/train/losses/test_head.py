"""The head and its loss in chunks: what is held at a time. Their numbers: test_cross_entropy.py, test_distil.py."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from babyllama.train.losses import distil
from babyllama.train.losses.cross_entropy import linear_cross_entropy
from babyllama.train.losses.distil import Distil, soft_loss
from babyllama.train.losses.head import head_loss

ROWS, WIDTH, VOCAB, CHUNK = 40, 8, 31, 7


class Logits(TorchDispatchMode):
    """Watches every tensor with a column for each token, but the head itself, (WIDTH, VOCAB) where it is turned."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.born: list[StorageWeakRef] = []
        self.before: list[int] = []  # how many others lived when a product made logits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        product = func is torch.ops.aten.mm.default and args[1].shape[1] == VOCAB
        if product:
            self.before.append(sum(not other.expired() for other in self.born))
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.ndim == 2 and made.shape[1] == VOCAB and made.shape[0] != WIDTH:
            self.rows.append(made.shape[0])
            self.born.append(StorageWeakRef(made.untyped_storage()))
        return made


@pytest.fixture
def problem():
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(ROWS, WIDTH, generator=g), torch.randn(VOCAB, WIDTH, generator=g)
    return hidden.requires_grad_(), weight.requires_grad_()


def test_a_chunk_is_gone_before_the_next_is_made(problem):
    def slope(logits, rows):
        assert len(logits) == len(range(ROWS)[rows])
        return logits.sum().float()

    with Logits() as seen:
        head_loss(*problem, slope, CHUNK)
    assert seen.before == [0] * 6 and max(seen.rows) == CHUNK


def test_no_loss_makes_more_logits_than_a_chunk(problem, monkeypatch):
    monkeypatch.setattr(distil, "CHUNK_ROWS", CHUNK)
    hidden, weight = problem
    for loss, products in (
        (lambda: linear_cross_entropy(hidden, weight, torch.zeros(ROWS, dtype=torch.int64), CHUNK), 6),
        (lambda: soft_loss(Distil(), hidden, weight, hidden.detach(), weight.detach(), torch.ones(ROWS) > 0), 12),
    ):
        with Logits() as seen:
            loss().backward()
        assert len(seen.before) == products and max(seen.rows) == CHUNK


def test_the_gradient_is_what_the_slope_leaves_in_the_logits_place(problem):
    """Any loss will do: here the sum of squares, and a head padded to a multiple."""
    hidden, weight = problem

    def slope(logits, rows):
        loss = logits.square().sum()
        logits *= 2
        return loss

    (head_loss(hidden, weight, slope, CHUNK, multiple=16) * 3).backward()
    found = hidden.grad, weight.grad
    exact = [p.detach().double().requires_grad_() for p in problem]
    ((exact[0] @ exact[1].T).square().sum() * 3).backward()
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs.grad, rtol=1e-5, atol=1e-5)
