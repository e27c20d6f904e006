"""The words after a verb → a recipe's source and its overrides, in any order.

``key=value``, ``--key value``, ``--key=value``, ``--flag`` and ``--no-flag`` (for booleans) set a key, with dashes or
underscores; any other word is a recipe (a file or a bundled name), a run to continue, or what the verb is about.
Not here: what the values mean (recipe.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from pydantic import BaseModel

from babyllama.errors import InputError, pasted
from babyllama.keys import dotted, near, types_of
from babyllama.recipe import bundled

_SETTING = re.compile(r"([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)
# What an input method or a text processor makes of a setting: ＝, ：, a colon, blanks, dashes of another length.
_ALMOST = re.compile(r"(--|[—–－]+)?([A-Za-z_][\w.-]*)(?:\s*[＝=：:]\s*(.+))?", re.DOTALL)


class Said(NamedTuple):
    """What was typed, sorted out."""

    source: str | None  # a recipe file or the name of one
    settings: list[str]  # ``key=value``, in the order they were typed


def understand(kind: type[BaseModel], words: Sequence[str], verb: str, subject: str | None = None) -> Said:
    """Sort out the words of one command.

    Args:
        subject: the key that a word without ``=`` stands for (``model`` in ``chat runs/base``), unless it is a YAML
            file or the name of a bundled recipe; a key of several takes several words.

    Raises:
        InputError: a key that lacks its value, two recipes, an unknown ``--key``, a subject that is given twice.
    """
    _check_whole(words)
    for place, word in enumerate(words):
        if place and word.startswith(("=", "＝")) and not words[place - 1].startswith("--"):
            said = " ".join(words[place - 1 : place + (1 if word[1:] else 2)])
            raise InputError(f"{said}: write it without blanks: {said.replace(' ', '').replace('＝', '=')}")
    bare, settings = _settings(kind, list(words))
    if subject is None:
        if len(bare) > 1:
            raise InputError(f"{' '.join(bare)}: {verb} takes one recipe; to set a key write key=value or --key value")
        if bare and Path(bare[0]).is_dir():
            return Said(str(Path(bare[0]) / "recipe.yaml"), [f"out={_started(verb, bare[0])}", *settings])
        return Said(bare[0] if bare else None, settings)
    recipes = [word for word in bare if _is_recipe(word)] if subject != "target" else []
    named = [word for word in bare if word not in recipes]
    several = any("tuple" in str(t) for t in types_of(kind, subject))
    if len(recipes) > 1 or (len(named) > 1 and not several):
        raise InputError(f"{' '.join(bare)}: {verb} takes one {subject}; to set a key write key=value or --key value")
    if named and any(setting.startswith(f"{subject}=") for setting in settings):
        raise InputError(f"{' '.join(bare)}: {subject} is given twice, as a word and as {subject}=…; leave one out")
    value = json.dumps(named, ensure_ascii=False) if several else "".join(named)
    return Said(recipes[0] if recipes else None, [*([f"{subject}={value}"] if named else []), *settings])


def _check_whole(words: Sequence[str]) -> None:
    """Raise InputError for a list or mapping that the shell cut at its blanks: ``corpora=[{path:`` ``a.jsonl}]``."""
    for first, word in enumerate(words):
        setting = _SETTING.fullmatch(word.removeprefix("--"))
        if setting and setting[2].startswith(("[", "{")) and _open(word):
            for last in range(first + 1, len(words)):
                whole = " ".join(words[first : last + 1])
                if not _open(whole):
                    raise InputError(f"{whole}: the shell cut this at its blanks; put it in quotes: '{whole}'")


def _open(text: str) -> int:
    """Brackets that are still open."""
    return sum(text.count(left) - text.count(right) for left, right in ("[]", "{}"))


def _is_recipe(word: str) -> bool:
    return word.endswith((".yaml", ".yml")) or (word in bundled() and not _exists(word))


def _settings(kind: type[BaseModel], words: list[str]) -> tuple[list[str], list[str]]:
    bare, settings = [], []
    while words:
        word = words.pop(0)
        setting = _SETTING.fullmatch(word.removeprefix("--"))
        if setting and (word.startswith("--") or not _exists(word)):
            settings.append(f"{setting[1].replace('-', '_')}={setting[2]}")
        elif word.startswith("--"):
            _check_almost(kind, word)
            settings.append(_option(kind, word[2:].replace("-", "_"), words))
        else:
            _check_almost(kind, word)
            bare.append(word)
    return bare, settings


def _check_almost(kind: type[BaseModel], word: str) -> None:
    """Raise InputError for a word that would be a setting if it were typed in other signs."""
    found = _ALMOST.fullmatch(word)
    if found is None or not (found[3] or (found[1] or "--") != "--") or _exists(word):
        return
    dashes, key, value = found.groups()
    if any(name == key or name.endswith(f".{key}") for name in dotted(kind)):
        meant = f"--{key}" if value is None else f"{'--' if dashes else ''}{key}={value}"
        raise InputError(f"{word}: is no setting as it is written; write {meant}")


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except OSError:  # longer than any name of a file
        return False


def _option(kind: type[BaseModel], key: str, rest: list[str]) -> str:
    """``--key``, with its value from `rest` if it takes one."""
    switch = key.removeprefix("no_")
    if any(t is bool or bool in get_args(t) for t in types_of(kind, switch)):
        if switch == key and rest and rest[0] in ("true", "false", "null"):
            return f"{key}={rest.pop(0)}"
        return f"{switch}={'true' if switch == key else 'false'}"
    if rest and not (rest[0].startswith("--") and types_of(kind, rest[0][2:].partition("=")[0].replace("-", "_"))):
        return f"{key}={rest.pop(0)}"
    if not types_of(kind, key):
        meant = near(kind, key, list(kind.model_fields))
        raise InputError(f"--{key}: no such option{f'; did you mean --{meant[0]}?' if meant else ''}")
    raise InputError(f"--{key}: needs a value: --{key} VALUE")


def _started(verb: str, run: str) -> str:
    """The folder of a run of `verb`, to be continued in place."""
    try:
        held = json.loads((Path(run) / "run.json").read_text("utf-8"))["verb"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{run}: is a folder, but no run to continue; give a recipe, or out={run}") from None
    if held != verb:
        raise InputError(f"{run}: holds a {held} run; continue it with: babyllama {held} {pasted(Path(run))}")
    return run
