"""What only a CUDA device can show. Run with: pytest -m gpu"""

import copy

import pytest
import torch
from small_training import small_trainer
from torch import nn
from torch.nn.functional import cross_entropy, rms_norm

from babyllama.data.streams.batches import Batch
from babyllama.evals import scoring
from babyllama.evals.scoring import Pair
from babyllama.infer import step
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.model import attention, transformer
from babyllama.model.bitnet import OneBitLinear
from babyllama.model.cache import KVCache
from babyllama.model.config import ModelConfig, extended
from babyllama.model.fused import rotated_product, swiglu_down
from babyllama.model.laws import ByPartsRope, ClexRope, DynamicNtkRope, LinearRope, NtkRope, PlainRope, YarnRope
from babyllama.model.products import float8_linear
from babyllama.model.roles import exact
from babyllama.model.transformer import Transformer, initialise, make_rope
from babyllama.quant.awq import Awq
from babyllama.quant.calibrate import Ends, quantise
from babyllama.quant.gptq import Gptq
from babyllama.quant.grid import Grid
from babyllama.quant.int8 import Int8, MixedInt8Linear, mixed_product
from babyllama.quant.linear import GroupedLinear
from babyllama.quant.onebit import PackedOneBitLinear
from babyllama.train.losses.cross_entropy import linear_cross_entropy
from babyllama.train.losses.float8 import float8_cross_entropy, in_float8
from babyllama.train.losses.objectives import NextToken
from babyllama.train.optimizers.optim import AdamW, Muon, Wsd
from conftest import sharp_model, tiny_config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_logits_equal_the_cpu(variants, tokens):
    model = sharp_model(variants)
    on_cpu = model(tokens)
    torch.testing.assert_close(model.cuda()(tokens.cuda()).cpu(), on_cpu, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rotated", [True, False])
def test_cached_decoding_equals_the_full_forward(variants, tokens, rotated):
    model, tokens = sharp_model(variants).cuda(), tokens.cuda()
    cache = KVCache(variants, len(tokens), 32, "cuda", torch.float32, rotated)
    parts = [model(tokens[:, :9], cache=cache), *(model(tokens[:, i : i + 1], cache=cache) for i in range(9, 22))]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), atol=1e-4, rtol=1e-4)


def test_engine_answers_as_on_the_cpu():
    model = sharp_model(tiny_config())
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [10]]
    greedy = Sampling(temperature=0.0)
    on_cpu = Engine(model, 67).generate(prompts, greedy, 20, {0})
    assert Engine(model.cuda(), 67).generate(prompts, greedy, 20, {0}) == on_cpu


def test_scores_equal_the_cpu(variants, monkeypatch):
    """Rows of several texts, texts that share their beginning, and one that is read piece by piece."""
    monkeypatch.setattr(scoring, "ROW", 64)
    model, tokens = sharp_model(variants), [7 * i * i % 67 for i in range(400)]
    prompts = [tokens[start : start + size] for start, size in ((0, 9), (9, 30), (40, 90), (150, 20))]
    pairs = [Pair([*prompt, option], tokens[:count]) for prompt in prompts for option in (5, 6) for count in (1, 3)]
    expected = scoring.score(model, pairs)
    for batch in (16, 160):
        found = scoring.score(model.cuda(), pairs, batch)
        assert [one[1:] for one in found] == [one[1:] for one in expected]
        assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-4)


def answers_alike(model, monkeypatch):
    """Rows that end early, a batch that shrinks and graphs that outgrow their slots; all at once and as streams."""
    prompts, greedy = [[1, 2, 3], list(range(60)), [*range(30), *range(40)], [11, 12]], Sampling(temperature=0.0)
    monkeypatch.setattr(step, "SLOTS", 32)
    found = []
    for eager_steps in (2, 1000):
        monkeypatch.setattr(step, "EAGER_STEPS", eager_steps)
        engine = Engine(model.requires_grad_(False).cuda(), 67)
        found.append([engine.generate(prompts, greedy), [list(engine.stream(prompt, greedy)) for prompt in prompts]])
        graphs = engine._steps[None].graphs.values() if model.rope.static else ()
        assert any(graphs) == (eager_steps == 2 and model.rope.static)
    assert found[0] == found[1]
    assert list(map(len, found[0][0])) == [93, 36, 26, 94]


def test_captured_decoding_answers_as_the_launched_one(monkeypatch, variants):
    answers_alike(sharp_model(variants.model_copy(update={"max_position_embeddings": 96})), monkeypatch)


@pytest.mark.parametrize("method", [Gptq(group_size=32, short_group=True), Int8()], ids=str)
def test_captured_decoding_of_packed_weights_too(monkeypatch, tokens, method):
    model = sharp_model(tiny_config().model_copy(update={"max_position_embeddings": 96})).requires_grad_(False)
    quantise(model, [Batch(tokens[:, :-1], tokens[:, 1:], None, None)], method)
    answers_alike(model, monkeypatch)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-2), Muon()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_trains_as_on_the_cpu(tmp_path, dtype, optimizer, compiled):
    losses = []
    for device in ("cpu", "cuda"):
        trainer = small_trainer(tmp_path / device, dtype=dtype, optimizer=optimizer)
        trainer.device = torch.device(device)
        trainer.model.to(device)
        trainer.compile = compiled and device == "cuda"
        trainer.train()
        losses.append([m["loss"] for m in trainer.run.metrics()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3 if dtype == torch.float32 else 5e-2)


def whole_and_continued(trainer, steps):
    """Trainings of so many steps: in one go, and one that was stopped after 8."""
    whole = trainer("whole", steps)
    whole.train()
    half = trainer("half", 8)
    half.train()
    half.run.unlock()
    again = trainer("half", steps)
    again.train()
    return whole, again


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_resume_continues_the_curve(tmp_path, dtype):
    def trainer(out, steps):
        made = small_trainer(tmp_path / out, dtype=dtype, steps=12, save_every=4)
        made.device, made.steps = torch.device("cuda"), steps
        made.schedule = Wsd(warmup=0, decay=1e-6)  # constant, however long
        made.model.cuda()
        return made

    whole, again = whole_and_continued(trainer, 12)
    assert [m["loss"] for m in again.run.metrics()] == pytest.approx([m["loss"] for m in whole.run.metrics()], rel=1e-4)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_linear_cross_entropy_equals_the_full_one(dtype, bound):
    hidden = torch.randn(3000, 64, device="cuda").to(dtype).requires_grad_()
    weight = torch.randn(5000, 64, device="cuda").to(dtype).requires_grad_()
    targets = torch.randint(0, 5000, (3000,), device="cuda")
    targets[::7] = -100
    loss = linear_cross_entropy(hidden, weight, targets, 1024)
    loss.backward()
    exact = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    reference = cross_entropy(exact[0] @ exact[1].T, targets, ignore_index=-100, reduction="sum")
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=bound)
    for ours, oracle in zip((hidden, weight), exact, strict=True):
        assert (ours.grad.double() - oracle.grad).norm() / oracle.grad.norm() < bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_float8_head_equals_its_twin_on_the_cpu(dtype):
    """An odd vocabulary, rows that are no multiple of 16, ignored targets, three chunks. Logits of deviation 2: sums of
    fourteen bits put some a step of half precision away, and with them slopes of float8; at 8 that is 0.7 %."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = ((torch.randn(n, 64, generator=g) * size).to(dtype) for n, size in ((3000, 1), (9001, 0.25)))
    targets = torch.randint(0, 9001, (3000,), generator=g)
    targets[::7] = -100
    found = []
    for device in ("cuda", "cpu"):
        own = [part.detach().to(device).requires_grad_() for part in (hidden, weight)]
        assert in_float8(own[0]) == (device == "cuda")
        loss = float8_cross_entropy(*own, targets.to(device), 1024)
        loss.backward()
        found.append([loss.detach().cpu(), *(part.grad.cpu() for part in own)])
    for ours, twin, bound in zip(*found, (1e-4, 5e-3, 5e-3), strict=True):
        assert (ours.double() - twin.double()).norm() < bound * twin.double().norm()


def test_the_blocks_products_in_float8_equal_their_twins_on_the_cpu():
    """Both kinds of rounding, compiled as in training, beside the same in PyTorch on a CPU. There in float32: the
    compiler keeps what lies between the norm and float8 in registers, and does not round it to bf16 first."""
    g = torch.Generator().manual_seed(0)
    states, both = torch.randn(2, 40, 64, generator=g), torch.randn(2, 40, 192, generator=g)
    weights = [torch.randn(size, generator=g) * 0.05 for size in ((192, 64), (192, 64), (64, 96))]
    cos, sin = (torch.randn(1, 1, 40, 8, generator=g).repeat(1, 1, 1, 2) for _ in range(2))  # as of pairs of numbers

    def made(states, both, qkv, up, down, cos, sin):
        x = rms_norm(states.float(), states.shape[-1:]).to(states.dtype)
        return *rotated_product(x, qkv, cos, sin, (4, 4, 4), True), float8_linear(x, up), swiglu_down(both, down, True)

    given = [part.bfloat16() for part in (states, both, *weights)]
    on_gpu = torch.compile(made)(*(part.cuda() for part in (*given, cos, sin)))
    for ours, twin in zip(on_gpu, made(*(part.float() for part in given), cos, sin), strict=True):
        assert (ours.cpu().double() - twin.double()).norm() < 5e-3 * twin.double().norm()


def test_a_training_in_float8_goes_as_without(tmp_path):
    """The whole path, compiled and recorded."""
    curves = []
    for name, float8 in (("exact", False), ("float8", True)):
        trainer = small_trainer(
            tmp_path / name,
            objective=NextToken(fp8_head=float8),
            dtype=torch.bfloat16,
            steps=40,
            tie=False,
            optimizer=AdamW(lr=1e-3),
        )
        shape = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
        trainer.model = Transformer(trainer.model.config.model_copy(update=shape))
        initialise(trainer.model, 0)
        trainer.device, trainer.compile, trainer.float8 = torch.device("cuda"), True, float8
        trainer.train()
        assert trainer.worker._float8 == float8
        curves.append([m["loss"] for m in trainer.run.metrics()])
    assert curves[0] != curves[1] and curves[1] == pytest.approx(curves[0], rel=0.01)


@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-2), Muon(weight_decay=0.1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_captured_update_equals_the_launched_one(tmp_path, monkeypatch, dtype, optimizer, accumulate):
    from babyllama.train.engines import captured

    graphs, curves = [], []
    for name, eager in (("captured", captured.EAGER_STEPS), ("launched", 10**9)):
        monkeypatch.setattr(captured, "EAGER_STEPS", eager)
        trainer = small_trainer(tmp_path / name, dtype=dtype, optimizer=optimizer, steps=14, accumulate=accumulate)
        trainer.device, trainer.compile = torch.device("cuda"), True
        trainer.train()
        graphs.append(bool(trainer.worker.graphs))
        curves.append([m["loss"] for m in trainer.run.metrics()])
    assert graphs == [True, False]
    exact = dtype == torch.float32 and isinstance(optimizer, AdamW)  # Muon orthogonalises in bf16 whatever the dtype
    assert curves[0] == pytest.approx(curves[1], rel=1e-6 if exact else 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_policy_update_equals_the_launched_one(tmp_path, monkeypatch, dtype):
    """Rollouts whose batches are of several shapes, with the reference's and the first policy's log-probabilities."""
    from small_rollouts import OBJECTIVE, practised

    from babyllama.train.engines import captured

    graphs, curves = [], []
    for name, eager in (("recorded", captured.EAGER_STEPS), ("launched", 10**9)):
        monkeypatch.setattr(captured, "EAGER_STEPS", eager)
        trainer = small_trainer(tmp_path / name, dtype=dtype, optimizer=AdamW(lr=1e-3), steps=24, micro_batch_size=16,
                                stream=lambda: practised(rows=16, chunk=16), objective=OBJECTIVE)  # fmt: skip
        trainer.device = torch.device("cuda")
        trainer.train()
        graphs.append(len(trainer.worker.graphs) if isinstance(trainer.worker, captured.Captured) else None)
        curves.append([m["loss"] for m in trainer.run.metrics()])
    assert graphs[0] >= 1 and graphs[1] == 0
    assert curves[0][:4] == pytest.approx(curves[1][:4], abs=1e-6 if dtype == torch.float32 else 1e-3)  # one rollout


@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-2), Muon()])
def test_experts_products_are_captured(tmp_path, monkeypatch, optimizer):
    """How many tokens go to which expert changes from step to step, and a graph asks nobody."""
    from babyllama.model.config import Moe
    from babyllama.train.engines import captured

    graphs, curves = [], []
    for name, eager in (("captured", captured.EAGER_STEPS), ("launched", 10**9)):
        monkeypatch.setattr(captured, "EAGER_STEPS", eager)
        trainer = small_trainer(tmp_path / name, dtype=torch.bfloat16, optimizer=optimizer, steps=14,
                                moe=Moe(experts=4, active=2, shared=1))  # fmt: skip
        trainer.device, trainer.compile = torch.device("cuda"), True
        trainer.train()
        graphs.append(bool(trainer.worker.graphs))
        curves.append([m["loss"] for m in trainer.run.metrics()])
    assert graphs == [True, False]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_batches_of_other_shapes_are_captured_anew_and_equal_the_launched_ones(tmp_path, monkeypatch):
    """Three stages of candidate sets, each long enough for a graph of its own."""
    from babyllama.train.engines import captured
    from babyllama.train.losses.sampled import Sampled

    monkeypatch.setattr("babyllama.train.losses.sampled.MULTIPLE", 1)
    recorded, curves, capture = [], [], captured.Captured._capture
    monkeypatch.setattr(captured.Captured, "_capture", lambda self, *a: recorded.append(len(a[0])) or capture(self, *a))
    for name, eager in (("captured", captured.EAGER_STEPS), ("launched", 10**9)):
        monkeypatch.setattr(captured, "EAGER_STEPS", eager)
        trainer = small_trainer(tmp_path / name, optimizer=AdamW(lr=1e-2), steps=27)
        stages = Sampled(stages=((1 / 3, 0.8), (2 / 3, 0.9)))
        trainer.stream = stages.over(trainer.stream, trainer.model.config.vocab_size, 27 * trainer.plan.rows)
        trainer.device, trainer.compile = torch.device("cuda"), True
        trainer.train()
        curves.append([m["loss"] for m in trainer.run.metrics()])
    assert len(recorded) >= 3
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)


@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-2), Muon()])
def test_a_captured_training_resumes_bit_for_bit(tmp_path, optimizer):
    def trainer(out, steps):
        made = small_trainer(tmp_path / out, dtype=torch.bfloat16, steps=16, save_every=8, optimizer=optimizer)
        made.device, made.steps, made.compile = torch.device("cuda"), steps, True
        made.schedule = Wsd(warmup=0, decay=1e-6)  # constant, however long
        return made

    whole, again = whole_and_continued(trainer, 16)
    assert again.worker.graphs
    assert [m["loss"] for m in again.run.metrics()] == [m["loss"] for m in whole.run.metrics()]
    assert again.worker.fingerprint() == whole.worker.fingerprint()


@pytest.mark.parametrize("through", [False, True])
def test_recompute_changes_nothing(tmp_path, through):
    curves = []
    for name, again in (("kept", False), ("recomputed", True)):
        trainer = small_trainer(tmp_path / name, dtype=torch.bfloat16, recompute=again)
        trainer.device, trainer.compile = torch.device("cuda"), through
        trainer.train()
        curves.append([m["loss"] for m in trainer.run.metrics()])
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


@pytest.mark.parametrize("refused", [None, 0.0, 1.0])
def test_muons_kernels_are_its_definition(monkeypatch, refused):
    """Four steps of matrices, of heads and of a stack of experts, by kernels and without."""
    from babyllama.train.optimizers import muon

    shapes, curves = [(96, 64), (96, 64), (64, 160), (3, 40, 24)], []
    for kernels in (True, False):
        if not kernels:
            monkeypatch.setattr(muon, "_plain", lambda _: False)
        generator = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.randn(shape, generator=generator).cuda()) for shape in shapes]
        rate = torch.tensor(0.02, device="cuda")
        optimizer = muon.StackedMuon([{"params": weights[:2], "rows": 32}, {"params": weights[2:]}], lr=0.02,
                                     momentum=0.9, weight_decay=0.1, beta2=0.9)  # fmt: skip
        for number in range(4):
            for group in optimizer.param_groups:
                group["lr"] = rate
            for p in weights:
                p.grad = torch.randn(p.shape, generator=generator).cuda()
            if number == 2 and refused is not None:
                optimizer.found_inf = torch.tensor(refused, device="cuda")
                weights[0].grad[0] = torch.nan if refused else 0.0
            optimizer.step()
            optimizer.found_inf = torch.zeros((), device="cuda")
        moments = [optimizer.state[p][name] for p in weights for name in ("momentum_buffer", "row_power")]
        curves.append(torch.cat([t.detach().flatten() for t in (*weights, *moments)]))
    assert curves[0].isfinite().all()
    torch.testing.assert_close(curves[0], curves[1], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("through", ["direct", "recompute"])
@pytest.mark.parametrize(("heads", "group", "packed"), [(4, None, True), (2, None, True), (2, 128, True),
                                                        (4, 128, False), (1, 128, False)])  # fmt: skip
@pytest.mark.parametrize("compiled", ["whole", "each", "not"])
def test_rows_by_kernels_equal_those_by_a_mask(monkeypatch, through, heads, group, packed, compiled):
    """Loss and gradients of passes compiled as one, each block by itself as several processes do, or not at all, rows
    of 300 tokens and documents of many lengths, attending fully or as S²-Attn, which needs none, against float32's."""
    config = ModelConfig(vocab_size=300, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=heads, max_position_embeddings=300)  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(300, (3, 301), generator=generator)
    segments = (torch.rand(3, 300, generator=generator) < 0.03).long().cumsum(1)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], None, segments if packed else None).to("cuda")

    def gradients(kernels, dtype, compiled):
        torch._dynamo.reset()
        model = transformer.Transformer(config)
        transformer.initialise(model, 1)
        model = model.to("cuda", dtype).train()
        model.through = getattr(transformer, through)
        if group:
            for block in model.layers:
                block.self_attn.attend = attention.ShiftedSparse(group_size=group)
        if compiled == "each":
            model.through = torch.compile(model.through)
        elif compiled == "whole":
            model.hidden = torch.compile(model.hidden)
        with monkeypatch.context() as patch:
            if kernels:
                patch.delattr(attention.Since, "dense")  # nobody asks for all pairs
            else:
                patch.setattr(attention, "WIDTHS", ())
            loss, _ = NextToken()(model, batch)
            loss.backward()
        return loss.item(), torch.cat([p.grad.double().flatten() for p in model.parameters()])

    exact, slope = gradients(False, torch.float32, "not")
    for kernels in (True, False) if packed else (True,):  # else by groups, which takes a minute to compile
        loss, found = gradients(kernels, torch.bfloat16, compiled)
        assert loss == pytest.approx(exact, rel=2e-3)
        assert ((found - slope).norm() / slope.norm()).item() < 0.02


LAWS = [PlainRope(), LinearRope(factor=4.0), NtkRope(factor=4.0), DynamicNtkRope(factor=4.0), ByPartsRope(factor=4.0),
        YarnRope(factor=4.0), ClexRope(max_t=4)]  # fmt: skip


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.kind)
@torch.no_grad()
def test_every_law_packed_equals_separate_by_kernels(monkeypatch, law):
    """Law 3 in halves: documents in a row against each alone, in float32; of another document no bit is seen."""
    shape = {"hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 64}
    model = sharp_model(tiny_config().model_copy(update=shape))
    model.config = extended(model.config, law)
    model.rope = make_rope(model.config)
    model.cuda()
    lengths = (90, 1, 130, 79)
    row = torch.randint(model.config.vocab_size, (1, sum(lengths)), generator=torch.Generator().manual_seed(1)).cuda()
    segments = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None].cuda()
    positions = torch.cat([torch.arange(n) for n in lengths])[None].cuda()
    alone = torch.cat([model(document) for document in row.split(lengths, dim=1)], dim=1)
    monkeypatch.delattr(attention.Since, "dense")  # nobody asks for all pairs
    for name, parameter in model.named_parameters():
        if not exact(name):
            parameter.data = parameter.half()
    found = model(row, positions, segments).float()
    other = model(torch.cat([row[:, :90].flip(1), row[:, 90:]], dim=1), positions, segments).float()
    assert ((found - alone).norm() / alone.norm()).item() < 0.02
    assert torch.equal(found[:, 90:], other[:, 90:])
    assert not torch.equal(found[:, :90], other[:, :90])


PACKINGS = [Gptq(group_size=32, short_group=True), Gptq(bits=3, group_size=None), Gptq(bits=8, group_size=None),
            Awq(bits=2, group_size=64, short_group=True)]  # fmt: skip


@pytest.mark.parametrize("method", PACKINGS, ids=lambda m: f"{m.kind}{m.bits}")
def test_packed_weights_compute_as_on_the_cpu(variants, tokens, method):
    """Few rows take the kernel, many the dense product; the ends lie in few bits too."""
    model = sharp_model(variants)
    rows = [Batch(tokens[:, :-1], tokens[:, 1:], None, None)]
    quantise(model.requires_grad_(False), rows, method, Ends(head="rtn", embedding="rtn"))
    expected = model(tokens)
    model.cuda().half()
    for few in (tokens[:1, :9], tokens):
        found = model(few.cuda()).float().cpu()
        torch.testing.assert_close(found, expected[: len(few), : few.shape[1]], atol=0.05, rtol=0.05)


SHAPES = [(4, 128, 512, 256), (4, 512, 512, 256), (4, 256, 1024, 96), (4, 128, 384, 64), (4, 128, 640, 40),
          (4, 128, 2688, 64), (4, 384, 9984, 32), (4, 128, 1408, 8192), (4, 64, 192, 30), (4, 32, 1376, 512),
          (4, 128, 512, 8313), (4, 96, 96, 24), (4, 32, 8480, 64),  # _four's up to here
          (4, 16, 80, 24), (4, 32, 344, 96), (4, 16, 1376, 48), (3, 128, 1376, 64), (2, 32, 344, 40),
          (8, 128, 512, 64), (8, 1376, 1376, 344)]  # bits, group, inputs, outputs  # fmt: skip


@pytest.mark.parametrize(("bits", "group", "inputs", "outputs"), [(4, 128, 1376, 512), (4, None, 80, 33),
                                                                  (8, 32, 136, 24), (2, 16, 176, 24)])  # fmt: skip
def test_one_kernel_unpacks_a_matrix_as_pytorch_does(bits, group, inputs, outputs):
    from babyllama.quant.kernels import unpacked

    weight = torch.randn(outputs, inputs, device="cuda")
    packed = GroupedLinear.of(Grid(bits=bits, group_size=group, short_group=True).nearest(weight))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert torch.equal(unpacked(*packed._packed, dtype), packed.dense_weight().to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bits", "group", "inputs", "outputs"), SHAPES)
def test_the_packed_kernels_multiply_by_the_dense_weight(bits, group, inputs, outputs, dtype):
    """Again and again the same bits, whatever was computed before; rows in the middle of a tensor too."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator)
    packed = GroupedLinear.of(Grid(bits=bits, group_size=group, short_group=True).nearest(weight)).cuda()
    many = torch.randn(21, inputs, generator=generator).cuda().to(dtype)
    for rows in (1, 5, 8, 9, 16):
        x = many[5 : 5 + rows]
        found, expected = packed(x), x.float() @ packed.dense_weight().T
        assert float((found.float() - expected).norm() / expected.norm()) < 5e-3
        assert torch.equal(found, packed(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("inputs", "outputs"), [(512, 512), (344, 40), (1376, 520), (4104, 72)])
def test_eight_bits_with_outliers_are_the_plain_product(inputs, outputs, dtype):
    """More outlier columns than a turn of the kernel takes, none, and columns that are kept in 16 bits."""
    generator = torch.Generator().manual_seed(0)
    dense = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(dense.weight, generator=generator)
    for threshold, kept in ((6.0, None), (None, None), (6.0, torch.tensor([5, 9]))):
        packed = MixedInt8Linear.from_linear(dense, threshold, kept)
        held = [packed.weight, packed.scales, threshold, packed.kept, packed.kept_index]
        packed = copy.deepcopy(packed).cuda()
        for rows in (1, 5, 8, 9, 16):
            x = torch.randn(rows, inputs, generator=generator).clamp(-5, 5)
            x[0, 3 : 3 * (rows + 1) : 3] = x[-1, inputs - 7] = 40.0
            x = x.to(dtype)
            found, expected = packed(x.cuda()), mixed_product(x.double(), *held)
            assert float((found.cpu() - expected).norm() / expected.norm()) < 5e-3, (threshold, rows)
            assert torch.equal(found, packed(x.cuda()))
            x[-1, 5] = torch.nan
            assert packed(x.cuda())[-1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("inputs", "outputs"), [(512, 512), (340, 40), (1376, 520), (4104, 72)])
def test_one_bit_is_as_on_the_cpu(inputs, outputs, dtype):
    generator = torch.Generator().manual_seed(0)
    trained = OneBitLinear(inputs, outputs).requires_grad_(False)
    for values in (trained.weight, trained.g, trained.h):
        values.normal_(generator=generator)
    packed = PackedOneBitLinear.of(trained)
    expected_of = packed.double()
    packed = copy.deepcopy(packed).cuda()
    for rows in (1, 5, 8, 9, 16):
        x = torch.randn(rows, inputs, generator=generator).to(dtype)
        found, expected = packed(x.cuda()), expected_of(x.double())
        assert float((found.cpu() - expected).norm() / expected.norm()) < 1e-2
        assert torch.equal(found, packed(x.cuda()))


def test_every_setting_of_the_kernel_computes_the_same():
    from babyllama.quant.kernels import CONFIGS, packed_product

    weight = torch.randn(192, 2048, generator=torch.Generator().manual_seed(0))
    packed = GroupedLinear.of(Grid(bits=4, group_size=256).nearest(weight)).cuda()
    x = torch.randn(3, 2048, device="cuda", dtype=torch.bfloat16)
    expected = x.float() @ packed.dense_weight().T
    for config in CONFIGS:
        found = packed_product(x, *packed._packed, config).float()
        assert float((found - expected).norm() / expected.norm()) < 5e-3, config
