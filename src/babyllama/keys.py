"""The keys of a recipe type: their dotted names and types, near misses of a wrong one, and the listing of ``--keys``.

Variants of a union (tagged by ``kind``) are walked side by side, so one dotted name may stand for fields of several.
Not here: values and how they are checked (recipe.py).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Model = type[BaseModel]


def models_in(annotation: Any) -> list[Model]:
    """The recipe types that a field's annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in getattr(annotation, "__args__", ()) for model in models_in(arg)]


def annotation(model: Model, field: str) -> Any:
    return model.model_fields[field].annotation if field in model.model_fields else None


def types_of(kind: Model, path: str) -> list[Any]:
    """The types of every field that the dotted `path` may mean; empty when there is no such key."""
    return [field.annotation for field in fields_of(kind, path)]


def fields_of(kind: Model, path: str) -> list[FieldInfo]:
    models, (*parents, last) = [kind], path.split(".")
    for part in parents:
        if not part.isdecimal():
            models = [m for model in models for m in models_in(annotation(model, part))]
    return [model.model_fields[last] for model in models if last in model.model_fields]


def dotted(kind: Model) -> dict[str, FieldInfo]:
    """Every key by its dotted name, in the recipe's order; the items of a list by their first, ``corpora.0.path``."""
    found: dict[str, FieldInfo] = {}
    for name, field in _walk(kind, ""):
        found.setdefault(name, field)
    return found


def _walk(kind: Model, prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in kind.model_fields.items():
        path = f"{prefix}{name}"
        yield path, field
        item = ".0." if get_origin(field.annotation) is tuple else "."
        for model in models_in(field.annotation):
            yield from _walk(model, path + item)


def choices(types: Any) -> list[str]:
    """The words that a field can be, as far as its type lists them: of a Literal, a boolean, the kinds of a union."""
    if types is bool:
        return ["true", "false"]
    if get_origin(types) is Literal:
        return [str(value) for value in get_args(types)]
    kinds = [word for model in models_in(types) for word in choices(annotation(model, "kind"))]
    return kinds or [word for arg in get_args(types) for word in choices(arg)]


def kinds(types: Any) -> list[str]:
    """The kinds of a union that is tagged by them, where no plain text is allowed beside it."""
    members = [types, *get_args(types)]
    if any(member in (str, Path) or get_origin(member) in (Literal, tuple) for member in members):
        return []
    return [word for model in models_in(types) for word in choices(annotation(model, "kind"))]


# ── near misses ────────────────────────────────────────────────────────────────────────────────────────────────────
def near(kind: Model, path: str, beside: Sequence[str]) -> list[str]:
    """Known keys that a wrong one may mean: spelt alike `beside` it, or longer; else of its name, or spelt alike,
    elsewhere."""
    prefix, _, last = path.rpartition(".")
    prefix = f"{prefix}." if prefix else ""
    alike = difflib.get_close_matches(last, beside, n=1)
    longer = [name for name in beside if len(last) > 3 and last in name]  # layers: num_hidden_layers
    if alike or longer:
        return [prefix + name for name in (alike or longer)[:3]]
    known = [name for name in dotted(kind) if name != path]  # itself: it belongs to another kind than the chosen one
    same = [name for name in known if name.rpartition(".")[2] == last]
    if same:
        return same[:3]
    spelt = difflib.get_close_matches(last, {name.rpartition(".")[2] for name in known}, n=1, cutoff=0.75)
    return [name for name in known if name.rpartition(".")[2] in spelt][:3]


# ── the listing ────────────────────────────────────────────────────────────────────────────────────────────────────
def describe(kind: Model, given: dict[str, Any] | None = None, indent: str = "") -> str:
    """Every key, one a line, nested ones indented: its value in `given`, or its default, and what it is.

    Args:
        given: plain data of one recipe, defaults may be missing; of its variants only the chosen ones are then listed.
    """
    lines = []
    for name, field in kind.model_fields.items():
        default = field.get_default(call_default_factory=True)
        required = field.is_required() and name not in (given or {})
        value = given[name] if given and name in given else default
        models = models_in(field.annotation)
        words = choices(field.annotation)
        others = f" [{' | '.join(words)}]" if len(words) > 1 and words != ["true", "false"] else ""
        note = f"  # {field.description}" if field.description else ""
        shown = "required" if required else _brief(value, bool(models))
        lines.append(f"{indent}{name}: {shown}{others}{note}".rstrip())
        plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        lines += [_variant(model, models, plain, default, indent + "  ", given) for model in models]
    return "\n".join(line for line in lines if line)


def _variant(model: Model, models: list[Model], value: Any, default: Any, indent: str, given: Any) -> str:
    """One member of a field's type; headed by its name unless it is the only one."""
    tags = choices(annotation(model, "kind"))
    tag = (value.get("kind") or getattr(default, "kind", None)) if isinstance(value, dict) else None
    chosen = isinstance(value, dict) and (len(models) == 1 or tag in tags)
    if given is not None and not chosen and value is not None:
        return ""
    inner = value if isinstance(value, dict) and chosen else ({} if given is not None else None)
    if len(models) == 1 or (given is not None and chosen):
        return describe(model, inner, indent)
    title = " | ".join(tags) or model.__name__
    return f"{indent}[{title}]\n{describe(model, inner if chosen else None, indent + '  ')}"


def _brief(value: Any, nested: bool) -> str:
    if isinstance(value, BaseModel):
        return getattr(value, "kind", "")
    if nested and isinstance(value, dict):
        return str(value.get("kind", ""))
    return json.dumps(value, ensure_ascii=False, default=str)
