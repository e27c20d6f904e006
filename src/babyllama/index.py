"""All keys of all verbs at hand without importing anything heavy: for ``--help`` and for shell completion.

``keys.json`` is made from the recipes by ``make keys``, and a test compares the two. Not here: the full listing of one
recipe (keys.py), which imports the verb.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from typer import Context
from typer.core import TyperCommand

if TYPE_CHECKING:
    from pydantic import BaseModel

FILE = Path(__file__).with_name("keys.json")


class Key(NamedTuple):
    """One key of a verb's recipe, by its dotted name."""

    name: str
    about: str
    values: list[str]  # as far as they can be listed


@cache
def keys(verb: str) -> list[Key]:
    """The keys of one verb, in the recipe's order."""
    return [Key(name, *more) for name, more in json.loads(FILE.read_text("utf-8"))[verb].items()]


def write(recipes: dict[str, type[BaseModel]]) -> None:
    """Make ``keys.json`` anew from each verb's recipe."""
    from babyllama.keys import choices, dotted

    found = {}
    for verb, recipe in recipes.items():
        found[verb] = {
            name: (field.description or "", choices(field.annotation)) for name, field in dotted(recipe).items()
        }
    FILE.write_text(json.dumps(found, ensure_ascii=False, indent=0, separators=(",", ":")) + "\n", "utf-8")


class VerbCommand(TyperCommand):
    """A verb whose help lists its keys by topic and whose ``--key`` options complete."""

    @property
    def words(self) -> Any:
        """The parameter that takes all words."""
        return next(parameter for parameter in self.params if parameter.name == "words")

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", self.words.metavar, "[KEY=VALUE | --KEY VALUE]..."]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        words = self.words
        with formatter.section("Arguments"):
            formatter.write_dl([(words.metavar, words.help), ("KEY=VALUE, --KEY VALUE", "keys of the recipe, below")])
        with formatter.section("Options"):
            shown = [r for p in self.get_params(ctx) if p is not words and (r := p.get_help_record(ctx))]
            formatter.write_dl(shown)
        known = keys(self.name or "")
        topics: dict[str, list[str]] = {}
        for key in known:
            topic, _, inner = key.name.partition(".")
            topics.setdefault(topic, []).extend([inner] if inner else [])
        with formatter.section("Keys"):
            formatter.write_dl([(key.name, _about(key)) for key in known if "." not in key.name])
        nested = {topic: names for topic, names in topics.items() if names}
        if nested:
            with formatter.section("Keys by topic, written TOPIC.KEY (--keys explains each)"):
                formatter.write_dl([(topic, _direct(names)) for topic, names in nested.items()])

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        return [*super().shell_complete(ctx, incomplete), *self.words.shell_complete(ctx, incomplete)]


def _about(key: Key) -> str:
    values = " | ".join(key.values)
    return f"{key.about} ({values})" if key.about and values else key.about or values


def _direct(names: list[str]) -> str:
    """The keys of a topic, those with keys of their own marked as such."""
    parts: dict[str, bool] = {}
    for name in names:
        first, _, rest = name.removeprefix("0.").partition(".")
        parts[first] = parts.get(first, False) or bool(rest)
    return ", ".join(f"{name}.*" if nested else name for name, nested in parts.items())


# ── completion ─────────────────────────────────────────────────────────────────────────────────────────────────────
def complete(ctx: Context, incomplete: str) -> list[tuple[str, str]]:
    """What the shell offers for a word after a verb: keys, their values, recipes; files it offers by itself."""
    known = keys(ctx.info_name or "")
    if incomplete.startswith("--"):
        return [(f"--{key.name}", _about(key)) for key in known if key.name.startswith(_plain(incomplete))]
    before = [*(ctx.params.get("words") or ()), *ctx.args, ""][-2:][0]
    if before.startswith("--") and "=" not in before:
        return [(v, "") for key in known if key.name == _plain(before) for v in key.values if v.startswith(incomplete)]
    name, equals, value = incomplete.partition("=")
    if equals:
        return [(f"{name}={v}", "") for key in known if key.name == name for v in key.values if v.startswith(value)]
    from babyllama.recipe import bundled

    recipes = [(recipe, "a recipe") for recipe in bundled() if recipe.startswith(incomplete)]
    near = [key for key in known if key.name.startswith(incomplete) and (incomplete or "." not in key.name)]
    return [*recipes, *((f"{key.name}=", _about(key)) for key in near)]


def _plain(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")
