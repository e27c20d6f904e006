"""Law 5: an adapter at its start is the base, merged it is what it was attached, off it is the base again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from babyllama.errors import InputError
from babyllama.model.lora import Dora, Lora, attach, enabled, merge, switch, unmerge
from babyllama.model.nf4 import PACKED, Int8Linear, Nf4Linear, pack_base
from babyllama.model.surgery import dense_weight, replace_modules
from babyllama.model.wrappers import DoraLinear, LoraLinear
from babyllama.quant.folder import to_dense
from conftest import sharp_model

WHOLE = ("embed_tokens", "norms")
ADAPTERS = {
    "lora": Lora(rank=4),
    "lora-sqrt-ranks": Lora(rank=4, ranks={"q_proj": 2, "mlp.down_proj": 8}, scaling="sqrt_rank"),
    "lora-some": Lora(rank=3, targets=("v_proj", "layers.1.mlp.up_proj")),
    "lora-plus": Lora(rank=4, train=WHOLE),
    "dora": Dora(rank=4),
    "dora-plus": Dora(rank=4, train=WHOLE),
}
BASES = ("dense", "nf4", "int8")


@pytest.fixture(params=BASES)
def based(request, model):
    """A sharp model of every variant × every way to keep its blocks."""
    pack_base(model, request.param)
    return model


@pytest.fixture(params=ADAPTERS.values(), ids=ADAPTERS.keys())
def adapter(request):
    return request.param


def stir(model: nn.Module, seed: int = 0, size: float = 0.1) -> None:
    """Move everything that an adapter trains, as a training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)


def test_start_is_the_base_to_the_bit_and_so_is_off_and_a_merge_of_nothing(based, adapter, tokens):
    before = based(tokens)
    attach(based, adapter, seed=1)
    assert torch.equal(based(tokens), before)
    dense = copy.deepcopy(based)
    merge(dense)
    to_dense(dense)
    torch.testing.assert_close(dense(tokens), before, rtol=0, atol=1e-5)
    stir(based)
    assert not torch.allclose(based(tokens), before, atol=1e-2)
    with enabled(based, False):
        assert torch.equal(based(tokens), before)


def test_merged_at_the_start_the_weights_are_the_bases_to_the_bit(model, adapter):
    before = {name: p.clone() for name, p in model.named_parameters()}
    attach(model, adapter, seed=1)
    merge(model)
    assert {name: p.shape for name, p in model.named_parameters()} == {n: p.shape for n, p in before.items()}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_merged_is_attached(based, adapter, tokens):
    attach(based, adapter, seed=1)
    stir(based)
    attached = based(tokens)
    kept = merge(based)
    to_dense(based)
    assert {type(m) for m in based.modules() if hasattr(m, "in_features")} == {nn.Linear}
    torch.testing.assert_close(based(tokens), attached, rtol=1e-4, atol=5e-4)
    unmerge(based, kept)
    if all(not isinstance(kept[name].base, Nf4Linear | Int8Linear) for name in kept if hasattr(kept[name], "rank")):
        assert torch.equal(based(tokens), attached)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["lora-sqrt-ranks", "lora-plus", "dora", "dora-plus"])
def test_in_half_precision(config, tokens, name, dtype):
    """Start, off and merge of nothing to the bit; then what is computed is the float32 model's up to rounding."""
    model = sharp_model(config).to(dtype)
    before, weights = model(tokens), [p.clone() for p in model.parameters()]
    attach(model, ADAPTERS[name], seed=1)
    assert torch.equal(model(tokens), before)
    nothing = copy.deepcopy(model)
    merge(nothing)
    assert all(map(torch.equal, nothing.parameters(), weights))
    stir(model, size=0.03)
    exact = copy.deepcopy(model).float()
    merge(exact)
    wanted, step = exact(tokens), 2.0 ** -(7 if dtype == torch.bfloat16 else 10)
    plain = sharp_model(config).to(dtype)  # how far rounding alone takes a model without an adapter
    noise = (plain(tokens).float() - copy.deepcopy(plain).float()(tokens)).norm() / wanted.norm()
    attached = model(tokens)
    assert torch.equal(attached, model(tokens)) and (attached.float() - wanted).norm() < 4 * noise * wanted.norm()
    with enabled(model, False):
        assert torch.equal(model(tokens), before)
    merge(model)
    for mine, float32 in zip(model.parameters(), exact.parameters(), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.float(), float32, rtol=step, atol=1e-6)
    assert (model(tokens).float() - wanted).norm() < 4 * noise * wanted.norm()


def test_tied_stays_tied(variants, tokens):
    model = sharp_model(variants)
    attach(model, Lora(rank=4, train=("embed_tokens",)), seed=1)
    stir(model)
    attached = model(tokens)
    assert (model.lm_head.weight is model.embed_tokens.weight) == variants.tie_word_embeddings
    merge(model)
    assert (model.lm_head.weight is model.embed_tokens.weight) == variants.tie_word_embeddings
    torch.testing.assert_close(model(tokens), attached, rtol=1e-4, atol=5e-4)


def test_only_what_was_asked_for_is_trained(based, adapter):
    names = {name for name, _ in based.named_parameters()}
    attach(based, adapter, seed=1)
    trained = {name for name, p in based.named_parameters() if p.requires_grad}
    parts = {"lora_A", "lora_B"} | ({"magnitude"} if adapter.kind == "dora" else set())
    parts |= {"weight"} if adapter.train else set()
    assert {name.rpartition(".")[2] for name in trained} == parts
    assert trained.isdisjoint(names) and all(".own." in n for n in trained if n.endswith("weight"))


# ── against formulas typed here ─────────────────────────────────────────────────────────────────────────────────────
def plain_lora(W, A, B, m, scale, x):
    return x @ (W + scale * B @ A).T


def plain_dora(W, A, B, m, scale, x):
    """arXiv 2402.09353, equation 5, with the norm held fixed in the gradient (section 4.3)."""
    turned = W + scale * B @ A
    norm = turned.detach().pow(2).sum(1).sqrt()
    return x @ (turned * (m / norm)[:, None]).T


@pytest.mark.parametrize("kept", BASES)
@pytest.mark.parametrize("kind,formula", [(LoraLinear, plain_lora), (DoraLinear, plain_dora)])
def test_values_and_gradients_are_the_dense_formulas(kind, formula, kept):
    g = torch.Generator().manual_seed(0)
    base = nn.Linear(24, 40, bias=False)
    base.weight = nn.Parameter(torch.randn(40, 24, generator=g), requires_grad=False)
    base = PACKED[kept].from_linear(base) if kept != "dense" else base
    ours = kind(base, 5, 0.7)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=g)
    x = torch.randn(2, 7, 24, generator=g, requires_grad=True)
    weigh = torch.randn(2, 7, 40, generator=g)
    (ours(x) * weigh).sum().backward()
    exact = [t.detach().double().requires_grad_() for t in (ours.lora_A, ours.lora_B)]
    m = ours.magnitude.detach().double().requires_grad_() if kind is DoraLinear else None
    x64, W = x.detach().double().requires_grad_(), dense_weight(base).detach().double()
    y = formula(W, *exact, m, 0.7, x64)
    (y * weigh.double()).sum().backward()
    torch.testing.assert_close(ours(x).double(), y, rtol=1e-4, atol=1e-3)
    for mine, theirs in zip((ours.lora_A, ours.lora_B, x), (*exact, x64), strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-3)
    if m is not None:
        torch.testing.assert_close(ours.magnitude.grad.double(), m.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kept", BASES)
def test_doras_magnitude_is_the_norm_of_the_loaded_weights(model, kept):
    """Fault 7: a magnitude that was taken before the weights were loaded."""
    pack_base(model, kept)
    rows = {path: dense_weight(m).double().pow(2).sum(1).sqrt() for path, m in model.named_modules()
            if path.endswith("_proj")}  # fmt: skip
    attach(model, Dora(rank=2), seed=1)
    for path, norm in rows.items():
        torch.testing.assert_close(model.get_submodule(path).magnitude.double(), norm, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kept", BASES)
def test_rows_of_zeros_have_no_direction_and_stay_finite(config, kept, tokens):
    model = sharp_model(config)
    model.layers[1].mlp.down_proj.weight[::2] = 0
    pack_base(model, kept)
    before = model(tokens)
    attach(model, Dora(rank=2), seed=1)
    assert torch.equal(model(tokens), before)
    model(tokens).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "adapter,scale", [(Lora(rank=4, alpha=6), 1.5), (Lora(rank=4, alpha=6, scaling="sqrt_rank"), 3)]
)
def test_scale_and_start_of_the_factors(config, adapter, scale):
    first, again, other = (sharp_model(config) for _ in range(3))
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        attach(model, adapter, seed)
    a, b, c = (model.layers[0].mlp.down_proj for model in (first, again, other))
    assert a.scale == scale and not a.lora_B.any()
    assert torch.equal(a.lora_A, b.lora_A) and not torch.equal(a.lora_A, c.lora_A)
    bound = config.intermediate_size**-0.5  # Kaiming-uniform with a = √5
    assert a.lora_A.abs().max() <= bound and a.lora_A.detach().std() == pytest.approx(bound / 3**0.5, rel=0.15)


def test_dropout_is_for_training_and_for_the_factors_only(config, tokens):
    model = sharp_model(config)
    before = model(tokens)
    attach(model, Lora(dropout=0.5), seed=1)
    model.train()
    assert torch.equal(model(tokens), before)  # B is zero
    stir(model)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


# ── several ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("kept", BASES)
def test_adapters_stack_and_are_switched_one_by_one(config, kept, tokens):
    model = sharp_model(config)
    pack_base(model, kept)
    base = model(tokens)
    attach(model, Lora(rank=2, train=("norms",)), 1, "first")
    stir(model, 1)
    one = model(tokens)
    attach(model, Dora(rank=3, train=("norms",)), 2, "second")
    assert torch.equal(model(tokens), one)
    assert all(".base." not in n or not p.requires_grad for n, p in model.named_parameters())
    stir(model, 2)
    both = model(tokens)
    assert not torch.allclose(both, one, atol=1e-2)
    with enabled(model, False, "second"):
        assert torch.equal(model(tokens), one)
        with enabled(model, False):
            assert torch.equal(model(tokens), base)
        assert torch.equal(model(tokens), one)
    assert torch.equal(model(tokens), both)
    switch(model, False, "second")
    part = copy.deepcopy(model)
    merge(part)
    torch.testing.assert_close(part(tokens), one, rtol=1e-4, atol=5e-4)
    switch(model, True)
    kept_modules = merge(model)
    torch.testing.assert_close(model(tokens), both, rtol=1e-4, atol=5e-4)
    unmerge(model, kept_modules)
    assert torch.equal(model(tokens), both)


def test_two_loras_add_up(config, tokens):
    model = sharp_model(config)
    W = model.layers[0].mlp.up_proj.weight.clone()
    for number in (1, 2):
        attach(model, Lora(rank=number, targets=("up_proj",)), number, f"n{number}")
        stir(model, number)
    outer = model.layers[0].mlp.up_proj
    expected = W + sum(m.scale * m.lora_B @ m.lora_A for m in (outer, outer.base))
    torch.testing.assert_close(dense_weight(outer), expected)


class Doubled(nn.Module):
    """Some other linear-like module: it stands for twice the matrix that it keeps."""

    def __init__(self, weight):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("halved", weight / 2)

    def dense_weight(self):
        return self.halved * 2

    def forward(self, x):
        return linear(x, self.halved) * 2


def test_any_linear_like_module_can_be_the_base(config, tokens):
    model = sharp_model(config)
    before = model(tokens)
    replace_modules(model, lambda n, m: n.startswith("layers.") and isinstance(m, nn.Linear),
                    lambda _, m: Doubled(m.weight.detach()))  # fmt: skip
    attach(model, Dora(rank=2), 1)
    torch.testing.assert_close(model(tokens), before)
    stir(model)
    attached = model(tokens)
    merge(model)
    torch.testing.assert_close(model(tokens), attached, rtol=1e-4, atol=5e-4)


# ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("adapter,said", [
    (Lora(targets=("q_proj", "qkv")), r"adapter\.targets: 'qkv' matches no linear.*q_proj, k_proj"),
    (Lora(targets=("proj",)), "'proj' matches no linear"),
    (Lora(targets=("lm_head",)), "'lm_head' matches no linear in the blocks"),
    (Lora(targets=("q_proj",), ranks={"k_proj": 2}), r"adapter\.ranks: 'k_proj' matches no linear"),
    (Lora(rank=33), r"rank 33 is above the smaller side of .*q_proj \(32 × 32\); choose at most 32"),
    (Lora(ranks={"k_proj": 17}), r"rank 17 is above.*k_proj \(16 × 32\)"),
    (Lora(train=("lm_head",)), "lm_head is tied to embed_tokens"),
])  # fmt: skip
def test_what_does_not_fit_is_one_clear_line(config, adapter, said):
    with pytest.raises(InputError, match=said) as error:
        attach(sharp_model(config), adapter, 1)
    assert "\n" not in str(error.value)
