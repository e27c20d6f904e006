"""The fused decoding kernels beside the model's own forward path in float32. Run with: pytest -m gpu"""

import pytest
import torch
from closeness import differ_by_rounding
from torch import nn

from babyllama.data.streams.batches import Batch
from babyllama.infer import decoding, together
from babyllama.infer.choosing import choose, numbers
from babyllama.infer.engine import Engine
from babyllama.infer.fused import FusedStep, suits
from babyllama.infer.request import Request
from babyllama.infer.rows import Rows
from babyllama.infer.sampling import Sampling, used_by
from babyllama.model.cache import KVCache
from babyllama.model.config import ModelConfig
from babyllama.model.surgery import dense_weight
from babyllama.quant.calibrate import Ends, quantise
from babyllama.quant.linear import GroupedLinear
from babyllama.quant.rtn import Rtn
from conftest import sharp_model, tiny_config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 12], [13], [2, 2]]


def config(kv_heads=2, tied=True, **sizes) -> ModelConfig:
    shape = {"hidden_size": 64, "intermediate_size": 120, "num_attention_heads": 4, **sizes}
    return ModelConfig.model_validate({**tiny_config(kv_heads, tied).model_dump(), **shape})


def twins(shape: ModelConfig, dtype=torch.bfloat16):
    """The model in half precision, and the same weights in float32."""
    model = sharp_model(shape).cuda().to(dtype)
    exact = sharp_model(shape).cuda()
    exact.load_state_dict(model.state_dict())
    return model, exact


@torch.inference_mode()
def steps_beside(shape, count, samplings, *, steps=6, tiles=None, dtype=torch.bfloat16, live=None, made=None,
                 decoder_of=decoding.Decoder, near=2e-2):  # fmt: skip
    """Each step's logits against float32's after the same tokens, each token against `choose` of the same logits."""
    model, exact = made or twins(shape, dtype)
    V, slots = shape.vocab_size - 3, 48
    rows, caches = (
        Rows(V, count, torch.device("cuda")),
        [KVCache(shape, count, slots, "cuda", t) for t in (dtype, torch.float32)],
    )
    lengths = [1 + (row * 5) % 9 for row in range(count)]
    tokens = torch.randint(V, (count, 9), generator=torch.Generator().manual_seed(count)).cuda()
    for model_, cache in zip((model, exact), caches, strict=True):
        model_.hidden(tokens, cache=cache)
    for row, length in enumerate(lengths):
        request = Request(tokens[row, :length].tolist(), samplings[row % len(samplings)], seed=row)
        rows.place([row], [(request, [])])
        rows.token[row] = tokens[row, length - 1]
    rows.live.fill_(count if live is None else live)
    decoder = decoder_of(model, rows, caches[0], count, tiles)
    uses, worst = used_by(samplings), 0.0
    for _ in range(steps):
        token, position, counter = rows.token.clone(), rows.position.clone(), rows.counter.clone()
        chosen = decoder(1, uses.drawn)[0]
        caches[1].reserve(int(position.max()) + 1)
        hidden = exact.hidden(token[:, None], position[:, None], cache=caches[1])
        want = exact.lm_head(hidden[:, 0])[:, :V]
        worst = max(worst, float((decoder.logits - want).norm() / want.norm()))
        expected = choose(decoder.logits, rows.rules, numbers(rows.begin, counter), uses)
        assert chosen.tolist() == expected.tolist()
        moving = torch.arange(count, device="cuda") < rows.live
        assert torch.equal(rows.position, position + moving) and torch.equal(rows.counter, counter + moving)
        assert torch.equal(rows.token, torch.where(moving, chosen, token))
    assert worst < near
    return decoder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 3, 17, 70])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_greedy_steps(kv_heads, count, dtype):
    decoder = steps_beside(config(kv_heads), count, [Sampling(temperature=0)], dtype=dtype)
    assert all(decoder.graphs.values())  # the later steps were a graph's


@pytest.mark.parametrize("sizes", [{"hidden_size": 48, "intermediate_size": 72}, {"tied": False}, {"hidden_size": 160},
                                   {"num_hidden_layers": 1}])  # fmt: skip
@pytest.mark.parametrize("count", [1, 5])
def test_sizes_that_are_no_powers_of_two(sizes, count):
    steps_beside(config(**sizes), count, [Sampling(temperature=0)])


@pytest.mark.parametrize("bits", [0, 4, 8])
def test_wide_models_have_larger_programs(monkeypatch, bits):
    monkeypatch.setattr(decoding, "WIDE", range(64, 65))
    shape = config()
    made = packed_twins(shape, bits, 32, True, False) if bits else None
    assert steps_beside(shape, 1, [Sampling(temperature=0)], made=made).plan.widen == 8


@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("splits", [1, 2])
def test_one_row_looks_at_more_slots_than_it_holds_before_it_waits(monkeypatch, kv_heads, splits):
    monkeypatch.setattr(decoding, "LOOKED_AT", 16)
    monkeypatch.setattr(decoding, "PROGRAMS", 4 * splits)
    assert steps_beside(config(kv_heads), 1, [Sampling(temperature=0)], steps=40).splits == splits


@torch.inference_mode()
def graphs_beside_single_steps(model, sampling, decoder_of=decoding.Decoder, count=1):
    """96 tokens of some rows, keys and values too, by graphs of 16 steps as by graphs of one."""
    shape, device = model.config, torch.device("cuda")
    rows, cache = Rows(shape.vocab_size, count, device), KVCache(shape, count, 128, device, torch.bfloat16)
    rows.live.fill_(count)
    decoder, found = decoder_of(model, rows, cache, count), list[torch.Tensor]()
    for steps in (1, 1, *[16] * 12):
        for row in range(count):
            rows.place([row], [(Request([1, 2 + row], sampling, seed=3 + row), [])])
        rows.token.copy_(2 + torch.arange(count))
        tokens = torch.cat([decoder(steps, sampling.temperature > 0).clone() for _ in range(96 // steps)])
        made = [tokens, cache.keys, cache.values]
        found = found or [one.clone() for one in made]  # of steps one by one
        assert all(torch.equal(one, first) for one, first in zip(made, found, strict=True))
    return decoder


BOTH = [Sampling(temperature=0), Sampling(temperature=0.9, top_k=20)]


@pytest.mark.parametrize("sampling", BOTH)
def test_steps_of_one_graph_see_what_earlier_ones_left(sampling):
    """A kernel reads some of it before it waits for the one ahead of it."""
    shape = config(4, hidden_size=256, num_hidden_layers=3, max_position_embeddings=128)
    graphs_beside_single_steps(twins(shape)[0], sampling)


CUTS = [Sampling(temperature=0.8), Sampling(temperature=1.3, top_k=5), Sampling(top_p=0.7),
        Sampling(temperature=0.9, top_k=20, top_p=0.8), Sampling(min_p=0.1), Sampling(temperature=0),
        Sampling(temperature=2.0, top_k=7, top_p=0.5, min_p=0.05)]  # fmt: skip


@pytest.mark.parametrize("count", [1, 8, 40])
@pytest.mark.parametrize("candidates", [2048, 4])
def test_draws_of_every_kind_in_one_batch(monkeypatch, candidates, count):
    """With 4 candidates most rows take the way of those that have too many to be sorted."""
    monkeypatch.setattr(decoding, "CANDIDATES", candidates)
    for samplings in (CUTS, *([cut] for cut in CUTS)) if count == 8 else (CUTS,):
        steps_beside(config(vocab_size=1503), count, samplings)


def packed_twins(shape, bits, group, head, ordered):
    """The model in few bits, and its dense weights in float32. Any order of the codes will do: dense_weight has it."""
    model, exact = sharp_model(shape).cuda(), sharp_model(shape).cuda()
    ends = Ends(head="rtn", embedding="rtn", bits=bits) if head else Ends()
    tokens = torch.randint(67, (2, 25), device="cuda")
    quantise(model, [Batch(tokens[:, :-1], tokens[:, 1:])], Rtn(bits=bits, group_size=group, short_group=True), ends)
    for number, linear in enumerate(m for m in model.modules() if isinstance(m, GroupedLinear)):
        if ordered:
            draw = torch.Generator().manual_seed(number)
            linear.order = torch.randperm(linear.in_features, generator=draw).int().cuda()
    model = model.bfloat16()
    for name, module in exact.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            same = model.get_submodule(name)
            module.weight.data.copy_(same.weight if isinstance(same, nn.Embedding) else dense_weight(same))
    return model, exact


@pytest.mark.parametrize("count", [1, 3, 70])
@pytest.mark.parametrize(("bits", "group", "head", "ordered"), [(4, 32, True, False), (4, 32, True, True),
                         (8, 32, False, False), (4, None, True, False), (8, 16, True, True)])  # fmt: skip
@pytest.mark.parametrize("copied", [True, False])
def test_packed_weights(monkeypatch, bits, group, head, ordered, count, copied):
    monkeypatch.setattr(decoding, "LAID", 1 << 28 if copied else 0)
    shape = config(tied=head)
    made = packed_twins(shape, bits, group, head, ordered)
    decoder = steps_beside(shape, count, [Sampling(temperature=0)], made=made)
    assert decoder.few == (count < 70) and decoder.lays == (decoder.few and copied)
    assert decoder.unpacks == (not decoder.few and copied)


def test_a_packed_model_answers_through_the_kernels():
    shape = config(max_position_embeddings=96)
    model = packed_twins(shape, 4, 32, True, False)[0].requires_grad_(False)
    engine = Engine(model, 67)
    one = engine.generate(PROMPTS[:1], Sampling(temperature=0), 40)
    step, passes = engine._steps[None], engine.prompts.passes
    assert isinstance(step, FusedStep) and 1 in step.decoders
    assert passes is not None and passes.reader.graphs and not passes.graphs
    many = engine.generate(PROMPTS * 3, Sampling(temperature=0), 40)
    assert max(step.decoders) == 16 and not step.decoders[16].few
    same = sum(a == b for a, b in zip(one[0], many[0], strict=True))
    assert same >= 10  # a tie may fall otherwise, and then all that follows


def test_long_nuclei_are_sorted_too():
    steps_beside(config(vocab_size=1503), 4, [Sampling(temperature=3, top_p=0.95), Sampling(top_k=700, temperature=2)])


def test_rows_that_do_not_decode_stay():
    steps_beside(config(), 4, [Sampling(temperature=0)], live=2)


def test_damaged_weights_end_their_request():
    model, _ = twins(config())
    model.get_parameter("layers.1.mlp.down_proj.weight").data[0, 0] = float("nan")
    engine = Engine(model.requires_grad_(False), 67)
    engine.add(Request([1, 2, 3], Sampling(temperature=0), 5))
    events = [event for _ in range(4) for event in engine.step()]
    assert [event.finish for event in events] == ["error"]


def test_the_engine_answers_as_with_the_forward_path():
    """Rows that come and go, answers of many lengths, seeds: the same tokens alone and together, by fused kernels, but
    for what rounding explains: rows of a batch are multiplied in another order."""
    model, exact = twins(config(max_position_embeddings=96))
    engine = Engine(model.requires_grad_(False), 67)
    for seed in (3, 13, 23):
        sampling = Sampling(temperature=0.9, seed=seed)
        together = engine.generate(PROMPTS, sampling, 40, {0})
        assert isinstance(engine._steps[None], FusedStep)
        for number, (prompt, many) in enumerate(zip(PROMPTS, together, strict=True)):
            one = list(engine.stream(prompt, sampling, 40, {0}, seed + number))
            assert differ_by_rounding(exact, prompt, one, many, 0.9, seed + number, 67), (one, many)
    again = engine.generate(PROMPTS, Sampling(temperature=0.9, seed=23), 40, {0})
    for number, (prompt, one, many) in enumerate(zip(PROMPTS, again, together, strict=True)):
        assert differ_by_rounding(exact, prompt, one, many, 0.9, 23 + number, 67)
    penalised = engine.generate(PROMPTS, Sampling(temperature=0, repetition_penalty=1.3), 10)
    assert [len(answer) for answer in penalised] == [10] * 4


def test_a_warm_engine_answers_as_a_cold_one():
    """Its prompts are read by graphs, several at a time and beside rows that decode; nothing is recorded later."""
    model, exact = twins(config(max_position_embeddings=96))
    engine, cold = (Engine(model.requires_grad_(False), 67, slots=24) for _ in range(2))
    assert engine.warm() == 24 and engine.prompts.passes is not None
    passes = engine.prompts.passes
    reader, recorded = passes.reader, (len(passes.graphs), len(passes.reader.graphs))
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(67, (1 + 3 * n,), generator=generator).tolist() for n in range(24)]
    for sampling in (Sampling(temperature=0), Sampling(temperature=0.9, seed=4)):
        made = engine.generate(prompts, sampling, 12)
        assert sum(a == b for a, b in zip(made, cold.generate(prompts, sampling, 12), strict=True)) >= 18  # ties
    engine.trim()
    assert (engine.cache.keys.shape[1], engine.cache.max_tokens) == (24, 96)
    first = [answer[0] for answer in engine.generate(prompts, Sampling(temperature=0), 1)]
    want = [int(exact(torch.tensor([p], device="cuda"))[0, -1, :67].argmax()) for p in prompts]
    assert sum(a == b for a, b in zip(first, want, strict=True)) >= 22  # in bf16 a tie may fall otherwise
    assert passes.reader is reader and (len(passes.graphs), len(reader.graphs)) == recorded and min(recorded) > 0
    assert None not in passes.graphs.values() and None not in reader.graphs.values()


def test_graphs_are_recorded_again_after_the_cache_has_grown():
    model, _ = twins(config(max_position_embeddings=256))
    engine = Engine(model.requires_grad_(False), 67)
    for length in (40, 100, 200):
        answers = [engine.generate([[1, 2, 3]], Sampling(temperature=0), length) for _ in range(3)]
        assert answers[0] == answers[1] == answers[2]
        step = engine._steps[None]
        assert step.record.works and any(step._decoder(1).graphs.values())  # type: ignore[attr-defined]
    torch.rand(1, device="cuda")  # a recording that failed would have broken PyTorch's random numbers


def test_an_answer_ends_with_one_graph_that_makes_a_token_too_many_rather_than_with_many():
    model, _ = twins(config(max_position_embeddings=96))
    engine = Engine(model.requires_grad_(False), 67, slots=2)
    longer = engine.generate([[1, 2, 3]], Sampling(temperature=0), 17)[0]
    for sampling in (Sampling(temperature=0), Sampling(temperature=0.9, seed=4)):
        shorter = [engine.generate([[1, 2, 3]], sampling, n)[0] for n in (16, 16, 5)]
        assert [len(answer) for answer in shorter] == [16, 16, 5] and shorter[0] == shorter[1]
        assert shorter[2] == shorter[0][:5] and (sampling.temperature or shorter[0] == longer[:16])
    step = engine._steps[None]
    assert {steps for decoder in step.decoders.values() for steps, _ in decoder.graphs} == {8, 4}
    whole = engine.generate([[1, 2, 3]], Sampling(temperature=0))[0]  # to the end of the context: 93 tokens
    assert len(whole) == 93 and engine.generate([[1, 2, 3]], Sampling(temperature=0))[0] == whole


def test_what_the_kernels_do_not_compute_is_left_to_others():
    cache = KVCache(config(), 1, 8, "cuda", torch.float32)
    assert not suits(sharp_model(config()).cuda(), cache)
    model, _ = twins(config())
    assert suits(model, KVCache(config(), 1, 8, "cuda", torch.bfloat16))
    assert not suits(model, KVCache(config(), 1, 8, "cuda", torch.bfloat16, rotated=False))


def test_answers_in_step_are_those_of_the_engine():
    """Whole blocks by graphs, rows that become fewer, equal prompts read once; then most of them go on from what is
    held, in another order."""
    model, exact = twins(config(max_position_embeddings=128))
    engine, plain = (Engine(model.requires_grad_(False), 67, slots=32) for _ in range(2))

    def wanted(prompts, sampling, longest, stop, seeds):
        plain.forget()
        return plain.generate(prompts, sampling, longest, stop, seeds)

    prompts, seeds = [PROMPTS[n // 8] for n in range(32)], range(32)
    for stop, longest in (((), 20), (range(0, 67, 9), 60)):
        for temperature in (0.0, 0.9):
            sampling = Sampling(temperature=temperature)
            for _ in range(3):  # launched, recorded, replayed
                found, held = together.answers(engine, prompts, sampling, longest, stop, seeds)
                same = sum(tokens == answer for (tokens, _), answer in
                           zip(found, wanted(prompts, sampling, longest, stop, seeds), strict=True))  # fmt: skip
                assert same >= 26, found  # in bf16 a tie may fall otherwise
                kept = [n for n in reversed(range(32)) if n % 8]
                later = [prompts[n] + found[n][0] + [6, 7] for n in kept]
                others = wanted(later, sampling, 20, stop, kept)
                found, _ = together.answers(engine, later, sampling, 20, stop, kept, held=held.of(kept))
                assert not temperature or all(  # read anew, and as the steps had left it
                    differ_by_rounding(exact, prompt, tokens, other, temperature, seed, 67)
                    for prompt, (tokens, _), other, seed in zip(later, found, others, kept, strict=True))  # fmt: skip
    assert isinstance(engine._steps[None], FusedStep)
