"""Objectives against torch's own cross-entropy on full logits."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from babyllama.data.streams.batches import IGNORE
from babyllama.train.losses import cross_entropy as ours
from babyllama.train.losses import head
from babyllama.train.losses.cross_entropy import linear_cross_entropy


def problem(rows=37, width=16, vocab=50, dtype=torch.float32, ignored=5):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(vocab, width, generator=g).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (rows,), generator=g)
    targets[:ignored] = IGNORE
    return hidden, weight, targets


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize("chunk_rows", [1, 7, 37, 1000])
def test_loss_and_gradients_equal_full_cross_entropy(chunk_rows, multiple):
    hidden, weight, targets = problem()
    (linear_cross_entropy(hidden, weight, targets, chunk_rows, multiple) * 0.37).backward()
    ours = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    reference = cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORE, reduction="sum")
    (reference * 0.37).backward()
    assert linear_cross_entropy(hidden, weight, targets, chunk_rows).item() == pytest.approx(reference.item(), rel=1e-6)
    torch.testing.assert_close(ours[0], hidden.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[1], weight.grad, atol=1e-5, rtol=1e-5)


def test_bf16_stays_close_to_float32():
    hidden, weight, targets = problem(dtype=torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    exact = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    reference = cross_entropy(exact[0] @ exact[1].T, targets, ignore_index=IGNORE, reduction="sum")
    reference.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference.item(), rel=1e-2)
    assert (hidden.grad.float() - exact[0].grad).norm() / exact[0].grad.norm() < 1e-2
    assert (weight.grad.float() - exact[1].grad).norm() / exact[1].grad.norm() < 1e-2


def test_token_zero_is_a_target_like_any_other():
    """Fault 22: ignore_index=0 masked a real token."""
    hidden, weight, _ = problem(rows=4)
    targets = torch.zeros(4, dtype=torch.int64)
    assert linear_cross_entropy(hidden, weight, targets).item() > 0


def test_nothing_to_predict_is_zero_loss_and_zero_gradient():
    hidden, weight, targets = problem(rows=5, ignored=5)
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert loss.item() == 0 and not weight.grad.any() and not hidden.grad.any()


def test_frozen_head_gets_no_gradient():
    hidden, weight, targets = problem()
    linear_cross_entropy(hidden, weight.detach(), targets).backward()
    assert hidden.grad is not None


def test_no_rows_give_no_gradient(monkeypatch):
    # fresh memory is often zero: here it is not
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: torch.full_like(*args, fill_value=7, **kwargs))
    hidden, weight = torch.zeros(0, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and hidden.grad.shape == (0, 8) and torch.equal(weight.grad, torch.zeros(11, 8))


@pytest.mark.parametrize("asked", [16, None])
def test_never_more_logits_than_a_chunk(monkeypatch, asked):
    """Also where the device chooses the chunk."""
    rows, real = [], ours.loss_and_gradient_
    monkeypatch.setattr(head.hardware, "chunk_rows", lambda _: 24)

    def watched(logits, targets, vocab):
        rows.append(len(logits))
        return real(logits, targets, vocab)

    monkeypatch.setattr(ours, "loss_and_gradient_", watched)
    hidden, weight = torch.randn(100, 8), torch.randn(31, 8)
    linear_cross_entropy(hidden, weight, torch.zeros(100, dtype=torch.int64), asked)
    assert max(rows) == (asked or 24) and sum(rows) == 100
