"""The house rules that a machine can read: sizes, and tests that stand where what they test stands."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE, TESTS = ROOT / "src" / "babyllama", ROOT / "tests"
FILES = sorted(file for file in SOURCE.rglob("*.py") if file.name not in ("__init__.py", "__main__.py"))
REASON = "although it is long"  # so begins what a docstring says of it


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Its lines from def to end, without the docstring's."""
    documented = ast.get_docstring(function) is not None
    first = function.body[0]
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if documented else 0)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SOURCE).as_posix())
def test_what_is_long_says_why(file):
    about = ast.get_docstring(tree(file)) or ""
    assert len(file.read_text("utf-8").splitlines()) <= 300 or REASON in " ".join(about.split())
    if file.name.endswith("kernels.py"):  # a GPU's kernel is one function, whatever it needs
        return
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) > 40:
            assert REASON in (ast.get_docstring(node) or ""), f"{node.name} has {lines_of(node)} lines"


@cache
def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def mirrored(file: Path) -> bool:
    """Whether a test file of its room, or one of the laws, is named after it or imports it."""
    place = file.relative_to(SOURCE)
    room, name = TESTS / place.parent, ".".join(("babyllama", *place.with_suffix("").parts))
    near = [*(room.glob("*.py") if room == TESTS else room.rglob("*.py")), *(TESTS / "laws").glob("*.py")]
    return any(test.stem.startswith(f"test_{file.stem}") or name in imports(test) for test in near)


def test_four_of_five_modules_have_tests_in_their_room():
    without = [file.relative_to(SOURCE).as_posix() for file in FILES if not mirrored(file)]
    assert len(without) <= len(FILES) / 5, without


def test_no_two_test_files_have_one_name():
    """pytest knows a file by its name alone, unless its folder is a package."""
    plain = [file.name for file in TESTS.rglob("test_*.py") if not (file.parent / "__init__.py").exists()]
    assert {name for name in plain if plain.count(name) > 1} == set()


# ── tests that are left out ────────────────────────────────────────────────────────────────────────────────────────
def installed_by_dev() -> set[str]:
    """The packages that `make test` installs, by their own names, those of the extras within it too."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras, found, left = project["optional-dependencies"], set(), [*project["dependencies"], "babyllama[dev]"]
    while left:
        name, within = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", left.pop()).groups()
        found.add(name.lower())
        left += [each for extra in (within or "").split(",") for each in extras.get(extra, ())]
    return found


def test_a_test_that_needs_more_than_make_test_installs_has_its_command():
    """Else it would run nowhere, and nobody would know."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for whole, names in re.findall(r"(\w*\{([\w,]+)\}\w*\.py)", text):
        text += "".join(whole.replace(f"{{{names}}}", name) + "\n" for name in names.split(","))
    asked, there = re.compile(r"importorskip\(\"(\w+)|@(needs_interpreter)"), installed_by_dev()
    seen = 0
    for file in sorted(TESTS.rglob("test_*.py")):
        names = {"".join(found).replace("_", "-") for found in asked.findall(file.read_text("utf-8"))} - there
        assert not names or f"/{file.name}" in text, f"CONTRIBUTING.md has no command for {file}, which needs {names}"
        seen += bool(names)
    assert seen > 10 and {"torch", "prompt-toolkit", "pytest"} < there and "trl" not in there
