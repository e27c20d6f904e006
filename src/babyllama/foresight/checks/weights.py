"""Are the weights on disk what the training made."""

from __future__ import annotations

from babyllama.foresight.checks.finding import Finding, nothing
from babyllama.foresight.evidence import Evidence, SavedWeights

HALF = 0.999  # share of entries; of true float32 ones, one in 65,536 is a bf16 number and one in 8,192 an fp16 one


def half_resume(evidence: Evidence) -> Finding:
    """Checkpoints must hold float32 masters, and a training must go on from them, not from model/."""
    for state in evidence.states:
        if state.exact >= HALF:
            return Finding("fault", _exactness(state),
                           "save and load the float32 masters; go back to a checkpoint that has them, or start "
                           "again", state.where)  # fmt: skip
    start = evidence.restarted
    if start is not None and start.exact >= HALF:
        return Finding("fault", f"{start.where} was trained on the same data, and of its weights {_exactness(start)}",
                       "to go on with a run, repeat its own command (with more plan.steps from the start): its state "
                       "has the float32 masters and the optimiser's moments, model/ has not",
                       f"init.path={start.where}")  # fmt: skip
    if not evidence.states:
        return nothing("no checkpoint yet")
    newest = evidence.states[-1]
    return Finding("ok", f"{newest.where}: {_exactness(newest)}, the others need float32")


def _exactness(weights: SavedWeights) -> str:
    return f"{weights.exact:.2%} are {weights.precision} numbers"


def whole(evidence: Evidence) -> Finding:
    """Every number finite, no matrix all zeros, every file as its checksum says."""
    folders = (*evidence.models, *evidence.states)
    for found in folders:
        for names, what in ((found.broken, "hold numbers that are not finite"), (found.zero, "are all zeros")):
            if names:
                shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
                return Finding("fault", f"{len(names)} tensors {what}: {shown}", REMAKE, found.where)
        if found.dead:
            return Finding("fault", f"the embedding rows of {found.dead:,} ids that the data use are all zeros",
                           "initialise new tokens, for example with the mean of the other rows; then train "
                           "again", found.where)  # fmt: skip
        if found.changed:
            return Finding("fault", found.changed, REMAKE, found.where)
    if not folders:
        return nothing("no weights on disk")
    return Finding("ok", f"{len(folders)} folders of weights are whole")


REMAKE = "go back to an earlier checkpoint or to best/, or train again; look for a failing disk or a tool that edits"


def saved(evidence: Evidence) -> Finding:
    """A saved model must be about as good as its run recorded."""
    broken = {found.where for found in (*evidence.models, *evidence.states) if found.broken}
    for kept in evidence.kept:
        if kept.where in broken:
            return nothing("cannot be judged while weights are not finite")
        shown = f"{kept.what}: loss {kept.recorded:.3f} recorded, {kept.measured:.3f} now"
        if not kept.measured < kept.recorded + max(0.5, 0.25 * kept.recorded):
            return Finding("fault", shown, f"its weights or its config.json (rope_theta for one) are not what was "
                           f"trained: {REMAKE}", kept.where)  # fmt: skip
    if not evidence.kept:
        return nothing("no saved model with a recorded loss")
    alike = dict.fromkeys(f"{k.what}: {k.recorded:.3f} recorded, {k.measured:.3f} now" for k in evidence.kept)
    return Finding("ok", "; ".join(alike))  # of model/ and best/, which may be of one step


def checkpoint(evidence: Evidence) -> Finding:
    """model/ must hold the weights of the last checkpoint, rounded."""
    apart = evidence.apart
    if apart is None:
        return nothing("no checkpoint of the step that model/ was saved at")
    if apart.share <= 0.01:
        return Finding("ok", f"model/ is {apart.state} to {1 - apart.share:.2%}")
    return Finding("fault", f"{apart.share:.1%} of the weights differ from {apart.state}, most in {apart.worst}",
                   "one of the two was changed: doctor's finding on the saved model says which; take the other",
                   apart.model)  # fmt: skip


def rope(evidence: Evidence) -> Finding:
    """Another RoPE scaling must leave most of what the model knows: judged at the length that it was trained for."""
    choices = evidence.choices
    for turned in evidence.turned:
        return Finding(
            "fault",
            f"config.json says {turned.found}, the weights were trained with {turned.trained}",
            "restore what they were trained with; for a longer context give init.rope",
            turned.where,
        )
    if choices is None or choices.rope is None:
        return nothing("no other RoPE scaling")
    own, given = choices.rope
    entropy = min((corpus.entropy for corpus in evidence.corpora), default=0.0)
    shown = f"at the trained length the loss is {own:.3f} under the model's own RoPE, {given:.3f} under init.rope"
    if entropy - own < 0.5 or given - own < 0.5 * (entropy - own):
        return Finding("ok", shown)
    return Finding("fault", f"{shown}; token frequencies alone give {entropy:.3f}",
                   "set init.rope.theta to the theta of the model's config.json (rope_theta), or a smaller factor",
                   "init.rope")  # fmt: skip
