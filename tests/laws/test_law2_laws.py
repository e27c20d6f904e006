"""Law 2 for every RoPE law and every cache: decoding through it = the full forward pass.

Laws that go by the length turn all keys anew at every length. Beyond the trained context the deeper layers' cached keys
come from hidden states of earlier lengths, in every implementation, so there the oracle is a model of one layer, where
nothing but the keys is cached, or the recurrence typed out.
"""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from babyllama.errors import InputError
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.model.cache import KVCache
from babyllama.model.checkpoint import save_model
from babyllama.model.config import extended
from babyllama.model.laws import ByPartsRope, ClexRope, DynamicNtkRope, LinearRope, NtkRope, PlainRope, YarnRope
from babyllama.model.transformer import Transformer, make_rope
from conftest import sharp_model, tiny_config

STATIC = [PlainRope(), LinearRope(factor=4.0), NtkRope(factor=4.0), ByPartsRope(factor=4.0), YarnRope(factor=4.0)]
DYNAMIC = [DynamicNtkRope(factor=4.0), ClexRope(max_t=4)]
CHUNKS = [[1] * 22, [22], [10] + [1] * 12, [7, 1, 9, 2, 3]]
GREEDY = Sampling(temperature=0.0)


def make(law, original: int, layers: int = 3) -> Transformer:
    config = tiny_config().model_copy(update={"num_hidden_layers": layers, "max_position_embeddings": original})
    model = sharp_model(config)
    if law.kind != "none":
        model.config = extended(config, law)
    model.rope = make_rope(model.config).requires_grad_(False)
    for parameter in model.rope.parameters():
        parameter += 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return model


def cache_of(model, kind, rows=2, size=64):
    if kind == "sink":
        return KVCache(model.config, rows, size, "cpu", torch.float32, sinks=4)
    return KVCache(model.config, rows, size, "cpu", torch.float32, kind == "rotated")


@pytest.mark.parametrize("chunks", CHUNKS, ids=["single", "prefill", "prefill+single", "chunks"])
@pytest.mark.parametrize(
    ("law", "original", "kind"),
    [(law, 8, kind) for law in STATIC for kind in ("rotated", "unrotated", "sink")]
    + [(law, 32, kind) for law in DYNAMIC for kind in ("unrotated", "sink")],
    ids=lambda value: getattr(value, "kind", value),
)
def test_cached_is_the_full_pass(tokens, law, original, kind, chunks):
    model = make(law, original)
    cache = cache_of(model, kind)
    got = torch.cat([model(part, cache=cache) for part in tokens.split(chunks, dim=1)], dim=1)
    torch.testing.assert_close(got, model(tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["unrotated", "sink"])
@pytest.mark.parametrize("law", DYNAMIC, ids=lambda law: law.kind)
def test_one_layer_beyond_the_trained_context(tokens, law, kind):
    model = make(law, 6, layers=1)
    cache = cache_of(model, kind)
    for t in range(22):
        logits = model(tokens[:, t : t + 1], cache=cache)[:, -1]
        torch.testing.assert_close(logits, model(tokens[:, : t + 1])[:, -1], rtol=0, atol=1e-4)


def test_one_layer_of_dynamic_ntk_equals_transformers(tmp_path, tokens):
    model = make(DynamicNtkRope(factor=4.0), 6, layers=1)
    save_model(model, tmp_path, bos_id=0, eos_id=1)
    cache = cache_of(model, "unrotated")
    twin = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    for t in range(22):
        logits = model(tokens[:, t : t + 1], cache=cache)[:, -1]
        torch.testing.assert_close(logits, twin(tokens[:, : t + 1]).logits[:, -1], rtol=0, atol=1e-4)


def test_rotated_keys_would_be_wrong_for_a_dynamic_law(tokens):
    model = make(DynamicNtkRope(factor=4.0), 6, layers=1)
    cache = KVCache(model.config, 2, 64, "cpu", torch.float32, rotated=True)
    got = torch.cat([model(part, cache=cache) for part in tokens.split(1, dim=1)], dim=1)
    assert (got[:, -1] - model(tokens)[:, -1]).abs().max() > 1e-2


# ── the engine ─────────────────────────────────────────────────────────────────────────────────────────────────────
PROMPTS = [[5, 9, 2], [7], [11, 3, 3, 8, 60, 21, 4, 4, 9, 17, 2, 8, 8, 1], [1, 2, 3, 4, 5]]


@pytest.mark.parametrize("law", STATIC + DYNAMIC, ids=lambda law: law.kind)
def test_a_row_alone_and_in_a_batch(law):
    """The trained context of 8 ends inside prompts and inside answers, at different steps of each row."""
    engine = Engine(make(law, 32 if law.kind == "none" else 8), 67)
    together = engine.generate(PROMPTS, GREEDY, 15)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        assert engine.generate([prompt], GREEDY, 15) == [answer]
        assert list(engine.stream(prompt, GREEDY, 15)) == answer
    assert len(set(map(tuple, together))) > 1


@pytest.mark.parametrize("law", [PlainRope(), YarnRope(factor=4.0), ClexRope(max_t=4)], ids=lambda law: law.kind)
def test_sinks_change_nothing_while_everything_fits(law):
    model = make(law, 32)
    plain, endless = Engine(model, 67), Engine(model, 67, sinks=4)
    for prompt in PROMPTS:
        assert list(endless.stream(prompt, GREEDY, 15)) == list(plain.stream(prompt, GREEDY, 15))
    assert endless.generate(PROMPTS, GREEDY, 15) == plain.generate(PROMPTS, GREEDY, 15)


def test_twenty_contexts_in_constant_memory():
    model = make(PlainRope(), 32)
    engine = Engine(model, 67, sinks=4)
    answer = list(engine.stream([5, 9, 2], GREEDY, 640))
    assert len(answer) == 640
    cache = engine.cache
    assert cache.keys.shape[1:4:2] == (1, 32)
    assert 32 + cache.dropped.item() == 3 + 639
    more = list(engine.stream([5, 9, 2, *answer, 7, 7], GREEDY, 10))  # the next turn goes on from there
    assert len(more) == 10 and cache.keys.shape[3] == 32
    long = [i % 67 for i in range(300)]
    assert len(list(engine.stream(long, GREEDY, 5))) == 5  # another text, longer than the context
    with pytest.raises(InputError, match="sinks: 17 must be at most half of the model's context of 32"):
        Engine(model, 67, sinks=17)
    with pytest.raises(InputError, match="max_tokens must be given with sinks"):
        engine.generate([[1]], GREEDY)


def test_the_sink_cache_holds_the_first_and_the_newest(tokens):
    """One layer: what is left of 22 tokens in 10 places is exactly the pass over tokens 0–3 and 16–21."""
    model = make(PlainRope(), 64, layers=1)
    cache = cache_of(model, "sink", size=10)
    for t in range(22):
        logits = model(tokens[:, t : t + 1], cache=cache)[:, -1]
    kept = torch.cat((tokens[:, :4], tokens[:, 16:]), dim=1)
    torch.testing.assert_close(logits, model(kept)[:, -1], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="6 places beside its sinks, 7 tokens are fed at once"):
        model(tokens[:, :7], cache=cache)
