"""docs/architecture.md is the source's map: its tree, its picture, and the table of where new things go."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from babyllama.verbs import VERBS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "babyllama"
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
EVERYWHERE = ("__init__.py", "__main__.py")


def rooms():
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def named_in_the_tree() -> set[str]:
    """Paths below src/babyllama of all files that the tree names, each in the folder whose line it stands in."""
    tree = re.search(r"```\nsrc/babyllama/\n(.*?)```", PAGE, re.DOTALL)[1]
    found, folders, folder = set(), [], ""
    for line in tree.splitlines():
        entry = re.match(r"((?:│  |   )*)[├└]─ (\S+)", line)
        if entry:
            depth = len(entry[1]) // 3
            folders = folders[:depth] + ([entry[2]] if entry[2].endswith("/") else [])
            folder = "".join(folders)
        found |= {folder + name for name in re.findall(r"[\w/]+\.py\b", line)}
    return found


def test_the_tree_names_every_file_and_no_other():
    there = {file.relative_to(SOURCE).as_posix() for file in SOURCE.rglob("*.py") if file.name not in EVERYWHERE}
    said = named_in_the_tree()
    assert said <= there
    told_by_their_room = {f"commands/{verb.replace('-', '_')}.py" for verb in VERBS}  # one file = one verb
    told_by_their_room |= {name for name in there if name.startswith("foresight/checks/")}
    assert there - told_by_their_room == said - told_by_their_room


def test_the_layers_are_those_of_the_contracts():
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    said = re.findall(r"`([\w |]+(?: → [\w |]+)+)`", PAGE)
    assert said == [" → ".join(layer for layer in one["layers"] if layer != "__main__")
                    for one in contracts if one["type"] == "layers"]  # fmt: skip


def test_the_picture_is_drawn_from_the_imports():
    drawn = re.search(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)[1]
    assert drawn == rooms().picture(), "make map draws it anew"


def test_arrows_that_a_longer_way_says_are_left_out():
    found = rooms().needed({"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}})
    assert found == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set()} and next(iter(found)) == "a"
    module = rooms()
    assert [module.room_of(name) for name in ("babyllama", "babyllama.cli", "babyllama.train.engines.worker",
            "babyllama.train.state", "babyllama.train.trainer", "babyllama.model.rope", "babyllama.run")] == [
            None, "cli", "train/engines", "train/plan", "train", "model", "base"]  # fmt: skip


ROWS = re.findall(r"^\| (?!to add|---)([^|]+) \| (.+) \|$", PAGE.split("## Where new things go")[1], re.MULTILINE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_files_and_names_of_where_new_things_go(row):
    """Each file is there, from the top or beside the one before it, and every name stands in one of the row's files."""
    files, names = [], []
    for word in re.findall(r"`([^`]+)`", row[1]):
        path, _, name = (word, "", "") if word.endswith((".py", "/")) else word.rpartition(".")
        file = SOURCE / (path if path.endswith((".py", "/")) else f"{path}.py")
        if "/" in word or word.endswith(".py"):
            files.append(file if file.exists() else files[-1].parent / word)
            assert files[-1].exists(), (row[0], word)
        else:
            name = word
        names += [name] if name else []
    text = "".join(file.read_text("utf-8") for file in files if file.is_file())
    assert files and all(re.search(rf"\b{name}\b", text) or name in VERBS for name in names), (row[0], names)
