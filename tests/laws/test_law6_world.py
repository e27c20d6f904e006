"""Law 6 in many processes: how many train together, by which engine, does not change the update."""

import json
import math
import tempfile
from pathlib import Path

import pytest
import torch
from mishaps import poison
from shrinking import FOUR
from small_training import Formula, small_trainer
from spread import Alone, Result, spread_results
from spread_training import ALL, CLEX, CURVES, HALVES, TRADES, settings
from torch.nn.functional import cross_entropy

from babyllama.model.transformer import Transformer
from babyllama.train.engines.deepspeed import computes_fp16

ALONE: dict[str, Alone] = {}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return spread_results(tmp_path_factory)


@pytest.mark.parametrize("name", CURVES)
def test_two_processes_learn_what_one_does(folder, tmp_path, name):
    """Loss, gradient norm, learning rate and every weight, over the curve. Faults 2, 11, 19: DeepSpeed's own schedule
    or a misnamed accumulation, a loss divided once more, a rate multiplied by the accumulation."""
    kwargs = {key: value for key, value in CURVES[name][1].items() if key != "recompute"}
    if str(kwargs) not in ALONE:
        ALONE[str(kwargs)] = Alone(tmp_path / "alone", **kwargs)
    # AdamW differs by float32's rounding, Muon by that of its bf16 iteration.
    Result(folder, name).close_to(ALONE[str(kwargs)], 2e-6 if "adamw" in name else 1e-4)


@pytest.mark.parametrize("name", FOUR)
def test_four_processes_learn_what_one_does(folder, tmp_path, name):
    """Meshes of two dimensions: copies of shards."""
    alone = Alone(tmp_path / "alone", **FOUR[name][1])
    Result(folder, name).close_to(alone, 2e-6 if "adamw" in name else 1e-4)


def by_hand(steps: int = 4) -> tuple[dict[str, torch.Tensor], list[list[float]]]:
    """The training of `settings("adamw", …)` in float64, typed out: the mean over all targets of a step's sixteen rows,
    clipped at 1, AdamW (lr 0.01, betas 0.9 and 0.95, eps 0.001, decay 0.1 of matrices), half a cosine down to a tenth.
    """
    model = started().double()
    weights = dict(model.named_parameters())
    first, second = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    curve = []
    for step in range(steps):
        batch = Formula().batch(16 * step, 16)
        loss = cross_entropy(model(batch.tokens).flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
        grads = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        norm = math.sqrt(sum(g.square().sum().item() for g in grads.values()))
        lr = 0.01 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        curve.append([step + 1, loss.item(), norm, lr])
        with torch.no_grad():
            for name, weight in weights.items():
                grad = grads[name] * min(1.0, 1 / norm)
                first[name] = 0.9 * first[name] + 0.1 * grad
                second[name] = 0.95 * second[name] + 0.05 * grad**2
                mean, power = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.95 ** (step + 1))
                weight *= 1 - lr * (0.1 if weight.ndim == 2 else 0)
                weight -= lr * mean / (power.sqrt() + 0.001)
    return model.state_dict(), curve


def started() -> Transformer:
    """The model that every training here starts from."""
    with tempfile.TemporaryDirectory() as folder:
        return small_trainer(Path(folder) / "run").model


@pytest.mark.parametrize("name", [name for name in (*CURVES, *FOUR) if name.endswith("-adamw-4")])
def test_processes_learn_what_the_formulas_say(folder, name):
    """The oracle is neither our trainer nor an engine: a plain loop in float64."""
    weights, curve = by_hand()
    result = Result(folder, name)
    for mine, theirs in zip(result.losses, curve, strict=True):
        assert mine[:4] == pytest.approx(theirs, abs=1e-5)
    for key, weight in result.weights.items():
        torch.testing.assert_close(weight.double(), weights[key], atol=5e-6, rtol=0)
    begun = started().state_dict()
    assert min((weights[key] - begun[key]).abs().max().item() for key in weights) > 2e-4  # far beyond the bounds


def test_gradients_travel_once_a_step(folder):
    """Four steps of eight micro-batches a rank. DDP: one bucket, and one pass more that settles the buckets.
    FSDP: two blocks and the root."""
    assert json.loads((folder / "exchanges.json").read_text()) == {"ddp": 4 + 1, "fsdp": 4 * 3, "fsdp_kept": 4 * 3}


def test_fsdp_holds_whole_blocks_as_long_as_it_was_told(folder):
    """Its whole weights go after its forward pass, or (reshard_after_forward: false) wait for the backward one."""
    held = json.loads((folder / "held.json").read_text())
    assert held == {"fsdp": [False] * 32, "fsdp_kept": [True] * 32}  # four steps of eight micro-batches


@pytest.mark.parametrize("how", ["split", "shared", "copies"])
def test_muon_of_many_steps_as_that_of_one(folder, how):
    """Matrices split by rows, which the ranks cannot share equally, whole ones, and copies: the work is shared out."""
    apart, share = json.loads((folder / "shapes.json").read_text())[how]
    assert apart <= 1e-6
    assert share < 0.75  # of three matrices two, and of the rows of one all that there is


@pytest.mark.parametrize("ranks", [2, 4])
def test_attention_over_shared_out_rows_is_that_of_one_process(folder, ranks):
    """Outputs and gradients, for every attend function, with documents, with key heads that are too few to share."""
    apart = json.loads((folder / f"trades-{ranks}.json").read_text())
    assert len(apart) == len(TRADES) and max(apart) < 2e-6


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("engine", ALL)
def test_half_precision_is_the_one_that_was_asked_for(folder, tmp_path, engine, precision):
    """Fault 10: "bf16" that runs fp16 with the scaler off. Fault 21: the model that the loss calls is the plain one,
    within the engine's call, so its gradients are exchanged, or the curves would part."""
    if engine.startswith("zero") and precision == "fp16" and not computes_fp16(torch.device("cpu")):
        refused = (folder / f"{engine}-{precision}.refused").read_text()
        assert refused.startswith("precision: fp16 is nothing that deepspeed computes on this cpu; use precision=bf16")
        pytest.skip("DeepSpeed says that this CPU computes no fp16")
    result = Result(folder, f"{engine}-{precision}")
    assert result.said["seen"] == [[str(HALVES[precision]), "Transformer"]]
    assert result.said["scaled"] == (precision == "fp16") and (result.said["scale"] > 1) == (precision == "fp16")
    alone = Alone(tmp_path / "alone", dtype=HALVES[precision], **settings("adamw", 4))
    result.close_to(alone, 2e-3)
    assert {w.dtype for w in result.weights.values()} == {HALVES[precision]}


@pytest.mark.parametrize("engine", ["ddp", "ddp_after"])
def test_gradients_that_travel_in_bf16_are_rounded_and_no_more(folder, engine):
    rounded, exact = Result(folder, f"{engine}-exchange-bf16"), Result(folder, "ddp-adamw-4")
    rounded.close_to(exact, 2e-3)
    assert any((weight != exact.weights[name]).any() for name, weight in rounded.weights.items())


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_law_that_learns_does_so_in_float32(folder, tmp_path, engine):
    """CLEX: the whole model in bf16 but it, whose frequencies at position 10⁴ would be off by radians."""
    cases = {f"{engine}-adamw-clex": (torch.float32, 1e-4), f"{engine}-clex-bf16": (torch.bfloat16, 1e-2)}
    for name, (dtype, most) in cases.items():
        result = Result(folder, name)
        alone = Alone(tmp_path / name, dtype=dtype, **settings("adamw", 4, rope=CLEX))
        result.close_to(alone, 2e-6 if dtype == torch.float32 else 2e-3)
        # Its gradients are small beside a large eps: what it learned is compared by its own size. It began at zero.
        learned = alone.weights["rope.down"]
        assert (result.weights["rope.down"] - learned).norm() < most * learned.norm()
        if dtype == torch.bfloat16:
            assert {n for n, w in result.weights.items() if w.dtype == torch.float32} == {"rope.up", "rope.down"}


@pytest.mark.parametrize("engine", ALL)
def test_what_is_no_number_on_one_rank_is_left_out_on_all(folder, tmp_path, engine):
    trainer = poison(small_trainer(tmp_path / "alone", **settings("adamw", 1)))
    trainer.train()
    result = Result(folder, f"{engine}-nan")
    weights = trainer.worker.snapshot().state_dict()
    assert any((w != weights[n]).any() for n, w in Result(folder, "ddp-adamw-1").weights.items())  # a step fewer
    for name, weight in result.weights.items():
        torch.testing.assert_close(weight, weights[name], atol=2e-6, rtol=0)
    assert [line[1] != line[1] for line in result.losses] == [False, False, True, False]


def test_ranks_that_drift_are_caught(folder):
    """Fault 1: accumulation under DDP that never exchanges gradients."""
    ranks = json.loads((folder / "drift.json").read_text())
    assert len(ranks) == 2
    copies = json.loads((folder / "drift-hsdp.json").read_text())
    assert len(copies) == 4 and all(
        "at step 2 the parameters of rank 3 differ from rank 1's (embed" in c for c in copies
    )
    for kind, said in ranks:
        assert kind == "Drifted" and "\n" not in said
        assert "at step 4 the parameters of rank 1 differ from rank 0's (embed_tokens.weight, " in said
