"""The site's reference: one page a verb, made from the recipes, their keys' descriptions and the docstrings.

Needs the package only, no mkdocs; nothing is written (docs/pages.py puts the pages on the site).
"""

from __future__ import annotations

import html
import inspect
import json
import re
from typing import Any, get_origin

from pydantic import BaseModel
from typer.main import get_command

from babyllama.index import VerbCommand
from babyllama.keys import Model, choices, models_in
from babyllama.recipe import BUNDLED, bundled
from babyllama.verbs import VERBS, app, recipe_type

AFTER = re.compile(r"^(Args|Raises|Returns|Yields|Attributes):$", re.MULTILINE)  # where a docstring turns to details


def pages() -> dict[str, str]:
    """Name of a file below reference/ → its Markdown: the overview, the verbs in the order of --help, the recipes."""
    verbs: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    found = {f"{verb}.md": verb_page(verbs[verb]) for verb in VERBS}
    rows = [f"| [`{verb}`]({verb}.md) | {text(verbs[verb].short_help)} |" for verb in VERBS]
    overview = ["# All verbs", "In a terminal: `babyllama VERB --help`, `babyllama VERB --keys`.",
                "\n".join(["| verb | what it does |", "|---|---|", *rows]),
                "The recipes that come with the package: [recipes](recipes.md)."]  # fmt: skip
    return {"index.md": "\n\n".join(overview) + "\n", **found, "recipes.md": recipes_page()}


def verb_page(command: VerbCommand) -> str:
    """Usage, examples, and a table of keys for the recipe and for each value nested in it."""
    about, _, lines = inspect.cleandoc(command.help or "").partition("\b")
    said = [line.strip() for line in lines.splitlines() if line.strip()]
    examples = [line for line in said if line.startswith("babyllama ")]
    notes = [line for line in said if line not in examples]
    usage = f"babyllama {command.name} {command.words.metavar} [KEY=VALUE | --KEY VALUE]..."
    parts = [f"# {command.name}", text(about.strip()), *([text(" ".join(notes))] if notes else []),
             f"```text\n{usage}\n```", "```sh\n" + "\n".join(examples) + "\n```", "## Keys",
             f"`{command.words.metavar}`: {text(command.words.help)}; then keys, in any order:"]  # fmt: skip
    return "\n\n".join([*parts, *tables(recipe_type(command.name or ""), "")]) + "\n"


def tables(model: Model, prefix: str) -> list[str]:
    """The keys of one recipe type, then, each under its heading, those of the values nested in it."""
    told = {
        name for name, field in model.model_fields.items() if name == "kind" and len(choices(field.annotation)) == 1
    }
    rows = [row(f"{prefix}{name}", field) for name, field in model.model_fields.items() if name not in told]
    parts = ["\n".join(["| key | default | what it is |", "|---|---|---|", *rows])] if rows else []
    for name, field in model.model_fields.items():
        variants = models_in(field.annotation)
        item = ".0" if get_origin(field.annotation) is tuple else ""
        for variant in variants:
            kinds = choices(variant.model_fields["kind"].annotation) if "kind" in variant.model_fields else []
            choice = f"{prefix}{name}{item}" + (f".kind={' | '.join(kinds)}" if kinds else "")
            alone = len(variants) > 1 and not kinds
            inner = tables(variant, f"{prefix}{name}{item}.")
            parts += [f"### `{choice}`" + (f" ({variant.__name__})" if alone else ""), *docstring(variant), *inner]
    return parts


def row(name: str, field: Any) -> str:
    """One key: what it is unless given, its description, and the words that it can be."""
    default = field.get_default(call_default_factory=True)
    shown = "required" if field.is_required() else code(plain(default))
    words = [word for word in choices(field.annotation) if word not in ("true", "false")]
    listed = "one of " + ", ".join(map(code, words)) if len(words) > 1 else ""
    return f"| {code(name)} | {shown} | {'; '.join(filter(None, (text(field.description or ''), listed)))} |"


def plain(value: Any) -> str:
    """A default as the command line takes it; of a nested value its kind."""
    if isinstance(value, BaseModel):
        return str(getattr(value, "kind", "…"))
    if isinstance(value, (tuple, list)) and any(isinstance(item, BaseModel) for item in value):
        return f"[{', '.join(map(plain, value))}]"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)


def docstring(model: Model) -> list[str]:
    """What its class says of itself, without the details of arguments."""
    about = AFTER.split(inspect.cleandoc(vars(model).get("__doc__") or ""))[0].strip()
    return [text(about)] if about else []


def recipes_page() -> str:
    """The bundled recipes as they are."""
    bodies = [
        f"## {name}\n\n```yaml\n{(BUNDLED / f'{name}.yaml').read_text('utf-8').rstrip()}\n```" for name in bundled()
    ]
    start = "Each is a name for the command line (`babyllama train seed/pretrain`) and a file to copy and change."
    return "\n\n".join(["# Recipes", start, *bodies]) + "\n"


def text(words: str) -> str:
    """Plain words as Markdown shows them unchanged; what stands between backquotes stays code."""
    spans = re.split(r"(``?[^`]+``?)", words)
    plainly = (html.escape(span, quote=False) for span in spans[::2])
    safe = [re.sub(r"([*_\[\]|\\])", lambda found: f"&#{ord(found[0])};", span) for span in plainly]
    coded = [code(span.strip("`")) for span in spans[1::2]]
    return "".join(part for pair in zip(safe, [*coded, ""], strict=True) for part in pair)


def code(words: str) -> str:
    """A code span that a table's cell may hold."""
    return f"<code>{html.escape(words, quote=False).replace('|', '&#124;')}</code>"
