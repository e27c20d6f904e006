"""NEFTune's noise: its size by the document's own length, only in training, drawn from (seed, step, rank)."""

from __future__ import annotations

import pytest
import torch
from small_training import small_trainer

from babyllama.data.streams.batches import Batch
from babyllama.train.losses.objectives import NextToken, lengths
from babyllama.train.state import seed_step
from babyllama.train.validation import evaluate_loss
from conftest import sharp_model, tiny_config

ALPHA = 5.0


def packed() -> Batch:
    """Two rows of 20: documents of 5 and 12 and three places of padding; one of 20."""
    tokens = torch.randint(67, (2, 20), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0] * 5 + [1] * 12 + [2] * 3, [0] * 20])
    positions = torch.tensor([[*range(5), *range(12), *range(3)], [*range(20)]])
    return Batch(tokens, tokens.clone(), positions, segments)


def noise(model, batch, step):
    """What is added to the embeddings in one step."""
    seed_step(1, step, 0)
    given = []
    original = model.hidden
    model.hidden = lambda *args, embedded=None, **kw: given.append(embedded) or original(*args, embedded=embedded, **kw)
    NextToken(neftune=ALPHA)(model, batch)
    del model.hidden
    return given[0] - model.embed_tokens(batch.tokens)


def test_lengths_are_the_documents_own():
    assert lengths(packed()).tolist() == [[5.0] * 5 + [12.0] * 12 + [3.0] * 3, [20.0] * 20]
    assert lengths(Batch(*[torch.zeros(2, 7, dtype=torch.int64)] * 2)).tolist() == [[7.0] * 7] * 2


def test_noise_is_uniform_and_as_large_as_the_paper_says():
    model, batch = sharp_model(tiny_config()).train(), packed()
    drawn = torch.stack([noise(model, batch, step) for step in range(300)])  # (300, B, T, C)
    bound = ALPHA / (lengths(batch) * 32).sqrt()
    assert (drawn.abs().amax((0, 3)) <= bound + 1e-5).all() and (drawn.abs().amax((0, 3)) > 0.99 * bound).all()
    unit = drawn / bound[..., None]
    assert abs(unit.mean().item()) < 0.005 and unit.var().item() == pytest.approx(1 / 3, rel=0.01)
    fresh = unit[0].flatten(), unit[1].flatten()
    assert abs(torch.corrcoef(torch.stack(fresh))[0, 1].item()) < 0.1


def test_seed_step_and_rank_decide():
    def drawn(*key):
        seed_step(*key)
        return torch.rand(8)

    assert torch.equal(drawn(1, 2, 3), drawn(1, 2, 3))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not torch.equal(drawn(1, 2, 3), drawn(*other))


def test_off_in_eval_and_at_zero():
    model, batch = sharp_model(tiny_config()), packed()
    plain = NextToken()(model, batch)[0]
    assert torch.equal(NextToken(neftune=ALPHA)(model, batch)[0], plain)
    measured = evaluate_loss(model.train(), [batch]).nll_nats
    assert measured == pytest.approx(plain.item(), rel=1e-5)
    assert not torch.equal(NextToken(neftune=ALPHA)(model, batch)[0], plain)
    assert torch.equal(NextToken()(model, batch)[0], plain)


def test_gradients_flow_through_the_noise_into_the_embedding():
    model, batch = sharp_model(tiny_config(tied=False)).train().requires_grad_(True), packed()
    NextToken(neftune=ALPHA)(model, batch)[0].backward()
    assert model.embed_tokens.weight.grad.abs().sum() > 0


def test_two_trainings_of_one_seed_are_the_same_and_of_two_are_not(tmp_path):
    ends = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trainer = small_trainer(tmp_path / name, objective=NextToken(neftune=ALPHA), seed=seed, steps=3)
        trainer.train()
        ends.append(trainer.model.embed_tokens.weight.detach().clone())
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])
