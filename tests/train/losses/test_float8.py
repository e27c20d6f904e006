"""The head in float8: its numbers against float64, with the rounding made again here bit by bit."""

import weakref

import pytest
import torch
from torch.nn.functional import cross_entropy

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.train.losses import float8
from babyllama.train.losses.cross_entropy import linear_cross_entropy
from babyllama.train.losses.float8 import SLOPE_SCALE, float8_cross_entropy, in_float8, rounded
from babyllama.train.losses.objectives import NextToken
from conftest import sharp_model, tiny_config


def problem(rows=70, width=32, vocab=1000, dtype=torch.float32):
    """Logits of deviation 2 and targets that the model mostly does not expect."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=g).to(dtype).requires_grad_()
    weight = (torch.randn(vocab, width, generator=g) * 2 / width**0.5).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (rows,), generator=g)
    targets[::9] = IGNORE
    return hidden, weight, targets


def to_bits(x, mantissa, lowest):
    """Float64 rounded half to even to `mantissa` bits behind the leading one; below 2^lowest the steps stay."""
    exponent = torch.frexp(x).exponent - 1
    step = torch.ldexp(torch.ones_like(x), exponent.clamp(min=lowest) - mantissa)
    return (x / step).round() * step


def e4m3(x):
    scale = x.abs().max().float().double() / 448
    return to_bits(x / scale, 3, -6) * scale


def by_hand(hidden, weight, targets):
    """Loss, ∂hidden, ∂weight in float64, rounded only where the method says."""
    x, w = e4m3(hidden.detach().double()), e4m3(weight.detach().double())
    logits, kept = x @ w.T, targets != IGNORE
    loss = cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    slopes = logits.softmax(-1)
    slopes[kept, targets[kept]] -= 1
    slopes = to_bits(slopes * kept[:, None] * SLOPE_SCALE, 2, -14) / SLOPE_SCALE
    return loss, slopes @ w, slopes.T @ x


@pytest.mark.parametrize("chunk_rows", [16, 48, None])
def test_the_numbers_are_the_methods(chunk_rows):
    hidden, weight, targets = problem()
    loss = float8_cross_entropy(hidden, weight, targets, chunk_rows)
    (loss * 0.37).backward()
    wanted = by_hand(hidden, weight, targets)
    assert loss.item() == pytest.approx(wanted[0].item(), rel=1e-6)
    for ours, theirs in zip((hidden.grad, weight.grad), wanted[1:], strict=True):
        # a number within float32's error of the middle of two of float8 may go to the other
        assert (ours.double() / 0.37 - theirs).norm() < 1e-3 * theirs.norm()


def test_a_chunk_is_gone_before_the_next_is_made(monkeypatch):
    """Its logits' gradient is what fills a card: half a chunk's logits."""
    real, seen = float8._slopes, []

    def watched(*given):
        assert all(earlier() is None for earlier in seen)
        loss, slopes = real(*given)
        seen.append(weakref.ref(slopes))
        return loss, slopes

    monkeypatch.setattr(float8, "_slopes", watched)
    float8_cross_entropy(*problem(), 16).backward()
    assert len(seen) == 5


def test_it_is_close_to_the_exact_loss():
    """Rounding to nearest errs by 1/16 at most in e4m3, by 1/8 in e5m2, a third of that in the mean, and both ways."""
    hidden, weight, targets = problem(rows=512)
    exact = [p.detach().double().requires_grad_() for p in (hidden, weight)]
    reference = cross_entropy(exact[0] @ exact[1].T, targets, ignore_index=IGNORE, reduction="sum")
    reference.backward()
    loss = float8_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=2e-3)
    for ours, theirs in ((hidden.grad, exact[0].grad), (weight.grad, exact[1].grad)):
        assert 0.01 < (ours.double() - theirs).norm() / theirs.norm() < 0.07
        assert (ours.double() * theirs).sum() / theirs.square().sum() == pytest.approx(1, abs=0.02)  # nor is it shorter


def test_the_tail_of_the_vocabulary_is_not_lost():
    """At ChatGLM2's 64,793 tokens most probabilities are far below the largest; together they push as hard."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 64793, generator=g) * 2
    logits[:, 0] = 13
    _, slopes = float8._slopes(logits.clone(), torch.zeros(4, dtype=torch.int64), 64793)
    exact = logits.double().softmax(-1)[:, 1:]
    assert exact.max() < 0.02 and exact.median() < 2e-6 and exact.sum(1).min() > 0.4
    torch.testing.assert_close(slopes[:, 1:].double().sum(1) / SLOPE_SCALE, exact.sum(1), rtol=5e-3, atol=0)
    assert ((exact * 448).to(float8.E4M3).double().sum(1) / 448 < 0.98 * exact.sum(1)).all()  # why it is not e4m3


def test_both_layouts_hold_the_same_and_the_largest_number_stays():
    matrix = torch.randn(37, 48, generator=torch.Generator().manual_seed(1)) * 1e-4
    found = rounded(matrix)
    assert torch.equal(found.rows.float().T, found.columns.float()) and found.columns.is_contiguous()
    assert (found.rows.float().abs().max() * found.scale).item() == pytest.approx(matrix.abs().max().item(), rel=1e-6)
    assert not rounded(torch.zeros(16, 16)).rows.float().any()


def test_half_precision_and_a_frozen_head():
    hidden, weight, targets = problem(dtype=torch.bfloat16)
    float8_cross_entropy(hidden, weight.detach(), targets).backward()
    assert hidden.grad.dtype == torch.bfloat16 and weight.grad is None
    wanted = by_hand(hidden, weight, targets)[1]
    assert (hidden.grad.double() - wanted).norm() < 0.02 * wanted.norm()


def test_no_rows_and_no_targets_give_no_gradient():
    for rows in (0, 5):
        hidden, weight, _ = problem(rows=rows, vocab=11)
        loss = float8_cross_entropy(hidden, weight, torch.full((rows,), IGNORE))
        loss.backward()
        assert loss == 0 and not hidden.grad.any() and not weight.grad.any()


def test_a_device_without_float8_multiplies_as_ever():
    """A run's identity does not depend on the card: the same recipe trains everywhere."""
    model = sharp_model(tiny_config())
    tokens = torch.arange(24).view(2, 12)
    batch = Batch(tokens, tokens + 1)
    assert torch.equal(NextToken(fp8_head=True)(model, batch)[0], NextToken()(model, batch)[0])


@pytest.mark.parametrize(("width", "dtype", "able"), [
    (32, torch.bfloat16, True), (32, torch.float16, True), (32, torch.float32, False), (24, torch.bfloat16, False),
])  # fmt: skip
def test_who_asks_for_float32_gets_it(monkeypatch, width, dtype, able):
    monkeypatch.setattr(float8, "multiplies_float8", lambda device: device.type == "cpu")
    assert in_float8(torch.zeros(2, 3, width, dtype=dtype)) == able


def test_bfloat16_errs_less():
    """What float8 costs beside the usual way: some 4 % of the gradient's norm instead of 0.4 %."""
    hidden, weight, targets = problem(rows=512, dtype=torch.bfloat16)
    wanted = by_hand(hidden, weight, targets)[2]
    linear_cross_entropy(hidden, weight, targets).backward()
    assert 0.01 < (weight.grad.double() - wanted).norm() / wanted.norm() < 0.07
