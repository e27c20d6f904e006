"""Forecasts against measured points and autograd's own count; what must grow with what; the choice of a plan."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from babyllama.errors import InputError
from babyllama.foresight.budget import (
    MOST_ROWS,
    Terms,
    best,
    ladder,
    largest_micro_batch,
    propose,
    round_down,
    usable_gib,
)
from babyllama.foresight.forecast import (
    GIB,
    Workload,
    block_parameters,
    expected_loss,
    memory,
    memory_gib,
    step_seconds,
    tokens_per_second,
    worth,
)
from babyllama.hardware import Card, find_card
from babyllama.model.config import ModelChoice, ModelConfig
from babyllama.model.transformer import Transformer, initialise

V = 64_793
SEED, BASE = ModelChoice(preset="seed").build(V), ModelChoice(preset="base-218m").build(V)
H100, RTX3060 = find_card("H100"), find_card("RTX 3060")
# Measured on one H100 80GB HBM3 (bf16, compiled, torch 2.11.0+cu130): model, tokens a row, rows, optimiser, peak of
# max_memory_allocated in GiB, tokens/s (None: not taken). The last five with chunks of 16,384 logits, as hardware.py
# now has them for such a card; those of at most 96 rows as one CUDA graph.
MEASURED = [
    (SEED, 512, 256, "adamw", 16.18, 1_098_241),
    (SEED, 512, 256, "muon", 16.08, 1_065_430),
    (SEED, 512, 64, "adamw", 5.48, None),
    (SEED, 512, 320, "adamw", 20.02, None),
    (BASE, 1024, 46, "adamw", 19.19, 326_924),
    (BASE, 1024, 64, "adamw", 24.96, None),
    (SEED, 512, 256, "adamw", 16.85, 1_140_598),
    (SEED, 512, 256, "muon", 16.66, 1_056_795),
    (SEED, 512, 64, "muon", 6.4, 985_944),
    (SEED, 512, 32, "muon", 4.7, 862_537),
    (BASE, 1024, 96, "adamw", 36.3, 351_071),
]


def workload(config: ModelConfig = SEED, context: int = 512, **other) -> Workload:
    return Workload(config, context, **other)


@pytest.mark.parametrize("number", range(len(MEASURED)))
def test_measured_points(number):
    config, context, rows, optimizer, gib, rate = MEASURED[number]
    chunk = 16384 if number >= len(MEASURED) - 5 else 8192
    work = workload(config, context, micro_batch_size=rows, optimizer=optimizer, chunk_rows=chunk)
    assert sum(memory(work).values()) / GIB == pytest.approx(gib, rel=0.10)
    if rate is not None:
        assert tokens_per_second(work, H100) == pytest.approx(rate, rel=0.15)


def saved_by_autograd(config: ModelConfig, dtype: torch.dtype) -> float:
    """Bytes a token that the eager model's graph keeps beside its weights."""
    model, sizes = Transformer(config).to(dtype), dict[int, int]()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = []  # so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    initialise(model, 0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(torch.zeros(2, 64, dtype=torch.int64))
    return sum(sizes.values()) / 128


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("ffn", [160, 352])
def test_eager_activations_are_what_autograd_counts(kv_heads, dtype, ffn):
    configs = [
        ModelConfig(vocab_size=97, hidden_size=64, intermediate_size=ffn, num_hidden_layers=layers,
                    num_attention_heads=4, num_key_value_heads=kv_heads, max_position_embeddings=64)
        for layers in (1, 3)
    ]  # fmt: skip
    one, three = (saved_by_autograd(config, dtype) for config in configs)
    work = workload(configs[0], 64, half=dtype == torch.bfloat16, compiled=False)
    assert work.saved_bytes == pytest.approx((three - one) / 2, rel=0.02)


def test_terms_of_the_state():
    """4 parameter + 8 moments (Muon's matrices 4) + 2 copy; a gradient of 4 waits only between micro-batches."""
    count, inside = SEED.parameters, block_parameters(SEED)
    assert inside == SEED.parameters - (V + 1) * 512
    found = memory(workload(micro_batch_size=64, optimizer="adamw"))
    assert (found["parameters"], found["moments"]) == (4 * count, 8 * count)
    assert (found["half-precision copies"], found["gradients"]) == (2 * count, 0)
    assert memory(workload(micro_batch_size=64))["moments"] == 8 * count - 4 * inside
    assert memory(workload(micro_batch_size=64, micro_batches=2))["gradients"] == 4 * count
    assert memory(workload(micro_batch_size=64, gpus=2))["gradients"] == 4 * count  # DDP's buckets
    shared = memory(workload(micro_batch_size=64, gpus=4, sharded=True, micro_batches=2, optimizer="adamw"))
    assert (shared["parameters"], shared["moments"], shared["gradients"]) == (count, 2 * count, count)
    assert memory(workload(micro_batch_size=64, half=False, compiled=False))["half-precision copies"] == 0
    tiny_batch = memory(workload(ModelChoice(depth=24).build(6400), 64, optimizer="adamw"))
    assert "gradients in half" in tiny_batch  # without activations the end of the backward pass is the fullest moment


SHAPES = st.builds(
    Workload,
    config=st.builds(
        lambda depth, layers, vocab, kv: ModelChoice(
            depth=depth, num_hidden_layers=layers, num_key_value_heads=kv or depth).build(vocab),
        st.integers(1, 24), st.integers(2, 24), st.integers(300, 70_000), st.integers(0, 1)),
    context=st.sampled_from([64, 512, 1024]), micro_batch_size=st.integers(1, 300), micro_batches=st.integers(1, 4),
    optimizer=st.sampled_from(["muon", "adamw"]), half=st.booleans(), compiled=st.booleans(), recompute=st.booleans(),
    gpus=st.sampled_from([1, 2, 8]), sharded=st.booleans())  # fmt: skip


@given(SHAPES)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_memory_grows_with_everything_that_it_must(work):
    now, c = memory_gib(work), work.config
    assert memory_gib(replace(work, micro_batch_size=work.micro_batch_size + 1)) > now or "activations" not in memory(
        work
    )
    assert memory_gib(replace(work, context=2 * work.context)) >= now
    assert memory_gib(replace(work, micro_batches=work.micro_batches + 1)) >= now
    assert memory_gib(replace(work, config=c.model_copy(update={"num_hidden_layers": c.num_hidden_layers + 1}))) > now
    assert memory_gib(replace(work, config=c.model_copy(update={"vocab_size": c.vocab_size + 128}))) > now
    assert memory_gib(replace(work, compiled=True)) <= memory_gib(replace(work, compiled=False))
    assert memory_gib(replace(work, recompute=True)) <= memory_gib(replace(work, recompute=False))
    assert memory_gib(replace(work, sharded=True)) <= memory_gib(replace(work, sharded=False))
    assert all(size >= 0 for size in memory(work).values())


@given(SHAPES, st.sampled_from([RTX3060, find_card("4090"), H100]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_largest_micro_batch_fits_and_one_more_does_not(work, card):
    rows = largest_micro_batch(work, card)
    if rows:
        assert memory_gib(replace(work, micro_batch_size=rows)) <= 0.92 * card.memory_gib
    if rows < MOST_ROWS:
        assert memory_gib(replace(work, micro_batch_size=rows + 1)) > 0.92 * card.memory_gib


@given(SHAPES)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_time_falls_with_the_card_and_grows_with_the_work(work):
    faster = replace(H100, tflops=2 * H100.tflops, bandwidth=2 * H100.bandwidth)
    now = sum(step_seconds(work, H100).values())
    assert sum(step_seconds(work, faster).values()) <= now < sum(step_seconds(work, RTX3060).values())
    assert sum(step_seconds(replace(work, micro_batches=work.micro_batches + 1), H100).values()) > now
    assert sum(step_seconds(replace(work, recompute=True), H100).values()) >= now
    assert now >= work.tokens * work.micro_batches * work.config.flops_per_token(work.context) / (H100.tflops * 1e12)


def test_exchange_only_between_several():
    one, two = workload(micro_batch_size=64), workload(micro_batch_size=64, gpus=2)
    assert step_seconds(one, H100)["exchange between GPUs"] == 0 < step_seconds(two, H100)["exchange between GPUs"]
    assert tokens_per_second(one, H100) < tokens_per_second(two, H100) < 2 * tokens_per_second(one, H100)


# ── loss ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(("optimizer", "measured"), [("muon", 1.633), ("adamw", 1.688)])
def test_the_anchors(optimizer, measured):
    assert expected_loss(SEED, 40e6, 30e6, optimizer=optimizer).bits_per_byte == pytest.approx(measured, rel=0.005)


def test_worth_of_repeated_tokens():
    assert worth(5e6, 1e7) == 5e6 and worth(1e12, None) == 1e12
    assert 0.90 < worth(4e7, 1e7) / 4e7 < 0.95  # four epochs: nearly new
    values = [worth(epochs * 1e7, 1e7) for epochs in range(1, 60)]
    assert values == sorted(values) and values[-1] < 1e7 * (1 + 15.39)


@given(st.floats(1e7, 1e11), st.integers(2, 24))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_more_of_anything_is_better(tokens, depth):
    small, large = (ModelChoice(depth=d).build(V) for d in (depth, depth + 1))
    loss = expected_loss(small, tokens)
    assert expected_loss(large, tokens).bits_per_byte < loss.bits_per_byte
    assert expected_loss(small, 2 * tokens).bits_per_byte < loss.bits_per_byte
    assert expected_loss(small, tokens, tokens / 4).bits_per_byte > loss.bits_per_byte
    assert 0.4 < loss.low < loss.bits_per_byte < loss.high


# ── the choice ─────────────────────────────────────────────────────────────────────────────────────────────────────
@given(st.sampled_from(["RTX 3060", "4090", "A100 40G", "H100"]), st.floats(0.1, 200), st.floats(1e6, 1e11),
       st.integers(2, 12), st.sampled_from([1, 4]), st.booleans())  # fmt: skip
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_proposal_keeps_its_terms(card, hours, unique, depth, gpus, sharded):
    terms = Terms(find_card(card), seconds=hours * 3600, unique=int(unique), gpus=gpus, sharded=sharded)
    found = propose(ModelChoice(depth=depth).build(V), terms)
    assert found.memory_gib <= usable_gib(terms.card)
    assert 1 <= found.work.micro_batch_size <= found.largest_micro_batch
    if found.steps > 1:
        assert found.seconds <= terms.seconds * (1 + 1e-9)
        assert found.tokens <= 4 * terms.unique
    assert found.work.step_tokens <= 2 * 524_288


def test_wishes_are_kept():
    terms = Terms(H100, context=256, tokens=10**9, micro_batch_size=48, global_batch_tokens=98_304, recompute=True)
    found = propose(SEED, terms)
    assert found.work.micro_batch_size == 48 and found.work.micro_batches == 8 and found.work.recompute
    assert 0 <= found.tokens - 10**9 < found.work.step_tokens
    with pytest.raises(InputError, match=r"micro_batch_size 5000 × 256 tokens .*; at most \d+ rows fit"):
        propose(SEED, replace(terms, micro_batch_size=5000, recompute=False))


def test_without_a_time_the_corpus_is_the_length():
    found = propose(SEED, Terms(H100, unique=50_000_000, max_epochs=2))
    assert 0 <= found.tokens - 100_000_000 < found.work.step_tokens
    with pytest.raises(InputError, match="the length is not known"):
        propose(SEED, Terms(H100))
    with pytest.raises(InputError, match="over before the first step"):
        propose(SEED, Terms(H100, seconds=1))


def test_a_slow_machine_and_a_short_time_get_a_small_batch():
    slow = Card("CPU", 0.05, 16, 20, bf16=False)
    found = propose(ModelChoice(depth=2).build(400), Terms(slow, context=128, seconds=60, compiled=False))
    assert found.steps > 50 and found.work.step_tokens < 10_000


def test_recompute_only_where_nothing_else_fits():
    card = Card("small", 26, 2.5, 360)
    config = ModelChoice(depth=8, max_position_embeddings=16_384).build(1000)
    assert largest_micro_batch(workload(config, 16_384), card) == 0
    assert propose(config, Terms(card, tokens=10**8)).work.recompute
    assert not propose(config, Terms(H100, tokens=10**8)).work.recompute
    with pytest.raises(InputError, match=r"needs .* GiB, 2\.3 of 2\.5 GiB can be used; choose a smaller model"):
        propose(ModelChoice(depth=30).build(V), Terms(card, tokens=10**8))


def test_the_best_of_the_ladder():
    terms = Terms(find_card("4090"), seconds=24 * 3600, unique=10**10)
    (_, chosen), *others = best(ladder(None), V, terms)
    lowest = min([chosen, *(p for _, p in others)], key=lambda p: p.loss.bits_per_byte)
    assert chosen.loss.bits_per_byte <= 1.005 * lowest.loss.bits_per_byte
    assert chosen.work.config.parameters <= lowest.work.config.parameters
    sizes = [p.work.config.parameters for _, p in others]
    assert sizes == sorted(sizes) and sizes[0] < chosen.work.config.parameters < sizes[-1]
    (_, longer), *_ = best(ladder(None), V, replace(terms, seconds=10 * terms.seconds))
    assert longer.work.config.parameters > chosen.work.config.parameters
    assert longer.loss.bits_per_byte < chosen.loss.bits_per_byte


def test_a_small_corpus_gets_a_small_model():
    (_, chosen), *_ = best(ladder(None), V, Terms(H100, seconds=50 * 3600, unique=10_000_000))
    assert block_parameters(chosen.work.config) <= 50_000_000 and chosen.tokens <= 40_000_000
    (choice, smallest), *_ = best(ladder(None), 1000, Terms(H100, seconds=3600, unique=1000))
    assert choice.depth == 2 and smallest.steps == 1


def test_nothing_fits():
    with pytest.raises(InputError, match="smaller model"):
        best(ladder(None), V, Terms(Card("toy", 1, 0.5, 100), seconds=3600))


@given(st.integers(1, MOST_ROWS))
def test_round_down(rows):
    rounded = round_down(rows)
    assert rounded <= rows < rounded * 1.25 + 1 and rounded >> max(0, rounded.bit_length() - 3) <= 7
    assert math.log2(rounded & -rounded) >= max(0, rows.bit_length() - 3)
