"""The doctor names each of eight faults, planted from outside, and nothing else; healthy trainings pass all checks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_training import CONTEXT, VOCAB, By, Formula, Through, small_trainer

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.errors import InputError
from babyllama.foresight.checks.weights import saved
from babyllama.foresight.doctor import CHECKS, diagnose
from babyllama.foresight.evidence import Evidence, Kept
from babyllama.foresight.kept import masters
from babyllama.foresight.rehearsal import rehearse, tally
from babyllama.train.engines.engines import Worker
from babyllama.train.losses.objectives import NextToken
from babyllama.train.optimizers.optim import AdamW, Muon

EOS, LENGTH = 0, 5  # a document is four tokens and its end
STEPS = 50


def document(number: int) -> list[int]:
    return [*(1 + (number * 7 + 3 * place) % (VOCAB - 1) for place in range(LENGTH - 1)), EOS]


class Texts:
    """Documents one after the other, cut into rows."""

    def row(self, row: int) -> tuple[list[int], ...]:
        text = [t for number in range(row * 3, row * 3 + 4) for t in document(number)]
        start = row % LENGTH
        return text[start : start + CONTEXT], text[start + 1 : start + CONTEXT + 1]

    def batch(self, first_row: int, count: int) -> Batch:
        columns = zip(*(self.row(row) for row in range(first_row, first_row + count)), strict=True)
        return Batch(*(torch.tensor(column) for column in columns))


class Chats(Texts):
    """Two whole documents a row, packed; the first two targets of each are the question. Padding at the end."""

    def row(self, row: int) -> tuple[list[int], ...]:
        tokens, targets, positions, segments = [], [], [], []
        for segment in range(2):
            found = document(row * 2 + segment)
            tokens += found[:-1]
            targets += [IGNORE, *found[2:]]
            positions += range(LENGTH - 1)
            segments += [segment] * (LENGTH - 1)
        left = CONTEXT - len(tokens)
        return (tokens + [EOS] * left, targets + [IGNORE] * left, positions + list(range(left)), segments + [2] * left)


class Bent:
    """A stream with a fault: `bend` is applied to each of its batches."""

    def __init__(self, inner, bend):
        self.inner, self.bend = inner, bend

    def batch(self, first_row, count):
        return self.bend(self.inner.batch(first_row, count))


def trainer_for(tmp_path, stream=None, **kwargs):
    given = {"steps": 200, "accumulate": 2, "micro_batch_size": 4, "optimizer": AdamW(lr=1e-2), **kwargs}
    trainer = small_trainer(tmp_path / "run", **given)
    trainer.stream = stream or Texts()
    return trainer


def examine(trainer, steps=STEPS, **facts):
    evidence = Evidence(trainer.plan.accumulate, trainer.dtype == torch.float16, EOS, 1 / LENGTH,
                        rehearsal=rehearse(trainer, steps, EOS))  # fmt: skip
    return diagnose(replace(evidence, **facts))


def faults(findings):
    for finding in findings:
        assert (finding.verdict == "fault") == bool(finding.remedy), finding
        assert "\n" not in finding.evidence and finding.evidence
    return [finding.check for finding in findings if finding.verdict == "fault"]


# ── healthy ────────────────────────────────────────────────────────────────────────────────────────────────────────
HEALTHY = {
    "a plain stream, AdamW, four micro-batches": {"accumulate": 4},
    "chats, packed": {"stream": Chats()},
    "Muon": {"optimizer": Muon(lr=0.02, adam_lr=3e-3)},
    "Muon on chats, one micro-batch": {"optimizer": Muon(), "stream": Chats(), "accumulate": 1},
    "bf16": {"dtype": torch.bfloat16, "accumulate": 1},
    "bf16, Muon, chats": {"dtype": torch.bfloat16, "optimizer": Muon(lr=0.02, adam_lr=3e-3), "stream": Chats()},
    "fp16": {"dtype": torch.float16, "accumulate": 1},
    "many micro-batches": {"accumulate": 8, "micro_batch_size": 1, "steps": 20},
    "a large eps": {"optimizer": AdamW(lr=1e-2, eps=1e-3)},
    "shorter than the rehearsal": {"steps": 20},
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy(tmp_path, name):
    trainer = trainer_for(tmp_path, **HEALTHY[name])
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    findings = examine(trainer)
    assert not faults(findings), findings
    found = {finding.check: finding.verdict for finding in findings}
    assert [f.check for f in findings] == list(CHECKS)
    assert found["learning rate"] == found["labels"] == found["end token"] == found["mask"] == "ok"
    assert found["accumulation"] == ("ok" if trainer.plan.accumulate > 1 else "not applicable")
    assert found["fp16 overflow"] == ("ok" if trainer.dtype == torch.float16 else "not applicable")
    assert not trainer.run.metrics() and not trainer.run.states()  # its run was left alone
    assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())


def test_random_tokens_that_cannot_be_learned_are_no_fault(tmp_path):
    trainer = small_trainer(tmp_path / "run", steps=200, accumulate=2)  # its stream is noise with ragged masks
    findings = diagnose(Evidence(2, False, None, 0.0, rehearsal=rehearse(trainer, 20)))
    assert not faults(findings), findings


# ── 1 … 8 ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("optimizer,dtype", [
    (AdamW(lr=100.0), torch.float32), (AdamW(lr=100.0), torch.bfloat16), (AdamW(lr=1e30), torch.float32),
    (Muon(lr=100.0, adam_lr=100.0), torch.bfloat16), (AdamW(lr=1.0), torch.float32),
])  # fmt: skip
def test_learning_rate(tmp_path, optimizer, dtype):
    trainer = trainer_for(tmp_path, optimizer=optimizer, dtype=dtype, accumulate=1)
    assert faults(examine(trainer, 25)) == ["learning rate"]


class DividesTwice(Worker):
    def update(self, step, micro, total, factor, watchman):
        super().update(step, micro, total * len(micro), factor, watchman)


class NeverDivides(Worker):
    def update(self, step, micro, total, factor, watchman):
        super().update(step, micro, total / len(micro), factor, watchman)


class MultipliesRate(Worker):
    def update(self, step, micro, total, factor, watchman):
        super().update(step, micro, total, factor * len(micro), watchman)


class ScalesGradients(Worker):
    def add_gradients(self, micro, share):
        return super().add_gradients(micro, share / len(micro))


@pytest.mark.parametrize("accumulate", [2, 4])
@pytest.mark.parametrize("worker", [DividesTwice, NeverDivides, MultipliesRate, ScalesGradients])
def test_accumulation(tmp_path, worker, accumulate):
    trainer = trainer_for(tmp_path, accumulate=accumulate, optimizer=AdamW(lr=2e-3))
    trainer.engine = Through(worker=worker)
    assert faults(examine(trainer, 8)) == ["accumulation"]


def test_accumulation_in_muon_and_in_the_objective(tmp_path):
    trainer = trainer_for(tmp_path, optimizer=Muon(lr=0.005, adam_lr=1e-3))
    trainer.engine = Through(worker=MultipliesRate)
    assert faults(examine(trainer, 8)) == ["accumulation"]
    trainer = trainer_for(tmp_path / "objective")
    trainer.objective = By(lambda model, batch: (NextToken()(model, batch)[0] / 2, {}))
    assert faults(examine(trainer, 8)) == ["accumulation"]


def test_accumulation_in_what_was_recorded(tmp_path):
    """Fault 11: a run whose logged loss was divided once more, by code that is mended since."""
    trainer = trainer_for(tmp_path)
    rehearsal = rehearse(trainer, 20, EOS)
    recorded = tuple({**line, "loss": line["loss"] / 2} for line in rehearsal.lines if line["step"] % 5 == 0)
    evidence = Evidence(2, False, EOS, 1 / LENGTH, recorded, rehearsal)
    assert faults(diagnose(evidence)) == ["accumulation"]
    assert not faults(diagnose(replace(evidence, recorded=rehearsal.lines)))


def test_ranks(tmp_path):
    line = {"step": 5, "kind": "ranks", "fingerprints": ["00ab", "00ab", "00ab"]}
    alike = Evidence(1, False, recorded=(line, {**line, "step": 10}))
    apart = Evidence(1, False, recorded=(line, {**line, "step": 10, "fingerprints": ["00ab", "00ab", "77cd"]}))
    assert not faults(diagnose(alike)) and faults(diagnose(apart)) == ["ranks"]
    (finding,) = (f for f in diagnose(apart) if f.check == "ranks")
    assert "step 10: rank 2 has other parameters than rank 0" in finding.evidence
    shards = {**line, "fingerprints": ["00ab", "11cd", "00ab", "11cd"], "shard": 2}  # ranks 0 and 2 hold the same
    assert not faults(diagnose(Evidence(1, False, recorded=(shards,))))
    shards["fingerprints"] = ["00ab", "11cd", "00ab", "77ef"]
    (finding,) = (f for f in diagnose(Evidence(1, False, recorded=(shards,))) if f.check == "ranks")
    assert finding.verdict == "fault" and "rank 3 has other parameters than rank 1" in finding.evidence
    assert faults(examine(trainer_for(tmp_path), 10, recorded=apart.recorded)) == ["ranks"]


def shifted(places):
    def bend(batch):
        kept = batch.targets != IGNORE
        inputs = batch.tokens.roll(-places, 1)
        return replace(batch, targets=inputs.where(kept, IGNORE))

    return bend


@pytest.mark.parametrize("stream", [Texts(), Chats()])
@pytest.mark.parametrize("places,says", [(0, "the token itself"), (2, "the token after the next")])
def test_labels(tmp_path, stream, places, says):
    findings = examine(trainer_for(tmp_path, Bent(stream, shifted(places))), 10)
    assert faults(findings) == ["labels"]
    assert f"100.0% {says}" in next(f.evidence for f in findings if f.check == "labels")


def unended(batch):
    return replace(batch, targets=batch.targets.where(batch.targets != EOS, IGNORE))


def ends_otherwise(batch):
    return replace(batch, targets=batch.targets.where(batch.targets != EOS, 7))


def never_there(batch):
    return replace(batch, tokens=batch.tokens.where(batch.tokens != EOS, 7),
                   targets=batch.targets.where(batch.targets != EOS, 7))  # fmt: skip


@pytest.mark.parametrize("stream,bend", [(Texts(), unended), (Texts(), never_there), (Chats(), unended),
                                         (Chats(), ends_otherwise)])  # fmt: skip
def test_end_token(tmp_path, stream, bend):
    assert faults(examine(trainer_for(tmp_path, Bent(stream, bend)), 10)) == ["end token"]


def overflowing(model, batch):
    loss, sums = NextToken()(model, batch)
    return loss * 1e6, sums


@pytest.mark.parametrize("accumulate", [1, 2])
def test_overflow(tmp_path, accumulate):
    trainer = trainer_for(tmp_path, dtype=torch.float16, accumulate=accumulate)
    trainer.objective = By(overflowing)
    assert faults(examine(trainer, 40)) == ["fp16 overflow"]


def test_overflow_in_the_forward_pass(tmp_path):
    trainer = trainer_for(tmp_path, dtype=torch.float16)
    with torch.no_grad():
        for block in trainer.model.layers:
            block.mlp.down_proj.weight.mul_(1e7)
    assert faults(examine(trainer, 20)) == ["fp16 overflow"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_resume_of_rounded_masters(tmp_path, dtype):
    trainer = trainer_for(tmp_path, dtype=torch.bfloat16, steps=6, accumulate=1)
    trainer.train()
    assert not faults(diagnose(Evidence(1, False, states=masters(trainer.run))))
    file = trainer.run.states()[-1][1] / "state.safetensors"
    tensors = load_file(file)
    save_file({n: t.to(dtype).float() if n.startswith("master.") else t for n, t in tensors.items()}, file)
    both = ["whole weights", "half-precision resume"]  # the checkpoint's checksum tells it too
    assert faults(diagnose(Evidence(1, False, states=masters(trainer.run)))) == both
    assert faults(examine(trainer_for(tmp_path / "other"), 10, states=masters(trainer.run))) == both


def masked(batch):
    return replace(batch, targets=torch.full_like(batch.targets, IGNORE))


def nearly_masked(batch):
    first = torch.zeros_like(batch.targets, dtype=torch.bool)
    first[0, 3] = bool(batch.tokens[0, 0] % 32 == 1)
    return replace(batch, targets=batch.targets.where(first, IGNORE))


def every_third(batch):
    return replace(batch, targets=batch.targets.where(batch.tokens[:, :1] % 3 == 0, IGNORE))


@pytest.mark.parametrize("bend", [masked, nearly_masked, every_third])
def test_mask(tmp_path, bend):
    assert faults(examine(trainer_for(tmp_path, Bent(Chats(), bend)), 20)) == ["mask"]


def test_rows_of_nothing_but_padding(tmp_path):
    def half(batch):
        blank = batch.tokens[:, :1] % 2 == 0
        return replace(batch, targets=batch.targets.where(~blank, IGNORE))

    trainer = trainer_for(tmp_path, Bent(Formula(), half))
    findings = diagnose(Evidence(2, False, rehearsal=rehearse(trainer, 10)))  # noise, which no end token orders
    assert faults(findings) == ["mask"]
    assert "rows have no target" in next(f.evidence for f in findings if f.check == "mask")


def test_frozen(tmp_path):
    """A block that wants no gradient, and one whose gradient never comes."""
    trainer = trainer_for(tmp_path)
    trainer.model.layers[1].requires_grad_(False)
    found = rehearse(trainer, 10, EOS, everything=True)
    assert found.still and all(name.startswith("layers.1.") for name in found.still)
    assert faults(diagnose(Evidence(2, False, EOS, rehearsal=found))) == ["frozen"]
    trainer = trainer_for(tmp_path / "cut")
    trainer.model.layers[1].self_attn.o_proj.weight.register_hook(torch.zeros_like)
    trainer.optimizer = AdamW(lr=1e-2, weight_decay=0.0)
    assert rehearse(trainer, 10, EOS, everything=True).still == ("layers.1.self_attn.o_proj.weight",)
    assert not rehearse(trainer_for(tmp_path / "healthy"), 10, EOS, everything=True).still


def test_mask_in_what_was_recorded():
    lines = tuple({"step": s, "kind": "train", "loss": 3.0, "norm": 1.0, "targets": 2, "tokens": 4096 * s}
                  for s in (10, 20, 30))  # fmt: skip
    assert faults(diagnose(Evidence(1, False, recorded=lines))) == ["mask"]


def test_bad_steps_far_apart_and_odd_batches_are_no_fault():
    """What the guard left out, three times in ten thousand steps; the losses of tiny batches."""
    losses = [0.5, 0.9, 3.4, 0.2, 0.6, 0.4, 0.3, 0.5, 0.2, 0.4]
    lines = [{"step": 1000 * i, "kind": "train", "loss": loss, "norm": 1.0} for i, loss in enumerate(losses, 1)]
    bad = [{"step": step, "kind": "guard", "loss": float("nan"), "norm": 1.0} for step in (50, 3000, 7000)]
    assert not faults(diagnose(Evidence(1, False, recorded=(*lines, *bad))))
    often = [{**bad[0], "step": step} for step in range(9000, 9400)]
    assert faults(diagnose(Evidence(1, False, recorded=(*lines, *often)))) == ["learning rate"]


# ── the evidence itself ────────────────────────────────────────────────────────────────────────────────────────────
def test_weights_that_are_no_numbers_are_bad_input(tmp_path):
    trainer = trainer_for(tmp_path)
    with torch.no_grad():
        trainer.model.norm.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="nan before the first step"):
        rehearse(trainer, 5, EOS)


def test_tally_counts_by_hand():
    batch = Chats().batch(0, 3)
    found = tally(batch, EOS)
    assert (found.places, found.targets) == (3 * CONTEXT, 3 * 2 * 3)
    assert (found.documents, found.ended, found.untaught) == (6, 6, 0)
    assert found.judged == found.following == 6  # of four places a document has one target with two inputs after it
    plain = tally(Texts().batch(0, 5), EOS)
    assert plain.targets == plain.places and plain.following == plain.judged == 5 * (CONTEXT - 2)
    assert plain.ended == plain.documents > 5
    assert plain + found == found + plain


def test_padding_is_no_document():
    batch = Batch(torch.tensor([[5, 6, EOS, 7, EOS, EOS, EOS]]),
                  torch.tensor([[6, EOS, 7, EOS, IGNORE, IGNORE, IGNORE]]))  # fmt: skip
    assert (tally(batch, EOS).documents, tally(batch, EOS).ended) == (2, 2)


def test_model_and_best_of_one_step_are_told_once():
    kept = tuple(Kept(f"run/{name}", "validation at step 60", 4.6171, 4.6172) for name in ("model", "best"))
    assert saved(Evidence(1, False, kept=kept)).evidence == "validation at step 60: 4.617 recorded, 4.617 now"
    apart = (kept[0], replace(kept[1], what="validation at step 40"))
    assert saved(Evidence(1, False, kept=apart)).evidence.count("recorded") == 2
