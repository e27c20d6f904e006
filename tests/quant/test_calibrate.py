"""The walk: inputs come from quantised parts, the same twice, little is lost at 8 bits, faults are one line."""

from __future__ import annotations

import copy

import pytest
import torch
from small_data import prepared

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.errors import InputError
from babyllama.model.surgery import dense_weight
from babyllama.quant.awq import Awq
from babyllama.quant.calibrate import STAGES, Calibration, Ends, Layer, Report, check, quantise, settled, stored_bits
from babyllama.quant.gptq import Gptq
from babyllama.quant.grid import Grid
from babyllama.quant.int8 import Int8
from babyllama.quant.linear import GroupedLinear, PackedEmbedding
from babyllama.quant.onebit import PackSigns, start
from babyllama.quant.rtn import Moments, Rtn
from conftest import sharp_model

METHODS = [
    Rtn(group_size=16, short_group=True),
    Gptq(group_size=16, short_group=True),
    Gptq(group_size=16, short_group=True, act_order=True),
    Awq(group_size=16, short_group=True),
]


@pytest.fixture
def variants(two_variants):
    return two_variants


def batches(padded=0, documents=False, count=3):
    """Rows of 24 random tokens; `padded`: without targets at the end."""
    found = []
    for seed in range(count):
        tokens = torch.randint(67, (2, 25), generator=torch.Generator().manual_seed(seed))
        targets = tokens[:, 1:].clone()
        if padded:
            targets[:, -padded:] = IGNORE
        positions = segments = None
        if documents:
            positions, segments = (torch.arange(24) % 12).expand(2, -1), (torch.arange(24) // 12).expand(2, -1)
        found.append(Batch(tokens[:, :-1], targets, positions, segments))
    return found


def done(model, method, rows=None, ends=None):
    made = copy.deepcopy(model)
    return made, quantise(made, batches() if rows is None else rows, method, ends)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)
def test_every_matrix_is_packed_and_reported(model, method, tokens):
    seen = []
    made = copy.deepcopy(model)
    report = quantise(made, batches(), method, progress=lambda *now: seen.append(now))
    names = [f"layers.{i}.{name}" for i in range(3) for stage in STAGES for name in stage]
    assert [layer.name for layer in report.layers] == names == [name for _, _, name in seen]
    assert [now for now, _, _ in seen] == list(range(1, 22)) and {total for _, total, _ in seen} == {21}
    assert all(type(made.get_submodule(name)) is GroupedLinear for name in names)
    assert report.tokens == 3 * 2 * 24 and made(tokens).isfinite().all()
    assert all(0 < layer.error < 0.05 and layer.seconds > 0 for layer in report.layers)
    assert 4 + 20 / 16 <= report.bits_per_weight < 8 and report.seconds > 0 and report.error < 0.05


@pytest.mark.parametrize("ends", [Ends(), Ends(head="rtn"), Ends(head="gptq", embedding="rtn"), Ends(embedding="rtn")],
                         ids=lambda e: f"{e.head}-{e.embedding}")  # fmt: skip
def test_progress_ends_at_its_total(model, ends):
    seen = []
    quantise(copy.deepcopy(model), batches(count=1), METHODS[0], ends, progress=lambda *now: seen.append(now))
    assert [now for now, _, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total, _ in seen} == {len(seen)}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)
def test_eight_bits_change_little_and_two_runs_nothing(model, method, tokens):
    ends = Ends(head="gptq", embedding="rtn")
    fine = method.model_copy(update={"bits": 8})
    made, report = done(model, fine, ends=ends)
    logits = model(tokens)
    assert float((made(tokens) - logits).norm() / logits.norm()) < 0.02
    again, second = done(model, fine, ends=ends)
    assert torch.equal(again(tokens), made(tokens))
    assert [layer[:4] for layer in report.layers] == [layer[:4] for layer in second.layers]


def inputs_of(model, name, rows):
    """Its inputs while the whole model runs, document for document by the model's own way."""
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    for batch in rows:
        model.hidden(batch.tokens, batch.positions, batch.segments)
    handle.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("documents", [False, True])
def test_inputs_are_those_of_the_quantised_parts(model, documents):
    """Every matrix, solved again from the finished model's own inputs, is the one that was found: what comes before
    it was already quantised, and nothing behind it counts."""
    rows = batches(documents=documents)
    method = Gptq(bits=3, group_size=16, short_group=True)
    made, report = done(model, method, rows)
    for layer in report.layers:
        x = inputs_of(made, layer.name, rows)
        moments = Moments(x.shape[1], x.device)
        moments.add(x)
        weight, found = model.get_submodule(layer.name).weight, made.get_submodule(layer.name).dense_weight()
        same = (method.solve(weight, moments, layer.name).dense() - found).abs() < 1e-6
        assert same.float().mean() > 0.97  # sums in another order may turn a tie
        lost, whole = ((part @ x.T).square().sum() for part in (found - weight, weight))
        assert layer.error == pytest.approx(float(lost / whole), rel=1e-2)


def test_padding_does_not_count(model):
    """Other tokens in the places of the padding change nothing."""
    rows, others = batches(padded=5), batches(padded=5)
    for batch in others:
        batch.tokens[:, -4:] = 3
    (made, report), (other, _) = (
        done(model, Gptq(bits=3, group_size=16, short_group=True), part) for part in (rows, others)
    )
    assert report.tokens == 3 * 2 * 19
    for name, buffer in made.named_buffers():
        torch.testing.assert_close(dict(other.named_buffers())[name], buffer)


@pytest.mark.parametrize("head,embedding", [("keep", "rtn"), ("rtn", "keep"), ("gptq", "keep"), ("gptq", "rtn")])
def test_the_ends(model, tokens, head, embedding):
    made, report = done(model, Rtn(bits=4, group_size=16, short_group=True), ends=Ends(head=head, embedding=embedding))
    names = {layer.name for layer in report.layers if not layer.name.startswith("layers.")}
    if model.config.tie_word_embeddings:
        assert len(names) == 1 and made.embed_tokens.packed is made.lm_head
    else:
        assert names == {name for name, how in (("lm_head", head), ("embed_tokens", embedding)) if how != "keep"}
        assert isinstance(made.embed_tokens, PackedEmbedding) == (embedding == "rtn")
        assert isinstance(made.lm_head, GroupedLinear) == (head != "keep")
    assert made(tokens).isfinite().all() and made.embed_tokens.weight.dtype == torch.float32


def test_the_first_block_sees_the_rounded_embedding(model):
    rows = batches()
    made, report = done(
        model, Gptq(bits=3, group_size=16, short_group=True), rows, Ends(head="rtn", embedding="rtn", bits=2)
    )
    x, name = inputs_of(made, "layers.0.self_attn.q_proj", rows), "layers.0.self_attn.q_proj"
    weight, found = model.get_submodule(name).weight, made.get_submodule(name).dense_weight()
    lost, whole = ((part @ x.T).square().sum() for part in (found - weight, weight))
    layer = next(layer for layer in report.layers if layer.name == name)
    assert layer.error == pytest.approx(float(lost / whole), rel=1e-2)


@pytest.mark.parametrize(
    "method",
    [Gptq(bits=3, group_size=16, short_group=True), Awq(bits=3, group_size=16, short_group=True)],
    ids=lambda m: m.kind,
)
def test_calibration_pays(model, method):
    """Less error in every block than plain rounding has, on rows that calibration has not seen."""
    rows, fresh = batches(count=40), batches(count=44)[40:]
    plain, made = (done(model, m, rows)[0] for m in (Rtn(bits=3, group_size=16, short_group=True), method))
    errors = [sum(float((m.hidden(b.tokens) - model.hidden(b.tokens)).square().sum()) for b in fresh)
              for m in (plain, made)]  # fmt: skip
    assert errors[1] < errors[0]


@pytest.mark.parametrize("method", [*METHODS, Int8(), PackSigns()], ids=lambda m: m.kind)
def test_a_matrix_of_zeros_loses_nothing(config, tokens, method):
    model = sharp_model(config)
    model.layers[1].mlp.down_proj.weight.zero_()
    if method.kind == "onebit":
        start(model)
    (layer,) = [f for f in quantise(model, batches(), method).layers if f.name == "layers.1.mlp.down_proj"]
    assert layer.error == 0
    assert model(tokens).isfinite().all()
    assert not dense_weight(model.layers[1].mlp.down_proj).any()


def test_stored_bits():
    weight = torch.randn(24, 64)
    assert stored_bits(Grid(bits=4, group_size=16, short_group=True).nearest(weight)) == 4 + 20 / 16
    ordered = Grid(bits=3, group_size=None).nearest(weight)._replace(order=torch.arange(64))
    assert stored_bits(ordered) == pytest.approx(3 + 19 / 64 + 32 / 24)
    layers = (Layer("a", 10, 4.0, 0.2, 1.0), Layer("b", 30, 8.0, 0.4, 2.0))
    report = Report(layers, 5)
    assert (report.bits_per_weight, report.seconds) == (7.0, 3.0) and report.error == pytest.approx(0.3)


def test_rows_are_drawn_from_any_corpus(tmp_path):
    data = prepared(tmp_path, "validation=0.1")
    for recipe in (Calibration(samples=7, context=16, rows=4),
                   Calibration(samples=5, context=32, packing="documents"),
                   Calibration(samples=5, context=16, weights={"chat": 1.0})):  # fmt: skip
        found, again, other = (recipe.batches(data, 64, seed) for seed in (0, 0, 1))
        assert sum(len(batch.tokens) for batch in found) == recipe.samples
        assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(found, again, strict=True))
        assert any(not torch.equal(a.tokens, b.tokens) for a, b in zip(found, other, strict=True))
    for recipe, said in ((Calibration(samples=100_000), r"too short for calibration.samples=100000: its train split"),
                         (Calibration(context=65), "calibration.context: 65 is above the model's 64 positions"),
                         (Calibration(weights={"x": 1.0}), "no corpus 'x'")):  # fmt: skip
        with pytest.raises(InputError, match=said) as error:
            recipe.batches(data, 64, 0)
        assert "\n" not in str(error.value)


def test_faults_are_one_line(model):
    made, _ = done(model, Rtn(group_size=16, short_group=True))
    with pytest.raises(InputError, match=r"layers.0.self_attn.q_proj is a GroupedLinear: the model is already quant"):
        quantise(made, batches(), Rtn())
    model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(InputError, match=r"layers.1.mlp.up_proj: NaN or infinite weights"):
        quantise(model, batches(), Rtn())


def test_a_group_that_divides_no_width_is_refused_or_chosen(model):
    with pytest.raises(InputError, match="down_proj has 56 inputs, no multiple of 32; give null, or"):
        check(model, Gptq(group_size=32))
    assert settled(Gptq(bits=3), model).group_size is None and settled(Gptq(group_size=32), model).group_size == 32
    given = Gptq(group_size=128)  # what somebody chose is refused, not changed
    assert settled(given, model) is given
    with pytest.raises(InputError, match="no multiple of 128"):
        check(model, given)
