"""docs/serving.md and its Chinese twin: the same code, commands that are understood, an example that runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from babyllama.recipe import load_recipe
from babyllama.verbs import VERBS, recipe_type
from babyllama.words import understand

from .conftest import KEY

DOCS = [Path(__file__).parents[2] / "docs" / name for name in ("serving.md", "serving.zh-CN.md")]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
COMMANDS = [line for _, block in BLOCK.findall(DOCS[0].read_text("utf-8")) for line in block.splitlines()
            if line.startswith("babyllama ")]  # fmt: skip


def test_both_have_the_same_code_and_shape():
    english, chinese = (path.read_text("utf-8") for path in DOCS)
    assert BLOCK.findall(english) == BLOCK.findall(chinese)
    for shape in (r"^## ", r"^\| `\w+=\S+` ", r"^\| (?:GET|POST) "):
        assert len(re.findall(shape, english, re.MULTILINE)) == len(re.findall(shape, chinese, re.MULTILINE)) > 0


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command):
    _, verb, *words = shlex.split(command)
    kind = recipe_type(verb)
    said = understand(kind, words, verb, VERBS[verb][1])
    load_recipe(kind, said.source, said.settings)


def test_limits_named_are_the_defaults():
    recipe = load_recipe(recipe_type("serve"), None, ["models=[runs/sft]"])
    named = re.findall(r"^\| `(\w+)=(\S+)` ", DOCS[0].read_text("utf-8"), re.MULTILINE)
    for key, value in named:
        default = getattr(recipe, key)
        assert value == ("null" if default is None else f"{default:g}" if isinstance(default, float) else str(default))


def test_the_example_in_python_runs(server, capsys):
    (example,) = [block for language, block in BLOCK.findall(DOCS[0].read_text("utf-8")) if language == "python"]
    example = (
        example.replace("http://127.0.0.1:8000", server.url).replace('"none"', f'"{KEY}"').replace("medical", "taught")
    )
    exec(compile(example.replace("感冒怎么办？", "你好！"), "serving.md", "exec"), {})
    assert capsys.readouterr().out.strip()
