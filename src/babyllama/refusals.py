"""What pydantic finds wrong with a recipe → the dotted path as the user wrote it, and words that say what to write.

Not here: which data are checked, and where they come from (recipe.py).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from babyllama.keys import annotation, choices, fields_of, models_in, near


def explain(kind: type[BaseModel], item: Any) -> tuple[str, str]:
    """One fault as pydantic found it → its dotted path, and what is wrong with which value, with the remedy."""
    path, known = _locate(kind, item["loc"])
    given, value = item["input"], json.dumps(item["input"], ensure_ascii=False, default=str)[:200]
    fields = fields_of(kind, re.sub(r"(\.\d+)+$", "", path))
    models = [model for field in fields for model in models_in(field.annotation)]
    names = [name for model in models for name in choices(annotation(model, "kind"))] if len(models) > 1 else []
    example = " or ".join(str(example) for field in fields for example in field.examples or ())
    if item["type"] == "extra_forbidden" and (others := _kinds_with(kind, path)):
        return path, f"belongs to kind {', '.join(others)}; this one has {', '.join(known)}"
    if item["type"] == "extra_forbidden":
        meant = " or ".join(near(kind, path, known))
        hint = f"; did you mean {meant}?" if meant else f"; known keys: {', '.join(known)}" if known else ""
        return path, f"unknown key{hint}"
    if item["type"] == "missing":
        about = next((f" ({field.description})" for field in fields if field.description), "")
        return path, f"this key must be given{about}; write {example or f'{path}=…'}"
    if item["type"] == "tuple_type":
        one = f"[{given}]" if isinstance(given, str) and given.strip() else "[…, …]"
        return path, f"must be a list in brackets, got {value}; write {example or f'{path}={one}'}"
    if item["type"] == "union_tag_not_found":
        return f"{path}.kind", f"this key must be given; there are {', '.join(names)}"
    if item["type"] == "union_tag_invalid":
        return f"{path}.kind", _no_such(given.get("kind"), names)
    if models and item["type"] in ("dict_type", "model_type", "model_attributes_type"):
        if names and isinstance(given, str):
            return path, _no_such(given, names)
        inner = next(iter(models[0].model_fields))
        return path, f"has keys of its own, got {value}; write {example or f'{path}.{inner}=…'}"
    message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ") or "not allowed"
    return path, message if item["type"] == "value_error" else f"{message[0].lower() + message[1:]}, got {value}"


def _kinds_with(kind: type[BaseModel], path: str) -> list[str]:
    """The kinds at a key's place that have it, where it is a key of some."""
    parent, _, last = re.sub(r"(\.\d+)+(?=\.)", "", path).rpartition(".")
    models = [model for field in fields_of(kind, parent) for model in models_in(field.annotation)] if parent else []
    return [word for model in models if last in model.model_fields for word in choices(annotation(model, "kind"))]


def _no_such(name: Any, names: list[str]) -> str:
    meant = difflib.get_close_matches(str(name), names, n=1)
    return f"there is no {name!r}; {f'did you mean {meant[0]}? ' if meant else ''}there are {', '.join(names)}"


def _locate(kind: Any, loc: Sequence[int | str]) -> tuple[str, list[str]]:
    """The dotted path as the user wrote it (pydantic adds union tags to its own) and the keys known beside its end."""
    models, parts, known = [kind], [], [kind]
    for part in loc:
        tagged = [m for m in models if part in getattr(annotation(m, "kind"), "__args__", ())]
        if tagged and not any(part in m.model_fields for m in models):
            models = tagged
            continue
        if isinstance(part, str) and ("[" in part or part in [model.__name__ for model in models]):
            continue  # pydantic's own name for a member of a union without tags
        known = models
        parts.append(str(part))
        if not isinstance(part, int):
            models = [inner for model in models for inner in models_in(annotation(model, part))]
    return ".".join(parts), sorted({name for model in known for name in model.model_fields})
