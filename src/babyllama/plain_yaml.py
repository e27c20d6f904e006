"""YAML as plain data and back, without its surprises. Not here: what the data mean (recipe.py)."""

from __future__ import annotations

import re
from typing import Any

import yaml

from babyllama.errors import InputError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its surprises: ``3e-4`` is a number, a date, a time and ``017`` are text, a repeated key is an
    error."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":timestamp", ":int", ":float"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be one word", problem_mark=key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the text that `_Loader` would take for a number, such as ``"3e-4"``."""


_NUMBERS = {  # as PyYAML has them, but 12:30 is no 750 and 017 no 15
    "int": r"^[-+]?(?:0|[1-9][\d_]*|0x[\da-fA-F_]+|0b[01_]+)$",
    "float": r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]\d+)?|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$",
}
for _name, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), list("-+.0123456789"))
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$|^[-+]?\.\d+(?:[eE][-+]?\d+)?$"),
        list("-+.0123456789"),
    )


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Unicode's line breaks are escaped, in double quotes: in single ones PyYAML writes what it cannot read."""
    unusual = any(character in text for character in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if unusual else None)


_Dumper.add_representer(str, _text)


def parse_yaml(text: str, where: str) -> Any:
    """One YAML document as plain data. Raises InputError with line and column."""
    try:
        found = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise InputError(f"{place}: not valid YAML: {error.problem}{_remedy(error, text)}") from None
    except (yaml.YAMLError, ValueError) as error:  # a control character; a tag whose value does not fit
        raise InputError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    _check_colons(found, where)
    return found


_REMEDIES = {  # a word of the fault → what most often was meant
    "alias": "what begins with * needs quotes",
    "anchor": "what begins with & needs quotes",
    "'\\t' that cannot start": "indent with blanks, not with tabs",
    "cannot start any token": "put what begins so into quotes",
}


def _remedy(error: yaml.MarkedYAMLError, text: str) -> str:
    """``*.jsonl`` is no alias, and a Chinese comma is no comma."""
    said = f"{error.context} {error.problem}"
    lines = text.splitlines()[error.problem_mark.line :] if error.problem_mark else []
    found = [remedy for word, remedy in _REMEDIES.items() if word in said][:1]
    return "".join(f"; {remedy}" for remedy in (*found, *["write , in place of ，"] * ("，" in "".join(lines[:1]))))


def _check_colons(data: Any, where: str) -> None:
    """``{path:a.jsonl}`` is, to YAML, one long key without a value; so is one with a Chinese colon."""
    for key, value in data.items() if isinstance(data, dict) else ():
        run = re.fullmatch(r"(\w+)(:(?!//)|：)\s*(\S.*)", key) if value is None and isinstance(key, str) else None
        if run:
            what = "has a full-width colon" if run[2] == "：" else "lacks a blank after its colon"
            raise InputError(f"{where}: {key!r:.80} {what}; write {run[1]}: {run[3]}")
        _check_colons(value, where)
    for item in data if isinstance(data, list) else ():
        _check_colons(item, where)


def dump_yaml(data: Any) -> str:
    """Plain data as YAML in the order of its keys; `parse_yaml` gives equal data."""
    return yaml.dump(data, Dumper=_Dumper, allow_unicode=True, sort_keys=False)
