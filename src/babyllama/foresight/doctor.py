"""The doctor: evidence of a training's first steps → findings, one for each fault that ruins runs and says nothing.

Each check is a pure function of the evidence, and they stand in one table, CHECKS. Limits lie far from what healthy
runs show: a doctor who cries wolf is not asked again. Not here: how the evidence is come by (evidence.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Literal

from babyllama.foresight.evidence import Evidence, Line, Weights

Verdict = Literal["ok", "fault", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """What one check found: `evidence` with its numbers and, for a fault, the remedy."""

    verdict: Verdict
    evidence: str
    remedy: str = ""
    check: str = ""  # its name in CHECKS


def diagnose(evidence: Evidence) -> list[Finding]:
    """One finding for each check, in the table's order."""
    return [replace(check(evidence), check=name) for name, check in CHECKS.items()]


def _train(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.get("kind") == "train"]


def _guard(lines: Sequence[Line], finite: bool) -> list[Line]:
    """Steps that the guard left out: for a jump of the loss, or because something was no number."""
    return [m for m in lines if m.get("kind") == "guard" and _finite(m) == finite]


def _finite(line: Line) -> bool:
    return math.isfinite(line["loss"]) and math.isfinite(line["norm"])


def _sources(evidence: Evidence) -> list[tuple[str, tuple[Line, ...], str]]:
    """(what to call them, metrics, how the trainer gave up)."""
    found = [("recorded", evidence.recorded, "")]
    if evidence.rehearsal is not None:
        found.append(("rehearsed", evidence.rehearsal.lines, evidence.rehearsal.diverged))
    return [source for source in found if source[1]]


# ── the optimiser ──────────────────────────────────────────────────────────────────────────────────────────────────
WILD_RATIO = 10.0  # a step that changes a matrix by ten times itself; healthy first steps stay below one


def learning_rate(evidence: Evidence) -> Finding:
    """The loss climbs far above where it began, or stops being a number, or one step outweighs the weights."""
    remedy = "lower optimizer.lr (adam_lr), by ten for a start, or lengthen schedule.warmup"
    shown = ""
    for source, lines, diverged in _sources(evidence):
        if fault := _exploded(lines, diverged, evidence.scaled):
            return Finding("fault", f"{source}: {fault}", remedy)
        losses = [m["loss"] for m in _train(lines)]
        shown = f"loss {losses[0]:.3f} → {losses[-1]:.3f} in {len(losses)} logged steps" if losses else shown
    ratios = evidence.rehearsal.ratios if evidence.rehearsal else ()
    if ratios and max(ratios) > WILD_RATIO:
        step = ratios.index(max(ratios)) + 1
        return Finding("fault", f"step {step} changes the weights by {max(ratios):.3g} times themselves", remedy)
    if not shown:
        return Finding("not applicable", "no step with a loss")
    return Finding("ok", shown + (f", a step changes the weights by {median(ratios):.2g} of themselves"
                                  if ratios else ""))  # fmt: skip


def _exploded(lines: Sequence[Line], diverged: str, scaled: bool) -> str:
    losses = [m["loss"] for m in _train(lines) if math.isfinite(m["loss"])]
    broken = [] if scaled else _guard(lines, finite=False)
    if diverged and not (scaled and _guard(lines, finite=False)):
        return diverged.split(";")[0]
    if len(broken) >= _many(lines):
        return f"{len(broken)} steps with a loss or gradient that is no number, the first at step {broken[0]['step']}"
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


def accumulation(evidence: Evidence) -> Finding:
    """Loss, gradient or update are off by the accumulation count, against plain autograd over the whole step."""
    k, rehearsal = evidence.accumulate, evidence.rehearsal
    if k == 1:
        return Finding("not applicable", "plan.accumulate is 1")
    if rehearsal is None:
        return Finding("not applicable", "needs a rehearsal, steps=50")
    ratios = _ratios(evidence)
    if not ratios:
        return Finding("not applicable", "no step to compare")
    shown = ", ".join(f"{name} × {ratio:.3g}" for name, ratio in ratios.items())
    wrong = [name for name, ratio in ratios.items() if any(_near(ratio, float(k) ** n) for n in (-2, -1, 1, 2))]
    if wrong:
        return Finding("fault", f"{' and '.join(wrong)} off by accumulate = {k}: {shown} of the reference",
                       "sum the losses of all micro-batches and divide once by the step's targets; never divide the "
                       "loss again, never multiply the learning rate by accumulate")  # fmt: skip
    return Finding("ok", f"{shown} of plain autograd over {k} micro-batches")


def _ratios(evidence: Evidence) -> dict[str, float]:
    """What was found, over what it should be."""
    rehearsal, found = evidence.rehearsal, {}
    if rehearsal is None:
        return {}
    lines = {m["step"]: m for m in _train(rehearsal.lines)}
    reference, first = rehearsal.reference, lines.get(1)
    if reference is not None and first is not None:
        found["loss"] = first["loss"] / max(reference.loss, 1e-12)
        found["gradient"] = first["norm"] / max(reference.norm, 1e-12)
    if reference is not None and rehearsal.moved is not None and reference.update > 0.5:
        found["update"] = rehearsal.moved / reference.update
    shared = [m["loss"] / lines[m["step"]]["loss"] for m in _train(evidence.recorded) if m["step"] in lines]
    if shared:
        found["recorded loss"] = median(shared)
    return {name: ratio for name, ratio in found.items() if math.isfinite(ratio) and ratio > 0}


def _near(ratio: float, factor: float) -> bool:
    return abs(math.log(ratio / factor)) < 0.2


def ranks(evidence: Evidence) -> Finding:
    """The processes' parameters are no longer the same, by the fingerprints that the trainer records as it saves."""
    lines = [m for m in evidence.recorded if m.get("kind") == "ranks"]
    for line in lines:
        first, *others = line["fingerprints"]
        apart = [str(rank) for rank, other in enumerate(others, 1) if other != first]
        if apart:
            return Finding("fault", f"step {line['step']}: rank {', '.join(apart)} has other parameters than rank 0 "
                           f"({line['fingerprints'][int(apart[0])]} and {first})",
                           "gradients must be exchanged in every step, at the last micro-batch; start all processes "
                           "from the same code, recipe and data, and go on from an earlier checkpoint")  # fmt: skip
    if not lines:
        return Finding("not applicable", "no record of several processes")
    return Finding("ok", f"{len(lines[0]['fingerprints'])} ranks alike at {len(lines)} checkpoints")


# ── the data ───────────────────────────────────────────────────────────────────────────────────────────────────────
def labels(evidence: Evidence) -> Finding:
    """Each target must be the next token of its document."""
    tally = evidence.rehearsal.tally if evidence.rehearsal else None
    if tally is None or not tally.judged:
        return Finding("not applicable", "no target whose next tokens are in sight")
    shares = {
        "the next token": tally.following,
        "the token itself": tally.same,
        "the token after the next": tally.beyond,
    }
    shown = ", ".join(f"{count / tally.judged:.1%} {name}" for name, count in shares.items())
    if tally.following >= 0.95 * tally.judged:
        return Finding("ok", f"{tally.following / tally.judged:.1%} of {tally.judged:,} targets are the next token")
    return Finding("fault", f"of {tally.judged:,} targets: {shown}",
                   "shift exactly once: targets[t] = tokens[t + 1]; a stream that shifts and a loss that shifts again "
                   "make two")  # fmt: skip


def end_token(evidence: Evidence) -> Finding:
    """A document's last target must be the end token, or the model never learns to stop."""
    tally = evidence.rehearsal.tally if evidence.rehearsal else None
    if tally is None or evidence.eos is None or not tally.targets:
        return Finding("not applicable", "no targets, or no end token, to look for")
    if labels(evidence).verdict == "fault":
        return Finding("not applicable", "can be told when the labels are right")
    remedy = "prepare the data again so that each text and each answer ends with the end token, and keep it a target"
    taught, expected = tally.documents - tally.untaught, tally.places * evidence.documents_per_token
    if not tally.documents and expected >= 10:
        return Finding("fault", f"no document ends in {tally.places:,} tokens; about {expected:.0f} should", remedy)
    if taught < 3:
        return Finding("not applicable", f"only {taught} documents end inside a row")
    shown = f"{tally.ended:,} of {taught:,} documents end with the end token as a target"
    return Finding("ok", shown) if tally.ended >= 0.9 * taught else Finding("fault", shown, remedy)


def mask(evidence: Evidence) -> Finding:
    """Some targets must count, in most documents."""
    remedy = (
        "look at the chats' roles: only what the assistant says counts; and give plan.context room for the answers, "
        "which stand at the end"
    )
    tally = evidence.rehearsal.tally if evidence.rehearsal else None
    shares = _recorded_shares(evidence.recorded)
    if tally is not None and tally.places:
        shares.append(tally.targets / tally.places)
    if not shares:
        return Finding("not applicable", "nothing says how many targets count")
    share = min(shares)
    if share < 0.005:
        return Finding("fault", f"{share:.2%} of all places are targets that count", remedy)
    if tally is not None and tally.documents >= 4 and tally.untaught > 0.5 * tally.documents:
        return Finding("fault", f"{tally.untaught:,} of {tally.documents:,} documents have no target", remedy)
    return Finding("ok", f"{share:.1%} of all places are targets that count")


def _recorded_shares(lines: Sequence[Line]) -> list[float]:
    """Of all logged steps together, where the run recorded it."""
    steps = [m for m in _train(lines) if "targets" in m and m["step"]]
    places = sum(m["tokens"] / m["step"] for m in steps)
    return [sum(m["targets"] for m in steps) / places] if places else []


# ── precision ──────────────────────────────────────────────────────────────────────────────────────────────────────
def overflow(evidence: Evidence) -> Finding:
    """float16: the loss scale must settle after a few halvings."""
    if not evidence.scaled:
        return Finding("not applicable", "not trained in fp16")
    if learning_rate(evidence).verdict == "fault":
        return Finding("not applicable", "can be told when the learning rate is right")
    shown = ""
    for source, lines, diverged in _sources(evidence):
        train, broken = _train(lines), _guard(lines, finite=False)
        skipped = (train[-1].get("skipped", 0) - len(broken) - len(_guard(lines, finite=True))) if train else 0
        steps, scale = (train[-1]["step"] if train else 0), min((m["loss_scale"] for m in train), default=1.0)
        shown = f"{skipped} of {steps} steps left out, loss scale down to {scale:g}"
        if skipped >= max(10, 0.05 * steps) or scale < 1 or len(broken) >= _many(lines) or diverged:
            extra = f", {len(broken)} losses that are no number" if broken else ""
            return Finding("fault", f"{source}: {shown}{extra}",
                           "use precision=bf16 (or fp32 where the card has no bf16); else lower optimizer.lr and look "
                           "for a loss that is a sum where it should be a mean")  # fmt: skip
    return Finding("ok", shown) if shown else Finding("not applicable", "no step to look at")


HALF = 0.999  # share of entries; of true float32 ones, one in 65,536 is a bf16 number and one in 8,192 an fp16 one


def half_resume(evidence: Evidence) -> Finding:
    """Checkpoints must hold float32 masters, and a training must go on from them, not from model/."""
    for state in evidence.states:
        if state.exact >= HALF:
            return Finding("fault", f"{state.where}: {_exactness(state)}",
                           "save and load the float32 masters; go back to a checkpoint that has them, or start "
                           "anew")  # fmt: skip
    start = evidence.restarted
    if start is not None and start.exact >= HALF:
        return Finding("fault", f"{start.where} was trained on the same data, and of its weights {_exactness(start)}",
                       "to go on with a run, repeat its own command (with more plan.steps from the start): its state "
                       "has the float32 masters and the optimiser's moments, model/ has not")  # fmt: skip
    if not evidence.states:
        return Finding("not applicable", "no checkpoint yet")
    newest = evidence.states[-1]
    return Finding("ok", f"{newest.where}: {_exactness(newest)}, the others need float32")


def _exactness(weights: Weights) -> str:
    return f"{weights.exact:.2%} are {weights.precision} numbers"


CHECKS: dict[str, Callable[[Evidence], Finding]] = {
    "learning rate": learning_rate,
    "accumulation": accumulation,
    "ranks": ranks,
    "labels": labels,
    "end token": end_token,
    "fp16 overflow": overflow,
    "half-precision resume": half_resume,
    "mask": mask,
}
