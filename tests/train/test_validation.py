"""evaluate_loss against a loss typed out in float64, whatever the chunks, the masks and the mode."""

from __future__ import annotations

import math

import pytest
import torch

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.train import validation
from babyllama.train.validation import LossSums, evaluate_loss

V, B, T = 53, 4, 20


def make_model() -> Transformer:
    model = Transformer(ModelConfig(
        vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=T))  # fmt: skip
    initialise(model, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 10
    return model


def make_batches(count: int = 3) -> list[Batch]:
    """Random tokens; half of the targets count; two documents in each row."""
    draw = torch.Generator().manual_seed(4)
    batches = []
    for _ in range(count):
        tokens = torch.randint(V, (B, T), generator=draw)
        targets = tokens.roll(-1, 1).where(torch.rand(B, T, generator=draw) < 0.5, IGNORE)
        segments = (torch.arange(T) >= 8).long().expand(B, T)
        positions = torch.where(torch.arange(T) >= 8, torch.arange(T) - 8, torch.arange(T)).expand(B, T)
        batches.append(Batch(tokens=tokens, targets=targets, positions=positions, segments=segments))
    return batches


def by_hand(model: Transformer, batches: list[Batch]) -> LossSums:
    """Document by document and target by target, in float64."""
    nll, tokens, correct = 0.0, 0, 0
    for batch in batches:
        for row in range(B):
            for document in (slice(0, 8), slice(8, T)):
                logits = model(batch.tokens[row : row + 1, document])[0].double()
                for scores, target in zip(logits, batch.targets[row, document].tolist(), strict=True):
                    if target != IGNORE:
                        nll += math.log(sum(math.exp(s) for s in (scores - scores[target]).tolist()))
                        correct += int(scores.argmax() == target)
                        tokens += 1
    return LossSums(nll, tokens, correct)


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_equals_the_loss_by_hand(monkeypatch, chunk):
    monkeypatch.setattr(validation, "CHUNK_ROWS", chunk)
    model, batches = make_model(), make_batches()
    found, expected = evaluate_loss(model, batches), by_hand(model, batches)
    assert (found.tokens, found.correct) == (expected.tokens, expected.correct)
    assert found.tokens == sum(int((b.targets != IGNORE).sum()) for b in batches)
    assert found.nll_nats == pytest.approx(expected.nll_nats, rel=1e-5)


def test_never_more_logits_than_a_chunk(monkeypatch):
    monkeypatch.setattr(validation, "CHUNK_ROWS", 8)
    model = make_model()
    rows = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0]))
    sums = evaluate_loss(model, make_batches())
    assert max(rows) == 8 and sum(rows) == sums.tokens


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back(training):
    model = make_model().train(training)
    evaluate_loss(model, make_batches(1))
    assert model.training is training

    def failing():
        yield from make_batches(1)
        raise OSError

    with pytest.raises(OSError):
        evaluate_loss(model, failing())
    assert model.training is training
    model(torch.tensor([[1, 2]])).sum().backward()  # gradients still flow outside


def test_nothing_to_measure():
    ignored = Batch(tokens=torch.zeros(1, 4, dtype=torch.long), targets=torch.full((1, 4), IGNORE))
    assert evaluate_loss(make_model(), []) == evaluate_loss(make_model(), [ignored]) == LossSums()


def test_sums_divide_once():
    one, two = LossSums(10.0, 5, 2, 20), LossSums(2.0, 1, 1, 4)
    both = one + two
    assert both == LossSums(12.0, 6, 3, 24)
    assert both.loss == 2.0 and both.perplexity == pytest.approx(math.e**2) and both.accuracy == 0.5
    assert both.bits_per_byte == pytest.approx(12 / math.log(2) / 24)
    assert sum([one, two], LossSums()) == both
    assert both.figures["bits_per_byte"] == both.bits_per_byte and both.figures["tokens"] == 6
    assert (both + LossSums(1.0, 1, 0)).bits_per_byte is None  # bytes of a part are not known
    assert LossSums(1e6, 1, 0).perplexity < math.inf
