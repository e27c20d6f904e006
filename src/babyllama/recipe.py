"""YAML and dotted overrides → frozen, typed recipes.

A recipe is plain data, checked once where it enters: unknown keys and wrong types are refused with the dotted path,
the value and the nearest known key. Precedence: field defaults < YAML file < ``key.path=value``. Variants
are unions tagged by ``kind``. Not here: what any recipe means; each verb's file in ``commands`` says that; how a fault
reads (refusals.py).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from babyllama.errors import InputError, at_home, pasted
from babyllama.keys import kinds, types_of
from babyllama.moved import moved
from babyllama.plain_yaml import dump_yaml, parse_yaml
from babyllama.refusals import explain

BUNDLED = Path(__file__).parent / "recipes"

T = TypeVar("T")


class _Changeable:
    """Marks a field in its annotation."""


Changeable = Annotated[T, _Changeable()]
"""A field that does not decide what a run makes: a run may be continued with another value of it."""


Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What is drawn at random begins from it; every generator here takes such numbers."""


class Recipe(BaseModel):
    """Base of every recipe and of every frozen value inside one: immutable, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _home(cls, value: Any) -> Any:
        """``~`` is the home folder in every path of every recipe."""
        return _at_home(value)

    @classmethod
    def spelt_out(cls, data: dict[str, Any]) -> dict[str, Any]:
        """What was written, with the full names of keys that this recipe lets one shorten."""
        return data

    def identity(self) -> dict[str, Any]:
        """Dotted key → value of all that decides what a run makes: every field that is not `Changeable`."""
        found: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if any(isinstance(mark, _Changeable) for mark in field.metadata):
                continue
            if isinstance(value, Recipe):
                found |= {f"{name}.{key}": inner for key, inner in value.identity().items()}
            else:
                found[name] = value
        return found


def _at_home(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_at_home(item) for item in value)
    return at_home(value) if isinstance(value, Path) else value


R = TypeVar("R", bound=Recipe)


def bundled() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(path.relative_to(BUNDLED).with_suffix("").as_posix() for path in BUNDLED.rglob("*.yaml"))


def find_recipe(name: str) -> Path:
    """A path as given, or a recipe that comes with the package (``quickstart/pretrain``)."""
    path = at_home(name)
    if path.is_file():
        return path
    known = bundled()
    short = name.removesuffix(".yaml")
    if short in known:
        return BUNDLED / f"{short}.yaml"
    alike = difflib.get_close_matches(short, known, n=1) or [k for k in known if k.rpartition("/")[2] == short][:3]
    hint = f"did you mean {' or '.join(alike)}? " if alike else ""
    raise InputError(f"{name}: no such recipe file; {hint}`babyllama recipes` lists those that come with the package")


_OF_VERB = {  # verb → a key that only its recipes have, and what its command needs at least
    "tokenizer": ("source", "source.kind=train 'source.corpora=[{path: my.jsonl}]'"),
    "prepare": ("corpora", "tokenizer=runs/tokenizer 'corpora=[{path: my.jsonl}]'"),
    "train": ("data", "data.path=runs/corpus plan.epochs=1"),
}


def maker(verb: str, out: Path) -> str:
    """The command that makes `out`: with the bundled recipe that writes there, or written out as an example."""
    key, needs = _OF_VERB[verb]
    for name in bundled():
        said = parse_yaml((BUNDLED / f"{name}.yaml").read_text("utf-8"), name)
        if key in said and Path(said.get("out", "")) == out:
            return "babyllama quickstart" if name.startswith("quickstart/") else f"babyllama {verb} {name}"
    return f"babyllama {verb} out={pasted(out)} {needs}"


def one_inside(path: Path, holds: str = "run.json", otherwise: str = "give the folder of a run") -> str:
    """What to give instead of a folder that is no run: one of the runs in it, by a file that it `holds`, if any."""
    files = {file.relative_to(path).parts[0]: file.stat().st_mtime for file in sorted(path.glob(f"*/{holds}"))}
    if not files:
        return otherwise
    newest = max(files, key=lambda name: files[name])
    return f"it holds the runs {', '.join(files)}: give one of them, such as {path / newest}"


def load_recipe(kind: type[R], source: str | None = None, overrides: Sequence[str] = ()) -> R:
    """Defaults, then the YAML file `source` (or a bundled name), then ``key.path=value`` overrides.

    Raises:
        InputError: one line for each fault, starting with the file (if there is one) and the dotted path.
    """
    said = [override.partition("=")[0] for override in overrides]
    return validate(kind, read_recipe(kind, source, overrides), str(find_recipe(source)) if source else "", said)


def read_recipe(kind: type[Recipe], source: str | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What `source` and the overrides say, as plain data that nobody has checked yet."""
    data: Any = {}
    if source is not None:
        path = find_recipe(source)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not valid UTF-8 at byte {error.start}") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        data = parse_yaml(text, str(path)) or {}
        if not isinstance(data, dict):
            raise InputError(f"{path}: a recipe is a mapping of keys to values, not a {type(data).__name__}")
        if path.name == "recipe.yaml" and (path.parent / "run.json").is_file():
            data = moved(kind, data, path.parent)
    for override in overrides:
        _apply(kind, data, override)
    return kind.spelt_out(data)


def _apply(kind: type[BaseModel], data: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise InputError(f"override {override!r} must look like key.path=value")
    node: Any = data
    *parents, last = path.split(".")
    for part in parents:
        child = _item(node, part, path) if isinstance(node, list) else node.get(part)
        if isinstance(child, str):  # engine=fsdp engine.context=2: of what has keys, a name is the kind
            child = {"kind": child}
        child = child.copy() if isinstance(child, dict | list) else {}  # a copy: a YAML alias may share it
        if isinstance(node, list):
            node[int(part)] = child
        else:
            node[part] = child
        node = child
    parsed = _value(kind, path, value)
    if isinstance(node, list):
        _item(node, last, path)
        node[int(last)] = parsed
    else:
        node[last] = parsed


def _value(kind: type[BaseModel], path: str, text: str) -> Any:
    """What was typed: YAML, except where the field is a text: then it is taken as it stands (``prompt=2024``).

    A text is YAML only if all of it is quoted, or if it is ``null`` and the field can be that.
    """
    fields = types_of(kind, path)
    texts = bool(fields) and all(field in (str, Path, str | None, Path | None) for field in fields)
    if not text.strip():
        if any(field in (Path, Path | None) for field in fields):
            raise InputError(f"override {path}: is empty; give a path, or leave the key out")
        return text
    if not texts:
        return parse_yaml(text, f"override {path}")
    if text == "null" and all(field in (str | None, Path | None) for field in fields):
        return None
    if text[0] in "\"'" and text[-1] == text[0]:
        with suppress(InputError):  # quoted words at both ends, such as "a" or "b", are no quoted text
            return parse_yaml(text, path)
    return text


def _item(items: list[Any], part: str, path: str) -> Any:
    if not part.isdecimal() or int(part) >= len(items):
        raise InputError(f"override {path}: {part!r} must be an index below {len(items)}")
    return items[int(part)]


def validate(kind: type[R], data: Any, where: str, said: Sequence[str] = ()) -> R:
    """Plain data → recipe; every fault becomes one line that starts with the dotted path.

    Args:
        where: the file that the data come from.
        said: dotted paths that were set over it: what is wrong there is no fault of the file's.
    """
    try:
        # JSON mode keeps strictness but lets lists be tuples and strings be paths, as YAML can only write those.
        return kind.model_validate_json(json.dumps(_complete(kind, data), ensure_ascii=False))
    except ValidationError as error:
        found = error.errors(include_url=False)
        inner = [item["loc"] for item in found]  # a fault inside a list also makes the list too short: say it once
        own = [
            i for i in found if not any(len(loc) > len(i["loc"]) and loc[: len(i["loc"])] == i["loc"] for loc in inner)
        ]
        told = [explain(kind, item) for item in own]
        # What was set over the file is no fault of the file's.
        over = tuple(f"{one}." for one in said)
        lines = [": ".join(part for part in ("" if f"{path}.".startswith(over) else where, path,
                           _of_another_kind(data, path, said) or fault) if part) for path, fault in told]  # fmt: skip
    except (TypeError, ValueError) as error:  # a date, a set or NaN written in YAML
        lines = [f"{where}: {error}" if where else str(error)]
    raise InputError("\n".join(lines))


def _of_another_kind(data: Any, path: str, said: Sequence[str]) -> str:
    """What to write where a key of the recipe's does not go with the kind that was set over it; else nothing."""
    *parents, key = path.split(".")
    at = ".".join(parents)
    if f"{at}.kind" not in said or any(one == path or one.startswith(f"{path}.") for one in said):
        return ""
    for part in parents:
        data = data.get(part) if isinstance(data, dict) else None
    if not isinstance(data, dict) or key not in data:  # another fault, such as a key that is missing
        return ""
    return (f"the recipe gives it for another kind; to leave out all that it says of {at}, write {at}={data['kind']} "
            f"in place of {at}.kind={data['kind']}")  # fmt: skip


def _complete(kind: type[BaseModel], data: Any) -> Any:
    """Let a nested value that names no other ``kind`` start from its field's default: one key can be overridden."""
    if not isinstance(data, dict):
        return data
    completed = dict(data)
    for name, field in kind.model_fields.items():
        if name in data:
            completed[name] = _named(field.annotation, data[name])
        given, default = completed.get(name), field.default
        if isinstance(given, dict) and isinstance(default, Recipe):
            tag = getattr(default, "kind", None)
            same = given.get("kind", tag) == tag
            # What the default leaves to its type stays unsaid, so that a recipe tells what was chosen.
            said = {**default.model_dump(mode="json", exclude_unset=True), **({"kind": tag} if tag else {})}
            completed[name] = _complete(type(default), {**said, **given}) if same else given
    return completed


def _named(types: Any, given: Any) -> Any:
    """The name of a kind → that kind as it is, in a list, too: ``optimizer=muon``, ``sinks=[wandb]``."""
    if isinstance(given, str) and given in kinds(types):
        return {"kind": given}
    if isinstance(given, list) and get_origin(types) is tuple:
        return [_named(get_args(types)[0], item) for item in given]
    return given


def dump_recipe(recipe: Recipe) -> str:
    """The fully resolved recipe as YAML; loading it again gives an equal recipe."""
    return dump_yaml(recipe.model_dump(mode="json"))
