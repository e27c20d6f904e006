"""tokenizer report: what vocabularies make of texts, side by side in a table, a figure and a JSON file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from rich.console import Console
from rich.table import Table

from babyllama.amounts import amount
from babyllama.atomic import check_writable, write_json
from babyllama.commands.figures import COLOURS, bare, hanzi, legible
from babyllama.commands.table import table_of
from babyllama.data.sources.corpora import CorpusChoice, read_texts
from babyllama.errors import InputError, needs_extra
from babyllama.model.config import ModelChoice
from babyllama.recipe import Recipe
from babyllama.tokenizer.report import Pieces, Returned, Seen, measured, pieces, returned
from babyllama.tokenizer.tokenizer import Tokenizer

Json = dict[str, Any]
SHOWN = 20  # pieces of each kind in the file
KINDS = {"dead": "dead: no text becomes them", "unseen": "unseen in these texts",
         "strange": "strange: rulers, control characters", "parts": "parts of characters"}  # fmt: skip
DEFAULT = ({"name": "everyday_text"}, {"name": "microworld"})


class TokenizerReportRecipe(Recipe):
    """Which vocabularies, on which texts."""

    tokenizers: tuple[Path, ...] = Field(
        min_length=1, description="runs, Hugging Face folders or tokenizer.model files"
    )
    corpora: tuple[CorpusChoice, ...] = Field(
        default=tuple(CorpusChoice.model_validate(choice) for choice in DEFAULT), min_length=1,
        description="texts by domain, each corpus one; best such that no vocabulary was learned from",
        examples=["'corpora=[{path: news.jsonl}, {path: books/}]'"],
    )  # fmt: skip
    characters: int = Field(default=500_000, ge=1000, description="the most that are read of each corpus")
    preset: Literal["tiny", "seed", "base-218m"] = Field(
        default="seed", description="the model whose share of embeddings is told"
    )
    out: Path = Field(default=Path("tokenizers.json"), description="the file to write; the figure is beside it, .png")


def main(recipe: TokenizerReportRecipe) -> None:
    """Measure each vocabulary, show tables, write the file and the figure."""
    check_writable(recipe.out)
    console = Console(highlight=False)
    loaded = {name: Tokenizer.load(path) for name, path in _names(recipe.tokenizers).items()}
    texts = {choice.stored_as: list(_some(choice, recipe.characters)) for choice in recipe.corpora}
    if len(texts) < len(recipe.corpora):
        raise InputError("corpora: two have the same label; give one of them another label")
    result = {name: look(tokenizer, texts, recipe.preset) for name, tokenizer in loaded.items()}
    for table in tables(result):
        console.print(table)
        console.print()
    write_json(recipe.out, {"preset": recipe.preset, "tokenizers": result}, indent=2)
    figure = recipe.out.with_suffix(".png")
    draw(figure, result)
    console.print(f"{recipe.out} and {figure} are ready", markup=False, soft_wrap=True)


def _names(paths: tuple[Path, ...]) -> dict[str, Path]:
    """The last part of each path; the whole one where two have the same."""
    last = Counter(path.resolve().name for path in paths)
    return {path.resolve().name if last[path.resolve().name] == 1 else str(path): path for path in paths}


def _some(choice: CorpusChoice, characters: int) -> Iterator[str]:
    left = characters
    for text in read_texts([choice]):
        if text[:left].strip():
            yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def look(tokenizer: Tokenizer, texts: dict[str, list[str]], preset: Any) -> Json:
    """All figures of one vocabulary."""
    counts: Counter[int] = Counter()
    seen = {domain: measured(tokenizer, some, counts) for domain, some in texts.items()}
    config = ModelChoice(preset=preset).build(tokenizer.vocab_size)
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return {
        "vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash, "parameters": config.parameters,
        "embedding_share": embeddings / config.parameters,
        "domains": {domain: _domain(found) for domain, found in seen.items()},
        "scripts": _scripts(list(seen.values())),
        "pieces": _pieces(tokenizer, pieces(tokenizer, counts)),
        "round_trip": {name: _round_trip(found) for name, found in returned(tokenizer).items()},
    }  # fmt: skip


def _domain(seen: Seen) -> Json:
    return {"characters": seen.characters, "bytes": seen.bytes, "tokens": seen.tokens,
            "characters_per_token": seen.characters_per_token, "bytes_per_token": seen.bytes_per_token}  # fmt: skip


def _scripts(seen: list[Seen]) -> Json:
    """Tokens a character of each script, of Latin also a word."""
    tokens, characters = (
        sum((getattr(s, key) for s in seen), Counter[str]()) for key in ("tokens_of", "characters_of")
    )
    found: Json = {name: {"characters": n, "tokens": tokens[name], "tokens_per_character": tokens[name] / n}
                   for name, n in characters.most_common()}  # fmt: skip
    if "latin" in found:
        found["latin"]["tokens_per_word"] = tokens["latin"] / max(sum(s.words for s in seen), 1)
    return found


def _pieces(tokenizer: Tokenizer, found: Pieces) -> Json:
    def some(ids: tuple[int, ...]) -> list[str]:
        shown = ids if len(ids) <= SHOWN else ids[:: len(ids) // SHOWN][:SHOWN]
        return [tokenizer.decode([i]) for i in shown]

    return {"dead": len(found.dead), "unseen": len(found.unseen), "strange": len(found.strange),
            "parts": len(found.parts), "dead_examples": some(found.dead), "unseen_examples": some(found.unseen),
            "strange_examples": some(found.strange)}  # fmt: skip


def _round_trip(found: Returned) -> Json:
    return {"characters": found.characters, "single_tokens": found.single, "lost": len(found.lost),
            "lost_examples": [ascii(text) for text in found.lost[:SHOWN]]}  # fmt: skip


# ── shown ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def tables(result: dict[str, Json]) -> Iterator[Table]:
    """One of domains, one of scripts, one of the vocabulary itself; a column for each."""
    names = list(result)
    domains = table_of(["characters (bytes) a token"], names)
    for domain in result[names[0]]["domains"]:
        found = [result[name]["domains"][domain] for name in names]
        domains.add_row(domain, *(f"{f['characters_per_token']:.2f} ({f['bytes_per_token']:.2f})" for f in found))
    yield domains
    scripts = table_of(["tokens a character"], names)
    for script, first in result[names[0]]["scripts"].items():
        label = f"{script}, {amount(first['characters'], 'character')}"
        scripts.add_row(label, *(f"{result[name]['scripts'][script]['tokens_per_character']:.2f}" for name in names))
    if "latin" in result[names[0]]["scripts"]:
        words = (result[name]["scripts"]["latin"]["tokens_per_word"] for name in names)
        scripts.add_row("latin, tokens a word", *(f"{value:.2f}" for value in words))
    yield scripts
    itself = table_of(["vocabulary"], names)
    itself.add_row("tokens", *(f"{result[name]['vocab_size']:,}" for name in names))
    itself.add_row(
        "share of the model that is embeddings", *(f"{result[name]['embedding_share']:.0%}" for name in names)
    )
    for key, about in KINDS.items():
        itself.add_row(about, *(f"{result[name]['pieces'][key]:,}" for name in names))
    for plane in result[names[0]]["round_trip"]:
        found = [result[name]["round_trip"][plane] for name in names]
        itself.add_row(f"{plane}, {found[0]['characters']:,}: one token", *(_share(f) for f in found))
    yield itself


def _share(found: Json) -> str:
    lost = f", {found['lost']:,} lost" if found["lost"] else ""
    return f"{found['single_tokens'] / found['characters']:.0%}{lost}"


def draw(file: Path, result: dict[str, Json]) -> None:
    """Characters a token by domain and tokens a character by script, a bar for each vocabulary."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise needs_extra("matplotlib", "report") from None
    first = next(iter(result.values()))
    shown = dict(zip(result, legible(list(result)), strict=True))
    with hanzi():
        figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
        FigureCanvasAgg(figure)
        for axes, key, value, title in zip(
            figure.subplots(1, 2), ("domains", "scripts"), ("characters_per_token", "tokens_per_character"),
            ("characters a token (more is better)", "tokens a character (less is better)"), strict=True,
        ):  # fmt: skip
            groups, width = list(first[key]), 0.8 / len(result)
            for number, (name, found) in enumerate(result.items()):
                places = [i + (number - (len(result) - 1) / 2) * width for i in range(len(groups))]
                axes.bar(places, [found[key][group][value] for group in groups], width, label=shown[name],
                         color=COLOURS[number % len(COLOURS)])  # fmt: skip
            axes.set_xticks(range(len(groups)), legible(groups), rotation=30, ha="right")
            axes.set_title(title, fontsize=9, loc="left")
            bare(axes)
        figure.axes[0].legend(fontsize=8, frameon=False)
        figure.savefig(file)
