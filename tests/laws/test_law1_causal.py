"""Law 1: changing token t leaves the logits before t bit-identical."""

from __future__ import annotations

import pytest
import torch

from babyllama.model.attention import attend_eager, attend_sdpa


@pytest.mark.parametrize("attend", [attend_sdpa, attend_eager])
@pytest.mark.parametrize("packed", [False, True], ids=["square", "segments"])
def test_the_past_does_not_see_the_future(model, tokens, attend, packed):
    for block in model.layers:
        block.self_attn.attend = attend
    segments = torch.zeros_like(tokens) if packed else None  # one document, but through the boolean mask
    before = model(tokens, segments=segments)
    for t in (1, 7, tokens.shape[1] - 1):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % model.config.vocab_size
        after = model(changed, segments=segments)
        assert torch.equal(after[:, :t], before[:, :t])
        # the other half: everything from t on does see the change, so the first half is no accident
        assert (after[:, t:] - before[:, t:]).abs().amax(-1).min() > 1e-4


def test_no_gradient_flows_back_from_the_past(model, tokens):
    """The same law for training: the loss at position t has no gradient in later embeddings."""
    seen = []
    handle = model.embed_tokens.register_forward_hook(
        lambda _module, _inputs, out: seen.append(out.detach().requires_grad_(True)) or seen[-1]
    )
    model(tokens)[:, 9].square().sum().backward()
    handle.remove()
    gradient = seen[0].grad.abs().amax((0, 2))
    assert (gradient[10:] == 0).all()
    assert (gradient[:10] > 0).all()
