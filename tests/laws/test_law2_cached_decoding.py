"""Law 2: decoding through the cache = the full forward pass, token by token and in chunks.

The full pass is transformers' LlamaForCausalLM where that can say something (shapes of heads, tied or not), and our
own uncached pass for the rest. Regression tests for the known faults 3 (one query that sees token 0 only),
4 (cached keys rotated twice) and 5 (the cache dropped after the first step).
"""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import LlamaForCausalLM

from babyllama.model.attention import attend_eager
from babyllama.model.cache import KVCache
from babyllama.model.checkpoint import save_model
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise

V, T = 61, 24
HEADS = pytest.mark.parametrize("kv_heads", [1, 2, 4], ids=["mqa", "gqa", "mha"])
TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
ROTATED = pytest.mark.parametrize("rotated", [True, False], ids=["rotated", "unrotated"])


def make_model(kv_heads: int = 2, tied: bool = True) -> Transformer:
    model = Transformer(ModelConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=64, tie_word_embeddings=tied))  # fmt: skip
    initialise(model, 5)
    with torch.no_grad():  # far from the start, so that attention is not nearly uniform
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 6
    return model.eval().requires_grad_(False)


def make_tokens(rows: int = 3) -> torch.Tensor:
    return torch.randint(V, (rows, T), generator=torch.Generator().manual_seed(3))


def make_cache(model: Transformer, rows: int, rotated: bool = True, size: int = 64) -> KVCache:
    return KVCache(model.config, rows, size, "cpu", torch.float32, rotated)


def decode(model: Transformer, tokens: torch.Tensor, cache: KVCache, chunks: list[int]) -> torch.Tensor:
    """Feed `tokens` in chunks of the given lengths; all logits."""
    parts = tokens.split(chunks, dim=1)
    return torch.cat([model(part, cache=cache) for part in parts], dim=1)


@HEADS
@TIED
@ROTATED
@pytest.mark.parametrize("chunks", [[1] * T, [T], [10] + [1] * (T - 10), [7, 1, 9, 2, 5]],
                         ids=["single", "prefill", "prefill+single", "chunks"])  # fmt: skip
def test_cached_equals_transformers_full_forward(tmp_path, kv_heads, tied, rotated, chunks):
    model, tokens = make_model(kv_heads, tied), make_tokens()
    save_model(model, tmp_path, bos_id=0, eos_id=1)
    expected = LlamaForCausalLM.from_pretrained(tmp_path)(tokens).logits
    cached = decode(model, tokens, make_cache(model, 3, rotated), chunks)
    torch.testing.assert_close(cached, expected, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(cached, model(tokens), atol=2e-5, rtol=1e-5)


@HEADS
@ROTATED
def test_ragged_batch_equals_each_row_alone(kv_heads, rotated):
    """Right-padded prompts of different length, then each row at its own positions."""
    model, tokens = make_model(kv_heads), make_tokens()
    lengths = torch.tensor([3, 11, 7])
    padded = tokens[:, :11].clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = 59  # what pads must not matter
    cache = make_cache(model, 3, rotated)
    logits = [model(padded, cache=cache)[torch.arange(3), lengths - 1]]
    for step in range(T - 11):
        positions = (lengths + step)[:, None]
        cache.reserve(int(positions.max()) + 1)
        logits.append(model(tokens.gather(1, positions), positions, cache=cache)[:, 0])
    together = torch.stack(logits, dim=1)  # (B, steps, V)
    for row, length in enumerate(lengths):
        alone = model(tokens[row : row + 1])[0, length - 1 : length - 1 + together.shape[1]]
        torch.testing.assert_close(together[row], alone, atol=2e-5, rtol=1e-5)


@ROTATED
def test_the_eager_reference_agrees(rotated):
    """The cache's mask means the same to the attention that is written out."""
    model, tokens = make_model(), make_tokens()
    expected = decode(model, tokens, make_cache(model, 3, rotated), [9] + [1] * 15)
    for block in model.layers:
        block.self_attn.attend = attend_eager
    torch.testing.assert_close(decode(model, tokens, make_cache(model, 3, rotated), [9] + [1] * 15), expected,
                               atol=2e-5, rtol=1e-5)  # fmt: skip


@ROTATED
def test_fault_3_one_query_sees_every_earlier_token(rotated):
    """`is_causal=True` with one query aligns it to token 0: then no later token would matter."""
    model, tokens = make_model(), make_tokens(1)
    cache = make_cache(model, 1, rotated)
    model(tokens[:, :-1], cache=cache)
    last = model(tokens[:, -1:], cache=cache)
    for changed in range(T - 1):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % V
        cache = make_cache(model, 1, rotated)
        model(other[:, :-1], cache=cache)
        assert not torch.allclose(model(other[:, -1:], cache=cache), last, atol=1e-4), changed


@ROTATED
def test_fault_4_cached_keys_are_rotated_once(rotated):
    """The first layer's cache, turned by the formula typed here, holds k_proj(norm(embedding)) at angle p·θ^(−2i/D)."""
    model, tokens = make_model(), make_tokens(1)
    cache = make_cache(model, 1, rotated)
    decode(model, tokens, cache, [6, 1, 1, 16])
    block, D = model.layers[0], model.config.head_dim
    plain = block.self_attn.k_proj(block.input_layernorm(model.embed_tokens(tokens))).view(T, -1, D)
    expected = plain.clone()
    if rotated:
        for p, i in itertools.product(range(T), range(D // 2)):
            angle = torch.tensor(p / 10_000.0 ** (2 * i / D), dtype=torch.float64)
            a, b = plain[p, :, i], plain[p, :, i + D // 2]
            expected[p, :, i] = a * angle.cos() - b * angle.sin()
            expected[p, :, i + D // 2] = b * angle.cos() + a * angle.sin()
    torch.testing.assert_close(cache.keys[0, 0, :, :T].transpose(0, 1), expected, atol=1e-5, rtol=1e-5)


@ROTATED
def test_fault_5_the_cache_outlives_every_step(rotated):
    model, tokens = make_model(), make_tokens(2)
    cache = make_cache(model, 2, rotated)
    for t in range(T):
        before = cache.keys.clone(), cache.values.clone()
        model(tokens[:, t : t + 1], cache=cache)
        assert cache.used == t + 1
        for old, new in zip(before, (cache.keys, cache.values), strict=True):
            assert torch.equal(new[:, :, :, :t], old[:, :, :, :t])
            assert new[:, :, :, t].abs().sum(-1).all()
            assert not new[:, :, :, t + 1 :].any()


def test_a_full_cache_is_refused():
    model, tokens = make_model(), make_tokens(1)
    cache = make_cache(model, 1, size=T - 1)
    with pytest.raises(ValueError, match=f"holds {T - 1} tokens, {T} are asked for"):
        model(tokens, cache=cache)
