"""What a model was trained on, as far as its runs say: which documents are held out from it, and its context.

`prepare` holds a document out if its record says so, else by the hash of its text alone, below a share of all hashes:
so one threshold says for every corpus that a training did not see a text. A model's is the least of those of its
training and of all its ancestors'. Not here: which documents are measured (bits.py, answers.py).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from babyllama.data.shards.shards import Prepared
from babyllama.data.sources.corpora import CorpusChoice
from babyllama.data.sources.documents import Document, held_out
from babyllama.data.streams.batches import DataRecipe
from babyllama.errors import InputError, at_home
from babyllama.lineage import lineage
from babyllama.moved import leads
from babyllama.recipe import validate

Standing = Literal["held out", "trained on", "unknown"]


class Provenance(NamedTuple):
    """folders: prepared data of all its trainings.
    sources: what those were made from in full: files, names of corpora. A corpus cut by max_documents is not there.
    held_out: the share of all texts, by hash, that none of them saw; None where some training is not known.
    trainings: the sources and the held-out share of each prepared folder; text of other sources is taken for new to it.
    context: plan.context of its last training; None where that was the model's whole context, or is not known.
    apart: its last training on texts read them as documents that do not see each other (`DataRecipe.apart`).
    """

    folders: frozenset[Path]
    sources: frozenset[str]
    held_out: float | None
    trainings: tuple[tuple[frozenset[str], float], ...]
    context: int | None
    apart: bool = False

    def of_split(self, prepared: Prepared, split: str) -> Standing:
        """How all documents of a prepared split stand to the model; "unknown" where they are of both kinds."""
        if split == "val" and self.held_out is not None:
            mine = _sources([prepared])
            shares = [share for sources, share in self.trainings if sources & mine] or [self.held_out]
            if prepared.manifest["validation"] <= min(shares):
                return "held out"
        return "trained on" if split == "train" and prepared.path.resolve() in self.folders else "unknown"

    def of_document(self, document: Document, choice: CorpusChoice) -> Standing:
        """How one document of a corpus stands to it."""
        if self.held_out is not None and held_out(document, self.held_out):
            return "held out"
        return "trained on" if _source(choice.path or choice.stored_as) in self.sources else "unknown"


def provenance(model: Path) -> Provenance:
    """Of a run and its ancestors; of any other folder nothing is known."""
    data: list[Prepared | None] = []  # None: not known, or no longer there
    context, apart = None, None
    for _, run in lineage(model):
        recipe = run.plain_recipe
        if run.info["verb"] == "train":
            context = context if data else recipe["plan"].get("context")
            read = [_prepared(leads(run.path, recipe[part]["path"])) for part in ("data", "replay") if recipe.get(part)]
            data += read
            if apart is None and read[0] and _has_text(read[0]):
                apart = validate(DataRecipe, recipe["data"], str(run.path)).apart
            if recipe["init"]["kind"] == "new":
                return _from(data, context, apart)
    return _from([*data, None], context, apart)  # another program's model before all that is known


def _prepared(folder: Path) -> Prepared | None:
    try:
        return Prepared.open(folder)
    except InputError:
        return None


def _has_text(prepared: Prepared) -> bool:
    return any(corpus["kind"] == "text" for corpus in prepared.manifest["corpora"].values())


def _from(data: list[Prepared | None], context: int | None, apart: bool | None) -> Provenance:
    known = [prepared for prepared in data if prepared is not None]
    return Provenance(
        folders=frozenset(prepared.path.resolve() for prepared in known),
        sources=_sources(known, whole=True),
        held_out=min(prepared.manifest["validation"] for prepared in known) if len(known) == len(data) else None,
        trainings=tuple((_sources([prepared]), prepared.manifest["validation"]) for prepared in known),
        context=context,
        apart=bool(apart),
    )


def _sources(data: list[Prepared], whole: bool = False) -> frozenset[str]:
    """What the folders were made from; `whole`: only corpora that were taken in full."""
    corpora = [pair for prepared in data for pair in prepared.manifest["corpora"].items()]
    taken = [(label, corpus) for label, corpus in corpora if not (whole and corpus.get("part"))]
    return frozenset(_source(name) for label, corpus in taken for name in (label, corpus["source"]))


def _source(name: str | Path) -> str:
    with suppress(InputError):  # the home folder of somebody elsewhere
        name = at_home(name)
    return str(Path(name).resolve())
