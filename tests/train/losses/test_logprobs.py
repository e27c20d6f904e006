"""log π of targets and its gradient, against a float64 model of two lines."""

import pytest
import torch

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.train.losses import logprobs
from babyllama.train.losses.logprobs import head_logprobs, token_logprobs


@pytest.mark.parametrize("chunk", [3, 2048])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_float64(monkeypatch, chunk, temperature):
    monkeypatch.setattr(logprobs, "CHUNK_ROWS", chunk)
    torch.manual_seed(0)
    hidden, weight, by = torch.randn(7, 5), torch.randn(11, 5), torch.randn(7)
    targets = torch.randint(0, 11, (7,))
    mine = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    found, entropy = head_logprobs(*mine, targets, temperature)
    (found * by).sum().backward()

    theirs = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    log_p = (theirs[0] @ theirs[1].T / temperature).log_softmax(-1)
    wanted = log_p[torch.arange(7), targets]
    (wanted * by.double()).sum().backward()
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(entropy.double(), -(log_p.exp() * log_p).sum(-1), atol=1e-6, rtol=1e-6)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, atol=1e-6, rtol=1e-5)


def test_places_without_a_target_are_zero_and_teach_nothing():
    config = ModelConfig(vocab_size=17, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=8)  # fmt: skip
    model = Transformer(config)
    initialise(model, 0)
    tokens = torch.randint(0, 17, (2, 6))
    targets = tokens.roll(-1, 1).clone()
    targets[:, :3] = IGNORE
    targets[1] = IGNORE
    told = token_logprobs(model, Batch(tokens, targets))
    wanted = model(tokens).log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    kept = targets != IGNORE
    torch.testing.assert_close(told.logprobs, wanted.where(kept, torch.zeros(())))
    assert not told.entropy[~kept].any() and (told.entropy[kept] > 0).all()
    told.logprobs.sum().backward()
    assert model.embed_tokens.weight.grad.isfinite().all()


def test_frozen_head_gets_no_gradient():
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    head_logprobs(hidden, weight, torch.tensor([0, 1, 2]))[0].sum().backward()
    assert hidden.grad is not None and weight.grad is None
