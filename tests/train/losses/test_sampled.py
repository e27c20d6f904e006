"""Sampled softmax: which tokens a loss is over, and that it is the loss over exactly these."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_training import VOCAB, Formula, small_trainer
from torch.nn.functional import cross_entropy

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.errors import InputError
from babyllama.recipe import validate
from babyllama.train.losses.objectives import NextToken
from babyllama.train.losses.sampled import Sampled, candidates
from babyllama.train.optimizers.optim import Wsd
from conftest import sharp_model, tiny_config


@given(
    st.integers(1, 3000),
    st.lists(st.integers(-1, 2999), min_size=1, max_size=80),
    st.integers(1, 3000),
    st.integers(0, 10**9),
)
def test_a_set_holds_every_target_and_as_many_others_as_asked(vocab, drawn, size, start):
    targets = torch.tensor([IGNORE if t < 0 else t % vocab for t in drawn])
    chosen, places = candidates(targets, vocab, size, start)
    wanted = set(targets.tolist()) - {IGNORE}
    ids = chosen.tolist()
    assert ids == sorted(set(ids)) and wanted <= set(ids) and ids[0] >= 0 and ids[-1] < vocab
    asked = math.ceil(size / 128) * 128
    assert len(ids) == min(vocab, asked if len(wanted) <= asked else math.ceil(len(wanted) / 2048) * 2048)
    assert [IGNORE if p == IGNORE else ids[p] for p in places.tolist()] == targets.tolist()


def test_more_targets_than_asked_for_give_few_sizes():
    """Each size is a CUDA graph of its own."""
    sizes = {len(candidates(torch.arange(count), 20_000, 256, 0)[0]) for count in range(2_500, 6_000, 100)}
    assert sizes == {4_096, 6_144}


def test_the_sweep_runs_on_until_every_token_was_there():
    targets = torch.tensor([[5, 5, IGNORE]])
    first, second = (set(candidates(targets, 20_000, 2_000, start)[0].tolist()) for start in (0, 2_048))
    assert len(first & second) < 60  # the target, and where the sweeps meet
    seen: set[int] = set()
    for number in range(11):
        seen |= set(candidates(targets, 20_000, 2_000, number * 2_000)[0].tolist())
    assert len(seen) == 20_000


@pytest.mark.parametrize("tied", [True, False])
def test_it_is_the_loss_over_the_candidates_and_no_other_row_has_a_gradient(tied):
    model = sharp_model(tiny_config(tied=tied).model_copy(update={"vocab_size": 300})).requires_grad_()
    tokens = torch.randint(300, (3, 11), generator=torch.Generator().manual_seed(0))
    plain = Batch(tokens[:, :-1], tokens[:, 1:].masked_fill(tokens[:, 1:] % 7 == 0, IGNORE))
    rows = type("One", (), {"batch": lambda self, first, count: plain})()
    batch = Sampled(stages=((1.0, 0.2),)).over(rows, 300, 10).batch(0, 3)
    chosen = batch.extras["candidates"]
    assert len(chosen) == 128
    loss, _ = NextToken()(model, batch)
    loss.backward()
    head = model.lm_head.weight.grad.clone()
    model.zero_grad()
    hidden = model.hidden(plain.tokens)
    logits = (hidden @ model.lm_head.weight.T).flatten(0, 1)
    outside = torch.ones(300, dtype=torch.bool).index_fill(0, chosen, False)
    reference = cross_entropy(
        logits.masked_fill(outside, -math.inf), plain.targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    torch.testing.assert_close(head, model.lm_head.weight.grad, rtol=1e-4, atol=1e-5)
    if not tied:
        assert not head[outside].any()


def test_all_of_the_vocabulary_is_the_full_loss():
    batch = Formula().batch(0, 4)
    model = sharp_model(tiny_config().model_copy(update={"vocab_size": VOCAB}))
    over = Sampled(stages=((1.0, 1.0),)).over(Formula(), VOCAB, 100).batch(0, 4)
    assert over.extras["candidates"].tolist() == list(range(VOCAB)) and torch.equal(
        over.extras["places"], batch.targets
    )
    assert NextToken()(model, over)[0].item() == pytest.approx(NextToken()(model, batch)[0].item(), rel=1e-6)


def test_stages_go_by_the_row_and_the_last_is_the_stream_itself():
    recipe = Sampled()
    assert [recipe.share(done) for done in (0, 0.56, 0.57, 0.8, 0.81, 0.919, 0.92, 1.3)] == [
        0.2, 0.2, 0.28, 0.28, 0.5, 0.5, None, None]  # fmt: skip
    rows = recipe.over(Formula(), VOCAB, 100)
    assert [bool(rows.batch(first, 4).extras) for first in (0, 88, 92, 96)] == [True, True, False, False]
    assert torch.equal(rows.batch(8, 4).tokens, Formula().batch(8, 4).tokens)


@pytest.mark.parametrize("stages", [[], [[0.5, 0.2], [0.5, 0.3]], [[0.9, 0.0]], [[0.9, 1.2]], [[1.2, 0.5]]])
def test_stages_that_make_no_sense_are_refused(stages):
    with pytest.raises(InputError, match="sampled"):
        validate(Sampled, {"stages": stages}, "objective.sampled")


def test_a_training_stopped_in_a_stage_goes_on_bit_for_bit(tmp_path):
    def trainer(out, steps):
        made = small_trainer(tmp_path / out, steps=6, save_every=3)
        made.schedule, made.steps = Wsd(warmup=0, decay=1e-6), steps  # constant, however long
        made.stream = Sampled(stages=((0.4, 0.2), (0.8, 0.5))).over(Formula(), VOCAB, 6 * made.plan.rows)
        return made

    whole, half = trainer("whole", 6), trainer("half", 3)
    whole.train()
    half.train()
    half.run.unlock()
    again = trainer("half", 6)
    again.train()
    assert again.worker.fingerprint() == whole.worker.fingerprint()
