"""data stats: what is in a corpus, in tables and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from babyllama.atomic import check_writable, write_json
from babyllama.commands.looking import Looked, Looking, looking_at, say
from babyllama.commands.table import table_of
from babyllama.data.shards.shards import SPLITS
from babyllama.data.shards.statistics import CONTEXTS, statistics
from babyllama.errors import at_home

Json = dict[str, Any]
_BARS = " ▁▂▃▄▅▆▇█"
_SCRIPTS = ("hanzi", "latin", "digits", "kana")


class DataStatsRecipe(Looked):
    """Of which data, and where the figures go."""

    context: int | None = Field(None, ge=1, description="how many documents are longer is counted; default: the run's")
    out: Path | None = Field(None, description="a JSON file with all figures", examples=["out=stats.json"])


def main(recipe: DataStatsRecipe) -> None:
    """Count and show."""
    if recipe.out is not None:
        check_writable(recipe.out)
    console = Console(highlight=False)
    with looking_at(recipe) as looking:
        context = recipe.context or _context(at_home(recipe.data), looking.run)
        found = _counted(looking, CONTEXTS if context is None else (context,), console)
    say(console, f"{recipe.data}: {found['documents']:,} documents, {found['tokens']:,} tokens of tokenizer "
                 f"{found['tokenizer']}")  # fmt: skip
    for table in tables(found["corpora"]):
        console.print()
        console.print(table)
    if recipe.out is not None:
        write_json(recipe.out, {**found, "path": recipe.data}, indent=2)
        say(console, f"\n{recipe.out} is ready")


def _context(path: Path, run: Json | None) -> int | None:
    """Tokens that one document may have in a run's rows, as far as the run says."""
    plan = (run or {}).get("plan")
    given = [plan.get("context")] if isinstance(plan, dict) else []
    config = path / "model" / "config.json"
    if run is not None and config.is_file():  # a pair's row has room for two
        given.append(json.loads(config.read_text("utf-8")).get("max_position_embeddings"))
    return min((context for context in given if context), default=None)


def _counted(looking: Looking, contexts: tuple[int, ...], console: Console) -> Json:
    total = sum(len(looking.prepared.store(label, split)) for label in looking.labels for split in SPLITS)
    columns = (TextColumn("counting"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("count", total=total)
        return statistics(looking.prepared, looking.tokenizer, looking.labels, contexts,
                          lambda tokens: bar.advance(task, tokens))  # fmt: skip


# ── shown ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def tables(corpora: dict[str, Json]) -> Iterator[Table]:
    """Each of a line a corpus, only those that have something to say."""
    yield _overview(corpora)
    yield _lengths(corpora)
    yield _scripts(corpora)
    yield _duplicates(corpora)
    for of, build in (("chats", _chats), ("pairs", _pairs), ("rated", _rated)):
        some = {label: corpus[of] for label, corpus in corpora.items() if of in corpus}
        if some:
            yield build(some)


def _overview(corpora: dict[str, Json]) -> Table:
    table = table_of(["corpus", "kind"], ["documents", "held\nout", "tokens", "share", "chars/\ntoken", "in the\nloss"])
    for label, corpus in corpora.items():
        table.add_row(label, corpus["kind"], f"{corpus['documents']:,}", f"{corpus['splits']['val']['documents']:,}",
                      f"{corpus['tokens']:,}", f"{corpus['share']:.1%}", f"{corpus['characters_per_token']:.2f}",
                      f"{corpus['learned']:.1%}")  # fmt: skip
    return table


def _lengths(corpora: dict[str, Json]) -> Table:
    contexts = next(iter(corpora.values()))["longer"]
    longest = max(len(corpus["lengths"]["histogram"]) for corpus in corpora.values())
    longer = [f"above\n{int(context):,}" for context in contexts]
    table = table_of(["tokens a document"], ["5 %", "half", "95 %", "longest", *longer])
    table.add_column(f"by length,\n1 to {2**longest - 1:,}", no_wrap=True)
    for label, corpus in corpora.items():
        lengths = corpus["lengths"]
        cuts = (lengths["percentiles"][at] for at in ("5", "50", "95"))
        counts = [count for _, _, count in lengths["histogram"]]
        table.add_row(label, *(f"{cut:,}" for cut in cuts), f"{lengths['most']:,}",
                      *(f"{count / corpus['documents']:.1%}" for count in corpus["longer"].values()),
                      bars([*counts, *[0] * (longest - len(counts))]))  # fmt: skip
    return table


def bars(counts: list[int]) -> str:
    """One character a count; what is not 0 is seen."""
    most = max(counts, default=0) or 1
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts)


def _scripts(corpora: dict[str, Json]) -> Table:
    table = table_of(["share of characters"], [*_SCRIPTS, "signs,\nother"])
    for label, corpus in corpora.items():
        shares = [corpus["scripts"].get(name, {"share": 0.0})["share"] for name in _SCRIPTS]
        table.add_row(label, *(f"{share:.1%}" for share in shares), f"{max(1 - sum(shares), 0):.1%}")
    return table


def _duplicates(corpora: dict[str, Json]) -> Table:
    table = table_of(["there before"], ["documents", "share", "also in\nothers", "held out,\nbut trained on"])
    for label, corpus in corpora.items():
        again = corpus["duplicates"]
        table.add_row(label, f"{again['documents']:,}", f"{again['share']:.1%}", f"{again['elsewhere']:,}",
                      f"{again['held_out_in_training']:,}")  # fmt: skip
    return table


def _chats(corpora: dict[str, Json]) -> Table:
    table = table_of(
        ["chats with"], ["answers,\nmean", "most", "system", "tools", "calls", "thoughts", "answers\nnot learned"]
    )
    for label, chats in corpora.items():
        answers = chats["answers"]
        known = (
            chats[key] for key in ("with_system", "with_tools", "with_calls", "with_thinking", "answers_not_learned")
        )
        table.add_row(label, f"{answers['mean']:.1f}", f"{answers['most']:,}",
                      *("–" if count is None else f"{count:,}" for count in known))  # fmt: skip
    return table


def _pairs(corpora: dict[str, Json]) -> Table:
    table = table_of(
        ["pairs, tokens"], ["pairs", "prompt,\nhalf", "better,\nhalf", "other,\nhalf", "better is\nlonger"]
    )
    for label, pairs in corpora.items():
        table.add_row(label, f"{pairs['pairs']:,}", *(_half(pairs[key]) for key in ("prompt", "chosen", "rejected")),
                      f"{pairs['chosen_longer']:.0%}")  # fmt: skip
    return table


def _rated(corpora: dict[str, Json]) -> Table:
    table = table_of(["rated answers, tokens"], ["good", "bad", "prompt,\nhalf", "good,\nhalf", "bad,\nhalf"])
    for label, rated in corpora.items():
        table.add_row(label, f"{rated['good']:,}", f"{rated['bad']:,}",
                      *(_half(rated[key]) for key in ("prompt", "good_answer", "bad_answer")))  # fmt: skip
    return table


def _half(lengths: Json) -> str:
    return f"{lengths['percentiles']['50']:,}" if lengths else "–"
