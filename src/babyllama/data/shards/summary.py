"""A prepared folder in plain words: what was taken for what, what was left out, how long the chats are, a sample.

Not here: tables, printing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from babyllama.data.shards.samples import part_of
from babyllama.data.shards.shards import Prepared, TokenStore
from babyllama.data.sources.corpora import Source
from babyllama.data.sources.records import parse
from babyllama.errors import InputError
from babyllama.tokenizer.tokenizer import Tokenizer

_CONTEXTS = (256, 512, 1024, 2048, 4096)
_UNITS = {"chat": "a chat", "preference": "an answer with its prompt", "rated": "an answer with its prompt"}
_LOOKED_AT = 5000  # characters of a document
_SAMPLE_TOKENS = 5000  # of a document; longer ones are cut there


def summary(prepared: Prepared, sources: Sequence[Source], tokenizer: Tokenizer) -> Iterator[str]:
    """Some lines for each corpus."""
    for source in sources:
        corpus, stores = prepared.manifest["corpora"][source.label], prepared.corpora[source.label]
        told = "told by the first record; kind: … says otherwise" if source.guessed else "as given"
        yield f"{source.label}: taken as {source.kind} ({told})"
        yield from (f"  {hint}" for hint in source.hints)
        yield from _left_out(source, corpus)
        if not stores["val"].documents and prepared.manifest["validation"]:
            yield "  nothing is held out: too few documents; evaluate and validation will have nothing to measure"
        yield from _lost(source, tokenizer)
        if source.kind != "text":
            yield from _lengths(stores, _UNITS[source.kind])
        covered = ", in [[ ]] what the loss covers" if source.kind != "text" else ""
        yield f"  a sample{covered}: {_sample(stores, tokenizer)}"
        if source.kind == "preference":
            yield f"  the answer that is liked less: {_sample(stores, tokenizer, 1)}"


def _left_out(source: Source, corpus: dict[str, Any]) -> Iterator[str]:
    if source.passed_over:
        shown = ", ".join(source.passed_over[:3]) + (", …" if len(source.passed_over) > 3 else "")
        yield f"  files that were not read: {len(source.passed_over):,} ({shown})"
    if corpus["bad"]:
        yield f"  records that cannot be read, left out: {corpus['bad']:,} (the first: {corpus['first_bad']})"
    if corpus["dropped"]:
        yield f"  records without a text or an answer, or too long, left out: {corpus['dropped']:,}"
    if again := corpus.get("repeated_ids"):
        yield f"  records with the id of an earlier one, kept: {again['records']:,} (such as {again['first']})"
    for entry in corpus.get("cleaning", ()):
        if entry["dropped"] or entry["changed"]:
            yield (f"  {entry['filter']}: of {entry['documents']:,} documents {entry['dropped']:,} left out, "
                   f"{entry['changed']:,} changed")  # fmt: skip
    if corpus["notes"]:
        notes = "; ".join(f"{what} ({count:,})" for what, count in corpus["notes"].items())
        yield f"  not used, with the number of records: {notes}"


def _lost(source: Source, tokenizer: Tokenizer) -> Iterator[str]:
    """What of the first documents does not come back from the vocabulary; of files, which are quickly read again."""
    texts = list[str]()
    if source.size is not None:
        with suppress(InputError):
            texts = [
                document.text[:_LOOKED_AT] for document in parse(next(source.blobs()), source.shape).documents[:100]
            ]
    before, after = Counter[str](), Counter[str]()
    for text in texts:
        before.update(text)
        after.update(tokenizer.decode(tokenizer.encode(text)))
    lost = before - after
    if lost.total() >= 0.001 * max(before.total(), 1):
        signs = " ".join(repr(sign) if sign.isspace() else sign for sign, _ in lost.most_common(8))
        yield (f"  {lost.total() / before.total():.1%} of the characters are lost, for the vocabulary cannot write "
               f"them: {signs} (babyllama tokenizer report shows more)")  # fmt: skip


def _lengths(stores: dict[str, TokenStore], unit: str) -> Iterator[str]:
    lengths = np.concatenate([np.diff(store.document_offsets) for store in stores.values()])
    shares = [(context, float((lengths - 1 > context).mean())) for context in _CONTEXTS]
    longer = [f"{context:,}: {share:.1%}" for context, share in shares if share]
    fate = "cuts" if unit == _UNITS["chat"] else "leaves out"
    yield (
        f"  tokens of {unit}: half have up to {int(np.median(lengths)):,}, the longest {int(lengths.max()):,}"
        + (f"; longer than a context of {', '.join(longer)} (training {fate} these)" if longer else "")
    )


def _sample(stores: dict[str, TokenStore], tokenizer: Tokenizer, number: int = 0) -> str:
    """One of the first documents on one line, the middle of its long stretches left out."""
    part = part_of(next(store for store in stores.values() if store.documents), number)
    if part.learned.all():
        return _shortened(tokenizer.decode(part.tokens[:_SAMPLE_TOKENS].tolist()))
    found = ((_shortened(text), learned) for text, learned in part.pieces(tokenizer, _SAMPLE_TOKENS))
    return "".join(f"[[{text}]]" if learned else text for text, learned in found)


def _shortened(text: str, start: int = 80, end: int = 40) -> str:
    line = " ".join(text.split())
    return line if len(line) <= start + end else f"{line[:start]}…{line[-end:]}"
