"""The blocks of the course's chapters: found, run, and their output written into the pages of both languages.

    python docs/course/chapters.py [01-tokens …]      in a folder that holds a finished runs/quickstart

A fenced ``python`` block runs by itself, an ``sh`` block holds commands of babyllama. The ``text`` block after it is
what was printed: ``text same`` is so on every machine, ``text`` on one. tests/test_course.py holds the pages to that.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

COURSE = Path(__file__).parent
CHAPTERS = sorted(page.name.removesuffix(".zh.md") for page in COURSE.glob("[0-9][0-9]-*.zh.md"))
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```\n(?:\n```(text|text same)\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """One piece of code and the output that the page shows after it; `kind` is "" where none is shown."""

    language: str
    code: str
    kind: str
    shown: str


def pages(chapter: str) -> list[Path]:
    """Chinese, English."""
    return [COURSE / f"{chapter}.zh.md", COURSE / f"{chapter}.md"]


def blocks(page: Path) -> list[Block]:
    return [Block(*(part or "" for part in found)) for found in BLOCK.findall(page.read_text("utf-8"))]


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each line of an ``sh`` block."""
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] != "babyllama":
            raise ValueError(f"only commands of babyllama: {line}")
        if words:
            yield words[1:]


def printed(block: Block) -> str:
    """What a block prints in the current folder."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        if block.language == "python":
            exec(compile(block.code, "chapter", "exec"), {"__name__": "__main__"})
        else:
            from babyllama.verbs import app

            for words in commands(block):
                app(words, standalone_mode=False)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def write_outputs(chapter: str) -> None:
    """Run a chapter once and write what it printed into both languages; an output that is cut by … stays."""
    outputs = [printed(block) for block in blocks(pages(chapter)[0])]
    for page in pages(chapter):
        new = iter(outputs)
        page.write_text(BLOCK.sub(lambda found: _with(found, next(new)), page.read_text("utf-8")), "utf-8")  # noqa: B023


def _with(found: re.Match[str], output: str) -> str:
    language, code, kind, shown = found.groups()
    if not kind:
        return found[0]
    return f"```{language}\n{code}```\n\n```{kind}\n{shown if '…' in shown else output}```\n"


if __name__ == "__main__":
    for name in sys.argv[1:] or CHAPTERS:
        write_outputs(name)
