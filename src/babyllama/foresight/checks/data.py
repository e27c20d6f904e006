"""Are the data what the model ought to learn: labels, masks, ends, tokens, repetitions, what is held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from babyllama.foresight.checks.finding import Finding, nothing, trained
from babyllama.foresight.evidence import Corpus, Evidence, Line


def labels(evidence: Evidence) -> Finding:
    """Each target must be the next token of its document."""
    tally = evidence.rehearsal.tally if evidence.rehearsal else None
    if tally is None or not tally.judged:
        return nothing("no target with a next token in the row")
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
                   "make two", "the stream of targets")  # fmt: skip


def end_token(evidence: Evidence) -> Finding:
    """A document's last target must be the end token, or the model never learns to stop."""
    remedy = "prepare the data again so that each text and each answer ends with the end token, and keep it a target"
    for corpus in evidence.corpora:
        if (chats := corpus.chats) is not None and chats.learned and chats.unended > 0.1 * chats.answers:
            return Finding("fault", f"{chats.unended:,} of {chats.answers:,} answers have no end token in the loss",
                           remedy, corpus.where)  # fmt: skip
    tally = evidence.rehearsal.tally if evidence.rehearsal else None
    if tally is None or evidence.eos is None or not tally.targets:
        return nothing("no targets, or no end token, to look for")
    if labels(evidence).verdict == "fault":
        return nothing("cannot be judged while the labels are wrong")
    taught, expected = tally.documents - tally.untaught, tally.places * evidence.documents_per_token
    if not tally.documents and expected >= 10:
        return Finding("fault", f"no document ends in {tally.places:,} tokens; about {expected:.0f} should", remedy,
                       "data.path")  # fmt: skip
    if taught < 3:
        return nothing(f"only {taught} documents end inside a row")
    shown = f"{tally.ended:,} of {taught:,} documents end with the end token as a target"
    return Finding("ok", shown) if tally.ended >= 0.9 * taught else Finding("fault", shown, remedy, "data.path")


def mask(evidence: Evidence) -> Finding:
    """Some targets must count, in most documents."""
    remedy = (
        "look at the chats' roles: only what the assistant says is in the loss; and give plan.context room for the "
        "answers, which come last"
    )
    for corpus in evidence.corpora:
        if (fault := _beside_answers(corpus)) is not None:
            return fault
    tally = evidence.rehearsal.tally if evidence.rehearsal else None
    shares = _recorded_shares(evidence.recorded)
    if tally is not None and tally.places:
        shares.append(tally.targets / tally.places)
    if not shares:
        return nothing("nothing says how many tokens are in the loss")
    share = min(shares)
    if share < 0.005:
        return Finding("fault", f"{share:.2%} of all positions are in the loss", remedy, "data.path")
    if tally is not None and tally.documents >= 4 and tally.untaught > 0.5 * tally.documents:
        return Finding("fault", f"{tally.untaught:,} of {tally.documents:,} documents have no target", remedy,
                       "data.path")  # fmt: skip
    if tally is not None and tally.blank > max(3, 0.25 * tally.rows):
        return Finding("fault", f"{tally.blank:,} of {tally.rows:,} rows have no target, only padding or prompts",
                       remedy, "data.path")  # fmt: skip
    return Finding("ok", f"{share:.1%} of all positions are in the loss")


def _recorded_shares(lines: Sequence[Line]) -> list[float]:
    """Of all logged steps together, where the run recorded it."""
    steps = [m for m in trained(lines) if "targets" in m and m["step"]]
    places = sum(m["tokens"] / m["step"] for m in steps)
    return [sum(m["targets"] for m in steps) / places] if places else []


def _beside_answers(corpus: Corpus) -> Finding | None:
    """What counts in a chat must stand in its answers."""
    chats = corpus.chats
    if chats is None or not chats.answers or chats.foreign <= 0.01 * chats.learned:
        return None
    return Finding("fault", f"{chats.foreign:,} of {chats.learned:,} tokens in the loss lie outside the answers: "
                   "questions are trained on too",
                   "prepare the chats again: only what the assistant says belongs in the loss",
                   corpus.where)  # fmt: skip


def chat_template(evidence: Evidence) -> Finding:
    """Chats must hold answers, as the template says that the manifest names."""
    found = [(corpus, corpus.chats) for corpus in evidence.corpora if corpus.chats is not None]
    for corpus, chats in found:
        if chats.answers < chats.count / 2:
            return Finding("fault", f"{chats.answers:,} answers in {chats.count:,} chats by the template "
                           f"{chats.template!r}", "prepare the chats again with the template that the model is to "
                           "use; manifest.json's chat_template must name it", corpus.where)  # fmt: skip
    if evidence.templates and len(set(evidence.templates)) > 1:
        (before, now) = evidence.templates
        return Finding("fault", f"the model it starts from was trained on chats of the template {before!r}, these data "
                       f"follow {now!r}", f"prepare the chats again with template={before}", "data.path")  # fmt: skip
    if not found:
        return nothing("no chats")
    return Finding("ok", f"{sum(c.answers for _, c in found):,} answers in {sum(c.count for _, c in found):,} chats")


TOO_LONG = 0.2  # share of the chats


def long_chats(evidence: Evidence) -> Finding:
    """Chats must fit in a row, or their answers are learned without the question."""
    found = [(corpus, corpus.chats) for corpus in evidence.corpora if corpus.chats is not None]
    for corpus, chats in found:
        if chats.too_long > TOO_LONG * chats.count:
            return Finding("fault", f"{chats.too_long:,} of {chats.count:,} chats are longer than a row",
                           "raise plan.context, or leave long chats out with max_characters in prepare",
                           _context(evidence, corpus.where))  # fmt: skip
    return Finding("ok", "chats fit in a row") if found else nothing("no chats")


def _context(evidence: Evidence, where: str) -> str:
    context = evidence.choices.plan.context if evidence.choices else None
    return where if context is None else f"{where}, plan.context={context}"


# Share of a token's entropy that the one before it tells, at least. Shuffled tokens: 0.000. Real text, least where a
# large vocabulary makes most pairs rare: 0.07 (160,000 tokens of books in ChatGLM2's ids); 0.3 and more in a small one.
TOLD = 0.01


def text(evidence: Evidence) -> Finding:
    """Tokens must tell of each other, as they do in any text and in no noise."""
    return _each(evidence, lambda c: c.tokens >= 1000 and c.gain < TOLD * c.entropy, lambda c:
                 f"the previous token explains {c.gain:.3f} of {c.entropy:.2f} nats, no more than in shuffled tokens "
                 f"(“{c.sample[:30]}”)" if c.gain < TOLD * c.entropy else
                 f"the previous token explains {c.gain:.2f} of {c.entropy:.2f} nats",
                 "the order of the tokens is lost: prepare the data again from their source")  # fmt: skip


ALIKE = 0.8  # share of the tokens; the right tokenizer brings back all but some at the borders of cut documents


def vocabulary(evidence: Evidence) -> Finding:
    """Decoded and encoded again, a sample must give the same tokens; another tokenizer's would not."""
    return _each(evidence, lambda c: c.respelt is not None and c.respelt < ALIKE, lambda c:
                 f"{c.respelt or 0:.0%} of a sample's tokens come back when it is decoded and encoded again"
                 f"{'' if (c.respelt or 0) >= ALIKE else f' (“{c.sample[:30]}”)'}",
                 "the shards were made with another tokenizer: prepare the data again with the model's")  # fmt: skip


def repetition(evidence: Evidence) -> Finding:
    """Most of the data must be different, but for the small worlds that the package makes: a weekday has few days."""
    return _each(evidence, lambda c: c.documents >= 4 and c.repeated > 0.5, lambda c:
                 f"{c.distinct:,} of {c.documents:,} documents are distinct, {c.repeated:.0%} of the tokens repeat "
                 "others", "remove the copies; to read data several times use plan.epochs",
                 lambda c: not c.made)  # fmt: skip


def held_out(evidence: Evidence) -> Finding:
    """No validation document may stand in the training split."""
    return _each(evidence, lambda c: c.leaked > 0.02 * c.held_out, lambda c:
                 f"{c.leaked:,} of {c.held_out:,} validation documents are in the training split too",
                 "prepare the data again: otherwise validation measures what was memorised",
                 lambda c: c.held_out > 0)  # fmt: skip


def same_kind(evidence: Evidence) -> Finding:
    """Validation must be text of the training's kind: half a nat, and more than parts of the training differ."""

    def far(c: Corpus) -> bool:
        d = c.distance
        return d is not None and d.validation - d.training > max(0.5, 6 * d.spread)

    return _each(evidence, far, lambda c: "" if c.distance is None else
                 f"by the training's token frequencies validation costs {c.distance.validation:.2f} nats a token, "
                 f"other training text {c.distance.training:.2f} ± {c.distance.spread:.2f}",
                 "hold out documents of the data that are trained on: prepare with validation=0.01",
                 lambda c: c.distance is not None)  # fmt: skip


def _each(evidence: Evidence, wrong: Callable[[Corpus], bool], shown: Callable[[Corpus], str], remedy: str,
          applies: Callable[[Corpus], bool] = lambda _: True) -> Finding:  # fmt: skip
    """The first corpus that is wrong; or that all are well, by the first one's numbers."""
    found = [corpus for corpus in evidence.corpora if applies(corpus)]
    for corpus in found:
        if wrong(corpus):
            return Finding("fault", shown(corpus), remedy, corpus.where)
    return Finding("ok", shown(found[0])) if found else nothing("no prepared data to check")
