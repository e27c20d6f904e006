"""evals/longcontext.py: the same targets after more text, a passkey, streaming."""

from __future__ import annotations

import pytest
import torch
from small_run import small_tokenizer

from babyllama.errors import InputError
from babyllama.evals import longcontext as longcontexts
from babyllama.evals.longcontext import QUESTION, Found, curve, losses, passkey, streaming
from babyllama.evals.scoring import Score
from conftest import sharp_model, tiny_config


def test_all_lengths_score_the_same_targets():
    """Each loss against a pass over exactly that window, in one go."""
    model = sharp_model(tiny_config())
    tokens = torch.randint(model.config.vocab_size, (3, 41), generator=torch.Generator().manual_seed(0))
    for length in (8, 16, 40):
        got = losses(model, tokens, length, 8, rows=2)
        logits = model(tokens[:, -length - 1 : -1])[:, -8:].log_softmax(-1)
        torch.testing.assert_close(got, -logits.gather(-1, tokens[:, -8:, None])[..., 0], rtol=0, atol=1e-5)
    assert curve(torch.arange(8.0)[None], 4) == [(2, 0.5), (4, 2.5), (6, 4.5), (8, 6.5)]


def test_a_passkey_is_hidden_where_it_says_and_asked_for_at_the_end(monkeypatch):
    model, tokenizer = sharp_model(tiny_config()), small_tokenizer()
    haystack = torch.randint(5, 200, (2, 400), generator=torch.Generator().manual_seed(0))
    asked = []

    def scored(_, pairs, vocab_size):
        assert vocab_size == tokenizer.vocab_size
        asked.extend(pairs)
        return [Score(-3.0 * len(pair.completion), len(pair.completion), i % 2 == 0) for i, pair in enumerate(pairs)]

    monkeypatch.setattr(longcontexts, "score", scored)
    found = passkey(model, tokenizer, haystack, 300, 3)
    assert found == [Found(depth, i % 2 == 0, 3.0) for i, depth in enumerate([0.0, 0.5, 1.0] * 2)]
    decode, places = tokenizer.decode, []
    for prompt, completion in asked:
        text, key = decode(prompt), decode(completion)
        assert len(prompt) + len(completion) == 300 and len(key) == 5 and key.isdigit()
        assert text.count(f"密钥是{key}。") == 1 and text.endswith(QUESTION)
        places.append(text.index(key) / len(text))
    assert len({decode(pair.completion) for pair in asked}) == 6
    assert all(low < 0.2 < middle < 0.8 < high for low, middle, high in (places[:3], places[3:]))
    with pytest.raises(InputError, match="no room for the passkey's question; start at"):
        passkey(model, tokenizer, haystack, 30, 3)


def test_streaming_is_the_full_pass_while_it_fits():
    model = sharp_model(tiny_config())
    tokens = torch.randint(model.config.vocab_size, (2, 15), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(streaming(model, tokens, 16, 4), losses(model, tokens, 14, 14, 2), rtol=0, atol=1e-4)
