"""The compiled step against the model's forward pass in float32: weights of every kind, heads, RoPE laws, batches."""

from __future__ import annotations

import copy
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from babyllama import compiling
from babyllama.infer import library as module
from babyllama.infer.choosing import Uses
from babyllama.infer.engine import Engine
from babyllama.infer.library import library
from babyllama.infer.native import MORE_ROWS, native
from babyllama.infer.request import Request
from babyllama.infer.rows import Rows
from babyllama.infer.sampling import Sampling, used_by
from babyllama.infer.step import Launched, ModelForward
from babyllama.model.cache import KVCache
from babyllama.model.config import ModelConfig
from babyllama.model.nf4 import plain_linear
from babyllama.model.surgery import replace_modules
from babyllama.model.transformer import Transformer
from babyllama.model.wrappers import LoraLinear
from babyllama.quant.grid import Grid
from babyllama.quant.int8 import MixedInt8Linear
from babyllama.quant.linear import GroupedLinear, PackedEmbedding
from babyllama.quant.onebit import pack_trained, start
from conftest import sharp_model, tiny_config

needs_compiler = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")
LAWS = [{"kind": "none"}, {"kind": "linear", "factor": 4}, {"kind": "ntk", "factor": 4},
        {"kind": "by_parts", "factor": 4}, {"kind": "yarn", "factor": 4}]  # fmt: skip


def decoded(model: Transformer, step, dtype=torch.float32, rows=3, count=9):
    """Logits (count, rows, V) of random tokens, row r beginning r positions later, and the cache."""
    tokens = torch.randint(67, (rows, count + rows), generator=torch.Generator().manual_seed(5))
    cache = KVCache(model.config, rows, 64, "cpu", dtype)
    found = []
    with torch.inference_mode():
        cache.reserve(rows)
        for row in range(rows):  # what stands before
            for layer in range(model.config.num_hidden_layers):
                generator = torch.Generator().manual_seed(row + layer)
                for part in (cache.keys, cache.values):
                    part[layer, row, :, :row] = torch.randn(part[layer, row, :, :row].shape, generator=generator)
        for i in range(count):
            positions = torch.arange(rows) + i
            cache.reserve(rows + i)
            found.append(step(tokens[:, i], positions, cache))
    return torch.stack(found), cache


def compare(model: Transformer, bound=2e-5, dtype=torch.float32, rows=3):
    """Its own weights, exactly, in float32 is what the compiled step has to compute."""
    oracle = copy.deepcopy(model).float()
    made = native(model)
    assert made is not None
    found, cache = decoded(model, made.step, dtype, rows)
    expected, other = decoded(
        oracle, lambda t, p, c: oracle.lm_head(oracle.hidden(t[:, None], p[:, None], cache=c))[:, 0], rows=rows
    )
    assert (found - expected).norm() < bound * expected.norm()
    assert (cache.keys.float() - other.keys).norm() < bound * other.keys.norm()
    assert (cache.values.float() - other.values).norm() < bound * other.values.norm()
    return found


def packed(model: Transformer, make, ends=False) -> Transformer:
    """`make(weight (N, K)) → module` in the place of the blocks' matrices, and of a tied embedding and head."""
    replace_modules(model, lambda name, m: name.startswith("layers.") and isinstance(m, torch.nn.Linear),
                    lambda _, m: make(m.weight))  # type: ignore[arg-type]  # fmt: skip
    if ends:
        table = make(model.lm_head.weight)
        model.lm_head, model.embed_tokens = table, PackedEmbedding(table, torch.bfloat16)  # type: ignore[assignment]
    return model


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_variant_and_dtype_of_weights(variants, dtype):
    compare(sharp_model(variants).to(dtype))


@needs_compiler
@pytest.mark.parametrize("law", LAWS, ids=[law["kind"] for law in LAWS])
def test_every_law_of_fixed_frequencies(law):
    config = ModelConfig.model_validate({**tiny_config().model_dump(exclude={"rope"}), "rope": law})
    compare(sharp_model(config))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cache_of_half_precision(dtype):
    """Keys and values are rounded to its nearest numbers, in both directions."""
    model = sharp_model(tiny_config())
    compare(model, {torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype], dtype)
    _, cache = decoded(model, native(model).step, torch.float32, count=1)  # type: ignore[union-attr]
    _, half = decoded(model, native(model).step, dtype, count=1)  # type: ignore[union-attr]
    assert torch.equal(half.keys[0], cache.keys[0].to(dtype)) and torch.equal(half.values[0], cache.values[0].to(dtype))


@needs_compiler
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [16, 32, None])
@pytest.mark.parametrize("ends", [False, True])
def test_packed_groups(bits, group_size, ends):
    """Inputs of 32 and 56: groups that are whole and a short last one; rows of 32 codes and of 64."""
    grid = Grid(bits=bits, group_size=group_size, short_group=True)
    compare(packed(sharp_model(tiny_config()), lambda w: GroupedLinear.of(grid.nearest(w)), ends).bfloat16())


@needs_compiler
@pytest.mark.parametrize("group_size", [32, 96, 128, 224, None])
def test_four_bits_of_more_inputs_than_a_block(group_size):
    """Where bytes are multiplied, 128 codes are a block: groups that begin and end within one, a last block that is not
    full, one row and more; inputs of very different size, and one that is not finite."""
    grid = Grid(bits=4, group_size=group_size, short_group=True)
    config = tiny_config().model_copy(update={"hidden_size": 160, "intermediate_size": 424})
    model = sharp_model(config)
    for layer in model.layers:
        layer.mlp.up_proj.weight[::50] *= 100
    packed(model, lambda w: GroupedLinear.of(grid.nearest(w)), ends=True)
    for rows in (1, 3, 4):
        compare(model, rows=rows)
    made, cache = native(model), KVCache(config, 2, 8, "cpu", torch.float32)
    assert made is not None
    cache.reserve(1)
    assert made.step(torch.tensor([3, 4]), torch.tensor([0, 0]), cache).isfinite().all()
    model.layers[0].input_layernorm.weight[7] = torch.inf
    broken = native(copy.deepcopy(model))
    assert broken is not None and broken.step(torch.tensor([3, 4]), torch.tensor([0, 0]), cache).isnan().all()


@needs_compiler
@pytest.mark.parametrize("bits", [4, 8])
def test_inputs_in_another_order(bits):
    def made(weight):
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(bits))
        solution = Grid(bits=bits, group_size=32, short_group=True).nearest(weight[:, order])
        return GroupedLinear.of(solution._replace(order=order))

    compare(packed(sharp_model(tiny_config()), made, ends=True))


@needs_compiler
@pytest.mark.parametrize("columns", [None, [3, 20]])
def test_rows_of_int8(columns):
    """What few rows meet on a CPU: the weights' eight bits, x as it is; the oracle multiplies `dense_weight`."""
    kept = None if columns is None else torch.tensor(columns)

    def made(weight):
        return MixedInt8Linear.from_linear(plain_linear(weight, torch.float32), 6.0, kept)

    model = packed(sharp_model(tiny_config()), made)
    plain = copy.deepcopy(model)
    replace_modules(plain, lambda _, m: isinstance(m, MixedInt8Linear),
                    lambda _, m: plain_linear(m.dense_weight(), torch.float32))  # type: ignore[operator]  # fmt: skip
    torch.testing.assert_close(decoded(model, native(model).step)[0], compare(plain), rtol=1e-4, atol=1e-4)  # type: ignore[union-attr]


@needs_compiler
def test_one_bit_and_its_layer_norm():
    model = sharp_model(tiny_config())
    start(model)
    pack_trained(model)
    compare(model.bfloat16())


@needs_compiler
def test_ternary_rounds_what_goes_in():
    config = tiny_config().model_copy(update={"weights": "ternary"})
    compare(sharp_model(config), rows=1)


@needs_compiler
def test_batches_and_threads_change_nothing_but_rounding():
    model = sharp_model(tiny_config())
    for rows in (1, 2, 5, 8):
        compare(model, rows=rows)
    one = decoded(model, native(model).step)[0]  # type: ignore[union-attr]
    torch.set_num_threads(3)
    try:
        assert torch.equal(decoded(model, native(model).step)[0], one)  # type: ignore[union-attr]
    finally:
        torch.set_num_threads(1)


@needs_compiler
def test_many_rows_and_texts_go_in_parts_as_one_by_one():
    """Of several rows a text, whose later tokens read what the earlier ones write, and with logits of some of them."""
    model = sharp_model(tiny_config())
    made, lengths = native(model), [1, 7, 2, 2, 19, 1, 1, 5, 3, 1]
    assert made is not None
    rows = [(row, i) for row, length in enumerate(lengths) for i in range(length)]
    places, positions = torch.tensor(rows).unbind(1)
    tokens, wanted = torch.randint(67, (len(rows),)), torch.tensor([0, 9, 10, 31, len(rows) - 1])

    def read() -> tuple[torch.Tensor, KVCache]:
        cache = KVCache(model.config, len(lengths), 64, "cpu", torch.float32)
        return made.step(tokens, positions, cache, places, wanted), cache

    with torch.inference_mode():
        expected, other = read()
        torch.set_num_threads(3)
        try:
            found, cache = read()
        finally:
            torch.set_num_threads(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # rows in other company: rounded otherwise
    torch.testing.assert_close(cache.keys, other.keys, rtol=1e-5, atol=1e-6)


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_and_a_second_engine_have_threads_or_do_without():
    model = sharp_model(tiny_config())
    made = native(model)
    assert made is not None

    def logits() -> torch.Tensor:
        return decoded(model, made.step, rows=30)[0]

    torch.set_num_threads(3)
    try:
        expected = logits()
        with ThreadPoolExecutor(4) as pool:
            found = [pool.submit(lambda: (torch.set_num_threads(3), logits())[1]) for _ in range(8)]
        assert all((one.result() - expected).norm() < 1e-6 * expected.norm() for one in found)
        child = os.fork()
        if not child:  # ends there whatever happens; PyTorch's own operators could hang in it
            cache = KVCache(model.config, 1, 64, "cpu", torch.float32)
            made.step(torch.tensor([5]), torch.tensor([0]), cache)
            os._exit(0)
        deadline = time.monotonic() + 20
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        if ended == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert ended == (child, 0)
    finally:
        torch.set_num_threads(1)


@needs_compiler
def test_not_a_number_goes_through_to_the_logits():
    model = sharp_model(tiny_config())
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan  # type: ignore[index, union-attr]
    assert decoded(model, native(model).step)[0].isnan().all()  # type: ignore[union-attr]


@needs_compiler
def test_weights_that_change_are_read_anew():
    model = sharp_model(tiny_config())
    first = native(model)
    assert native(model) is first
    compare(packed(model, lambda w: GroupedLinear.of(Grid(group_size=32, short_group=True).nearest(w))))
    with torch.no_grad():
        model.norm.weight.mul_(2)
    compare(model)
    model.load_state_dict({k: v for k, v in model.state_dict().items() if "norm" not in k}, strict=False)
    compare(model.bfloat16())


@needs_compiler
def test_what_it_does_not_know_is_left_to_pytorch():
    config = tiny_config()
    adapted = sharp_model(config)
    adapted.layers[0].mlp.up_proj = LoraLinear(adapted.layers[0].mlp.up_proj, 2, 1.0)  # type: ignore[index, union-attr]
    assert native(adapted) is None
    dynamic = {**config.model_dump(exclude={"rope"}), "rope": {"kind": "dynamic_ntk", "factor": 2}}
    assert native(sharp_model(ModelConfig.model_validate(dynamic))) is None
    watched, seen = sharp_model(config), []
    watched.layers[1].register_forward_hook(lambda *args: seen.append(1))  # type: ignore[union-attr]
    assert native(watched) is None
    plain = sharp_model(config)
    plain.layers[0].self_attn.attend = lambda *args: args[0]  # type: ignore[union-attr]
    assert native(plain) is None


def test_without_a_compiler_a_note_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    assert library.__wrapped__() is None
    assert "no C++ compiler" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_does_not_compile_leaves_nothing_behind(monkeypatch, tmp_path, capsys):
    broken = tmp_path / "broken.cpp"
    broken.write_text("int main( {", "utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "SOURCE", broken)
    if not any(map(compiling.shutil.which, compiling.COMPILERS)):
        pytest.skip("needs a C++ compiler")
    assert library.__wrapped__() is None
    assert "error" in capsys.readouterr().err and not list((tmp_path / "cache" / "babyllama").iterdir())


@needs_compiler
@pytest.mark.parametrize("bits", [None, 4])
def test_the_engine_answers_as_by_pytorch(bits):
    """Rows that come, end and change places; more of them than the compiled step takes."""
    model = sharp_model(tiny_config())
    if bits:
        packed(model, lambda w: GroupedLinear.of(Grid(bits=bits, group_size=32, short_group=True).nearest(w)), True)
        model.embed_tokens.like = model.embed_tokens.like.float()  # type: ignore[union-attr]
    prompts = [[i % 60 + 1, i % 31 + 3] + [5] * (i % 9) for i in range(MORE_ROWS + 3)]
    engine = Engine(model, 67)
    other = Engine(model, 67, make_step=lambda m, rows, cache: Launched(ModelForward(m, rows, cache), rows))
    for some in (prompts[:1], prompts[:4], prompts[:12], prompts):
        for sampling in (Sampling(temperature=0.0), Sampling(temperature=1.0, seed=7)):  # no draw near a border
            assert engine.generate(some, sampling, 20, {0}) == other.generate(some, sampling, 20, {0})


RULES = [Sampling(temperature=0), Sampling(), Sampling(temperature=0.7, top_k=5), Sampling(temperature=1.3, top_p=0.8),
         Sampling(min_p=0.1), Sampling(temperature=0.9, top_k=40, top_p=0.9, min_p=0.02),
         Sampling(top_k=1000), Sampling(top_p=1e-6)]  # fmt: skip
SHUNNING = [Sampling(repetition_penalty=1.3), Sampling(temperature=0, presence_penalty=0.7, frequency_penalty=0.4),
            Sampling(temperature=0.8, top_k=9, repetition_penalty=0.8, frequency_penalty=-0.3)]  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("samplings", [RULES, [*RULES[:3], *SHUNNING], RULES[:1], RULES[3:4]])
def test_tokens_are_those_that_are_chosen_one_by_one(samplings, monkeypatch):
    monkeypatch.setattr("babyllama.infer.native.BUDGET", 10**12)
    model, B = sharp_model(tiny_config()), len(samplings)
    requests = [Request([7, 11 + i, 12], sampling, 40, seed=i) for i, sampling in enumerate(samplings)]
    uses, made = used_by(samplings), native(model)
    assert made is not None

    def start() -> tuple[Rows, KVCache]:
        rows, cache = Rows(67, B, torch.device("cpu")), KVCache(model.config, B, 64, "cpu", torch.float32)
        rows.place(list(range(B)), [(request, [9]) for request in requests])
        rows.live.fill_(B)
        return rows, cache

    with torch.inference_mode():
        (rows, cache), (others, other) = start(), start()
        found = made.steps(slice(0, B), rows, cache, uses, 30)
        one_by_one = []
        for _ in range(30):
            logits = made.step(others.token, others.position, other, others.index)
            one_by_one.append(others.choose(slice(0, B), logits[:, :67], uses).tokens[0])
    assert found.tolist() == torch.stack(one_by_one).tolist()
    for name in ("token", "position", "counter", *(("counts",) if uses.penalties else ())):
        assert torch.equal(getattr(rows, name), getattr(others, name)), name
    assert torch.equal(cache.keys, other.keys)


@needs_compiler
def test_tokens_come_as_often_as_they_are_likely(monkeypatch):
    """Against probabilities in float64, by Pearson's chi-square; 15 kinds of token would reach 41 once in 3,000."""
    monkeypatch.setattr("babyllama.infer.native.BUDGET", 10**12)
    model, B = sharp_model(tiny_config()), 64
    made, sampling = native(model), Sampling(temperature=0.9, top_k=16)
    assert made is not None
    rows, cache = Rows(67, B, torch.device("cpu")), KVCache(model.config, B, 64, "cpu", torch.float32)
    counts = torch.zeros(67)
    with torch.inference_mode():
        for seed in range(0, 64 * B, B):
            rows.place(list(range(B)), [(Request([7], sampling, 9, seed=seed + row), [5]) for row in range(B)])
            counts += torch.bincount(made.steps(slice(0, B), rows, cache, used_by([sampling]), 1)[0], minlength=67)
        logits = made.step(torch.tensor([5]), torch.tensor([1]), cache)[0, :67].double()
    best = logits.topk(16)
    expected = (best.values / 0.9).softmax(-1) * counts.sum()
    assert counts.sum() == counts[best.indices].sum() == 64 * B
    assert ((counts[best.indices] - expected) ** 2 / expected).sum() < 41


@needs_compiler
def test_a_call_ends_where_an_answer_may_end_and_where_logits_break(monkeypatch):
    monkeypatch.setattr("babyllama.infer.native.BUDGET", 10**12)
    model = sharp_model(tiny_config())
    made, greedy = native(model), Sampling(temperature=0)
    assert made is not None
    with torch.inference_mode():
        free, cache = Rows(67, 1, torch.device("cpu")), KVCache(model.config, 1, 64, "cpu", torch.float32)
        free.place([0], [(Request([7], greedy, 40), [5])])
        tokens = made.steps(slice(0, 1), free, cache, Uses(), 16)[:, 0].tolist()
        assert len(tokens) == 16
        rows = Rows(67, 1, torch.device("cpu"))
        rows.place([0], [(Request([7], greedy, 40, frozenset({tokens[3]})), [5])])
        found = made.steps(slice(0, 1), rows, cache, Uses(), 16)[:, 0].tolist()
        assert found == tokens[: tokens.index(tokens[3]) + 1]
        for row in (3, 66):  # one logit of 67, in a vector or in the rest
            damaged = copy.deepcopy(model)
            damaged.lm_head.weight[row] = torch.nan
            broken = native(damaged)
            assert broken is not None
            rows.place([0], [(Request([7], greedy, 40), [5])])
            assert broken.steps(slice(0, 1), rows, cache, Uses(), 16).tolist() == [[-1]]
        monkeypatch.setattr("babyllama.infer.native.BUDGET", 0)
        free.place([0], [(Request([7], greedy, 40), [5])])
        assert made.steps(slice(0, 1), free, cache, Uses(), 16).shape == (1, 1)
