"""Is the training itself sound: rates, steps, accumulation, precision, and what it recorded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median

from babyllama.amounts import amount
from babyllama.foresight.checks.finding import Finding, guarded, nothing, rates, sources, trained
from babyllama.foresight.evidence import Choices, Evidence, Line, Rehearsal

LATER = "cannot be judged while the learning rate is wrong"
WILD_RATIO = 10.0  # a step that changes a matrix by ten times itself; healthy first steps stay below one


def learning_rate(evidence: Evidence) -> Finding:
    """The loss climbs far above where it began, or stops being a number, or one step outweighs the weights."""
    remedy = "lower optimizer.lr (adam_lr), by ten for a start, or lengthen schedule.warmup"
    shown = ""
    for source, lines, diverged in sources(evidence):
        if fault := _exploded(lines, diverged, evidence.scaled):
            return Finding("fault", f"{source}: {fault}", remedy, rates(evidence.choices))
        losses = [m["loss"] for m in trained(lines)]
        shown = f"loss {losses[0]:.3f} → {losses[-1]:.3f} in {len(losses)} logged steps" if losses else shown
    ratios = evidence.rehearsal.ratios if evidence.rehearsal else ()
    if ratios and max(ratios) > WILD_RATIO:
        step = ratios.index(max(ratios)) + 1
        return Finding("fault", f"step {step} changes the weights by {max(ratios):.3g} times themselves", remedy,
                       rates(evidence.choices))  # fmt: skip
    if not shown:
        return nothing("no step with a loss")
    if outgrown := _outgrown(evidence):
        return Finding("fault", outgrown, remedy, rates(evidence.choices))
    return Finding("ok", shown + (f", a step changes the weights by {median(ratios):.2g} of themselves"
                                  if ratios else ""))  # fmt: skip


OUTGROWN = 5.0  # times its norm that a matrix gains in a rehearsal without learning more than frequencies


def _outgrown(evidence: Evidence) -> str:
    """Weights that grow many times over while the loss stands at what the tokens' frequencies give."""
    rehearsal, floor = evidence.rehearsal, _floor(evidence)
    if rehearsal is None or rehearsal.gain is None or floor is None or rehearsal.growth < OUTGROWN:
        return ""
    if rehearsal.gain.after < 0.97 * floor:
        return ""
    return (f"in {rehearsal.gain.steps} steps the weights grow to {rehearsal.growth:.1f} times their norm, and the "
            f"loss stays at {rehearsal.gain.after:.3f}; the tokens' frequencies alone give {floor:.3f}")  # fmt: skip


def _floor(evidence: Evidence) -> float | None:
    """The largest entropy of single tokens in the texts that a new model learns: where learning begins."""
    entropies = [corpus.entropy for corpus in evidence.corpora if corpus.chats is None]
    return max(entropies) if entropies and evidence.choices is not None and evidence.choices.new else None


def _exploded(lines: Sequence[Line], diverged: str, scaled: bool) -> str:
    losses = [m["loss"] for m in trained(lines) if math.isfinite(m["loss"])]
    broken = [] if scaled else guarded(lines, finite=False)
    if diverged and not (scaled and guarded(lines, finite=False)):
        return diverged.split(";")[0]
    if len(broken) >= _many(lines):
        first = broken[0]["step"]
        return f"{amount(len(broken), 'step')} with a loss or gradient that is not a number, the first at step {first}"
    if len(losses) < 6:
        return ""
    start, tail = losses[0], fmean(losses[-max(3, len(losses) // 3) :])
    peak = max(fmean(losses[i : i + 3]) for i in range(len(losses) - 2))
    if tail > 1.5 * start + 0.5 or peak > 3 * start + 2:
        return f"loss {start:.3f} at first, {peak:.4g} at its worst, {tail:.4g} at the end"
    return ""


def _many(lines: Sequence[Line]) -> float:
    """So many bad steps are no accident: three, or one in a hundred of a long run."""
    return max(3.0, 0.01 * max(line["step"] for line in lines))


# ── does it get anywhere? ──────────────────────────────────────────────────────────────────────────────────────────
NOTABLE = 0.05  # nats that the default rates must gain before their word counts
LONG = 200  # steps, after which a model knows more than frequencies
SHARE = 0.1  # of what the default rates gain in twenty steps: the least that a whole training must promise


def progress(evidence: Evidence) -> Finding:
    """The training must gain something: judged by the default rates on the same rows, and by the token frequencies."""
    choices, rehearsal = evidence.choices, evidence.rehearsal
    if learning_rate(evidence).verdict == "fault":
        return nothing(LATER)
    recorded = _learned_nothing(evidence)
    if rehearsal is None or rehearsal.gain is None or choices is None:
        return recorded or nothing("the rehearsal did not finish")
    gain, trial = rehearsal.gain, rehearsal.trial
    shown = f"the first step's rows {gain.before:.3f} → {gain.after:.3f} in {gain.steps} steps"
    if trial is None or trial.nats < max(NOTABLE, 0.02 * trial.before):
        return recorded or Finding("ok", shown)
    whole = gain.nats * sum(_factors(choices)) / max(gain.path, 1e-12)
    shown += f", {trial.before:.3f} → {trial.after:.3f} in {trial.steps} at the optimiser's default rates"
    if whole > SHARE * trial.nats:
        return recorded or Finding("ok", shown)
    return Finding("fault", shown, *_why_it_stands(choices, rehearsal))


def _why_it_stands(choices: Choices, rehearsal: Rehearsal) -> tuple[str, str]:
    """(remedy, where) of a training that gains nothing."""
    fields = type(choices.optimizer).model_fields
    defaults = " ".join(f"optimizer.{n}={f.default:g}" for n, f in fields.items() if n.endswith("lr") and f.default)
    if rehearsal.reference is not None and rehearsal.reference.update < 0.5:
        return (f"gradients are smaller than the optimiser's eps: set plan.clip=1.0 and leave eps at its default "
                f"(an update reaches {rehearsal.reference.update:.2g} of the learning rate)",
                f"plan.clip={choices.plan.clip:g}")  # fmt: skip
    if median(rehearsal.ratios) > WILD_RATIO / 50:
        return f"lower the learning rate; the default is {defaults}", rates(choices)
    return (f"raise the learning rate; the default is {defaults} (a step changes the weights by "
            f"{median(rehearsal.ratios):.2g} of themselves)", rates(choices))  # fmt: skip


def _learned_nothing(evidence: Evidence) -> Finding | None:
    """A new model whose record ends about where it began, far above what the tokens' frequencies give."""
    losses = [m["loss"] for m in trained(evidence.recorded) if math.isfinite(m["loss"])]
    floor = _floor(evidence)
    if len(losses) < 6 or floor is None or losses[0] - floor < 0.5:
        return None
    start, end, steps = losses[0], fmean(losses[-(len(losses) // 3) :]), evidence.recorded[-1]["step"]
    if start - end > 0.1 * (start - floor) and (steps < LONG or end < 0.98 * floor):
        return None
    return Finding("fault", f"recorded: loss {start:.3f} → {end:.3f} in {steps:,} steps; the tokens' "
                   f"frequencies alone give {floor:.3f}", "set the optimiser's default learning rate; where that is "
                   "what it has, look at the data", rates(evidence.choices))  # fmt: skip


def _factors(choices: Choices) -> list[float]:
    return [choices.schedule(step, choices.steps) for step in range(choices.steps)]


def warm_up(evidence: Evidence) -> Finding:
    """The learning rate must reach its height before half of the training is over."""
    choices = evidence.choices
    if choices is None or choices.steps < 10:
        return nothing("no recipe of ten steps")
    factors = _factors(choices)
    peak = max(factors)
    first = next(step for step, factor in enumerate(factors, 1) if factor >= 0.99 * peak)
    shown = f"the learning rate reaches {peak:.0%} of its peak, at step {first:,} of {choices.steps:,}"
    if first <= 0.5 * choices.steps + 1 and peak >= 0.5:
        return Finding("ok", shown)
    return Finding("fault", shown, "set schedule.warmup=0.02; it is a fraction of all steps",
                   f"schedule.warmup={choices.schedule.warmup:g}")  # fmt: skip


FORGETS = 50  # steps: a memory shorter than this holds less than the optimiser's own averages do


def weight_decay(evidence: Evidence) -> Finding:
    """Decay must not outweigh learning: 1 / (lr × weight_decay) steps is how long the weights remember."""
    choices, rehearsal = evidence.choices, evidence.rehearsal
    if choices is None or not choices.optimizer.weight_decay:
        return nothing("no weight decay")
    if learning_rate(evidence).verdict == "fault":
        return nothing(LATER)
    decay = choices.optimizer.weight_decay
    memory = 1 / (choices.optimizer.lr * decay)
    shown = f"weight decay shrinks the weights by e in {memory:,.0f} steps"
    if rehearsal is not None and rehearsal.ratios:
        shown += f"; after {len(rehearsal.ratios)} their norm is {rehearsal.growth:.2f} of what it was"
    if memory >= FORGETS and (rehearsal is None or rehearsal.growth > 0.5):
        return Finding("ok", shown)
    return Finding("fault", shown, "set optimizer.weight_decay=0.1 or lower",
                   f"optimizer.weight_decay={decay:g}")  # fmt: skip


def frozen(evidence: Evidence) -> Finding:
    """All that ought to learn must change."""
    rehearsal = evidence.rehearsal
    if rehearsal is None or len(rehearsal.ratios) < 5:
        return nothing("needs a rehearsal of five steps")
    if "fault" in (progress(evidence).verdict, learning_rate(evidence).verdict):
        return nothing(LATER)
    if not rehearsal.still:
        return Finding("ok", f"every parameter changed in {len(rehearsal.ratios)} steps")
    names = ", ".join(rehearsal.still[:3]) + (", …" if len(rehearsal.still) > 3 else "")
    shown = f"{amount(len(rehearsal.still), 'parameter')} did not change in {len(rehearsal.ratios)} steps: {names}"
    return Finding("fault", shown,
                   "every parameter must have requires_grad and take part in the loss; to freeze some use "
                   "adapter.kind=lora or lisa",
                   "adapter.kind=full")  # fmt: skip


RISE = 0.1  # nats: ten per cent more perplexity


def overfitting(evidence: Evidence) -> Finding:
    """Validation is past its lowest and rises by more than its own unrest, while the training's loss falls."""
    held = [(m["step"], m["loss"]) for m in evidence.recorded if m.get("kind") == "validation"]
    if len(held) < 3:
        return nothing("fewer than three validations recorded")
    step, best = min(held, key=lambda pair: pair[1])
    last, end = held[-1]
    shown = f"validation {best:.3f} at step {step:,}, {end:.3f} at step {last:,}"
    bends = [abs(a[1] - 2 * b[1] + c[1]) for a, b, c in zip(held, held[1:], held[2:], strict=False)]
    later = [loss for at, loss in held if at > step]
    train = {m["step"]: m["loss"] for m in trained(evidence.recorded)}
    before = [loss for at, loss in train.items() if at <= step][-5:]
    after = [loss for at, loss in train.items() if at > step][-5:]
    risen = end - best > max(RISE, median(bends) if len(later) > 2 else 0) and len(later) >= 1
    if not risen or not before or not after or fmean(after) >= fmean(before):
        return Finding("ok", shown)
    return Finding("fault", f"{shown}, while training fell from {fmean(before):.3f} to {fmean(after):.3f}",
                   f"use best/, the model of step {step:,}; train for fewer steps, on more data, with a smaller model "
                   "or a lower learning rate", f"plan: {last:,} steps")  # fmt: skip


# ── accumulation and ranks ─────────────────────────────────────────────────────────────────────────────────────────
def accumulation(evidence: Evidence) -> Finding:
    """Loss, gradient or update are off by the accumulation count, against plain autograd over the whole step."""
    k, rehearsal = evidence.accumulate, evidence.rehearsal
    if k == 1:
        return nothing("plan.accumulate is 1")
    if rehearsal is None:
        return nothing("needs a rehearsal, steps=50")
    ratios = _ratios(evidence)
    if not ratios:
        return nothing("no step to compare")
    shown = ", ".join(f"{name} × {ratio:.3g}" for name, ratio in ratios.items())
    wrong = [name for name, ratio in ratios.items() if any(_near(ratio, float(k) ** n) for n in (-2, -1, 1, 2))]
    if wrong:
        return Finding("fault", f"{' and '.join(wrong)} off by accumulate = {k}: {shown} of the reference",
                       "sum the losses of all micro-batches and divide once by the step's targets; never divide the "
                       "loss again, never multiply the learning rate by accumulate",
                       f"plan.accumulate={k}")  # fmt: skip
    return Finding("ok", f"{shown} of plain autograd over {k} micro-batches")


def _ratios(evidence: Evidence) -> dict[str, float]:
    """What was found, over what it should be."""
    rehearsal, found = evidence.rehearsal, {}
    if rehearsal is None:
        return {}
    lines = {m["step"]: m for m in trained(rehearsal.lines)}
    reference, first = rehearsal.reference, lines.get(1)
    if reference is not None and first is not None:
        found["loss"] = first["loss"] / max(reference.loss, 1e-12)
        found["gradient"] = first["norm"] / max(reference.norm, 1e-12)
    if reference is not None and rehearsal.moved is not None and reference.update > 0.5:
        found["update"] = rehearsal.moved / reference.update
    shared = [m["loss"] / lines[m["step"]]["loss"] for m in trained(evidence.recorded) if m["step"] in lines]
    if shared:
        found["recorded loss"] = median(shared)
    return {name: ratio for name, ratio in found.items() if math.isfinite(ratio) and ratio > 0}


def _near(ratio: float, factor: float) -> bool:
    return abs(math.log(ratio / factor)) < 0.2


def ranks(evidence: Evidence) -> Finding:
    """The processes' parameters are no longer the same, by the fingerprints that the trainer records as it saves."""
    lines = [m for m in evidence.recorded if m.get("kind") == "ranks"]
    for line in lines:
        prints, shard = line["fingerprints"], line.get("shard", 1)  # rank r holds what rank r + shard does
        apart = [rank for rank, found in enumerate(prints) if found != prints[rank % shard]]
        if apart:
            first, wrong = apart[0] % shard, ", ".join(map(str, apart))
            return Finding("fault", f"step {line['step']}: rank {wrong} has other parameters than rank {first} "
                           f"({prints[apart[0]]} and {prints[first]})",
                           "gradients must be exchanged in every step, at the last micro-batch; start all processes "
                           "from the same code, recipe and data, and go on from an earlier checkpoint",
                           "metrics.jsonl")  # fmt: skip
    if not lines:
        return nothing("no record of several processes")
    return Finding("ok", f"{len(lines[0]['fingerprints'])} ranks alike at {len(lines)} checkpoints")


def overflow(evidence: Evidence) -> Finding:
    """float16: the loss scale must settle after a few halvings."""
    if not evidence.scaled:
        return nothing("not trained in fp16")
    if learning_rate(evidence).verdict == "fault":
        return nothing(LATER)
    shown = ""
    for source, lines, diverged in sources(evidence):
        train, broken = trained(lines), guarded(lines, finite=False)
        skipped = (train[-1].get("skipped", 0) - len(broken) - len(guarded(lines, finite=True))) if train else 0
        steps, scale = (train[-1]["step"] if train else 0), min((m["loss_scale"] for m in train), default=1.0)
        shown = f"{skipped} of {steps} steps skipped, loss scale down to {scale:g}"
        if skipped >= max(10, 0.05 * steps) or scale < 1 or len(broken) >= _many(lines) or diverged:
            extra = f", {len(broken)} losses that are not numbers" if broken else ""
            return Finding("fault", f"{source}: {shown}{extra}",
                           "use precision=bf16 (or fp32 where the card has no bf16); else lower optimizer.lr and look "
                           "for a loss that is a sum where it should be a mean", "precision=fp16")  # fmt: skip
    return Finding("ok", shown) if shown else nothing("no step to check")
