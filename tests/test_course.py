"""The course: every block of every chapter runs on a quickstart, both languages have the same code, links are good.

What a page shows as ``text same`` is compared exactly; other output is of somebody's machine, and of a python block
only its number of lines is compared. docs/course/chapters.py finds and runs the blocks.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

COURSE = Path(__file__).parents[1] / "docs" / "course"
sys.path.insert(0, str(COURSE))

from chapters import CHAPTERS, blocks, pages, printed  # noqa: E402

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FIGURE_BYTES = 100_000
REAL = os.environ.get("BABYLLAMA_QUICKSTART", "")


def run_blocks(chapter: str, runs: Path, place: Path) -> None:
    """Every block of a chapter in a folder whose runs/quickstart is a copy of `runs`."""
    shutil.copytree(runs, place / "runs" / "quickstart")
    for block in blocks(pages(chapter)[0]):
        out = printed(block)
        if block.kind == "text same":
            assert out == block.shown, block.code
        elif block.kind and block.language == "python" and "…" not in block.shown:
            assert len(out.splitlines()) == len(block.shown.splitlines()), (block.code, out)
        elif block.kind:
            assert out.strip(), block.code


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_blocks_run_on_a_small_quickstart(chapter, small_quickstart, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(chapter, small_quickstart, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="give a finished quickstart: BABYLLAMA_QUICKSTART=runs/quickstart")
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_blocks_run_on_a_real_quickstart(chapter, tmp_path, monkeypatch):
    runs = Path(REAL).resolve()
    monkeypatch.chdir(tmp_path)
    run_blocks(chapter, runs, tmp_path)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_both_languages_have_the_same_code_and_output(chapter):
    texts = [page.read_text("utf-8") for page in pages(chapter)]
    chinese, english = ([(kind, re.sub(r"\s*# .*", "", body)) for kind, body in FENCE.findall(text)] for text in texts)
    assert chinese == english
    headings = [re.findall(r"^#+ ", FENCE.sub("", text), re.MULTILINE) for text in texts]
    assert headings[0] == headings[1]


def test_no_chapter_is_in_one_language_only_and_the_contents_name_them_all():
    english = sorted(page.stem for page in COURSE.glob("[0-9][0-9]-*.md") if not page.name.endswith(".zh.md"))
    assert english == CHAPTERS
    for contents, ending in (("README.md", ".md"), ("README.zh.md", ".zh.md")):
        named = re.findall(rf"\]\((\d\d-[\w-]+){re.escape(ending)}\)", (COURSE / contents).read_text("utf-8"))
        assert named == CHAPTERS


@pytest.mark.parametrize("page", sorted(COURSE.glob("*.md")), ids=lambda page: page.name)
def test_files_are_as_long_as_the_lessons_say(page):
    """Of those whose length is given, within a seventh: a reader plans by it."""
    for target, said in re.findall(
        r"\]\(([^)]+\.py)\)[:：,，] ?(?:some |约 )?(\d+) (?:lines|行)", page.read_text("utf-8")
    ):
        assert len((page.parent / target).read_text("utf-8").splitlines()) == pytest.approx(int(said), rel=1 / 7), (
            target
        )


@pytest.mark.parametrize("page", sorted(COURSE.glob("*.md")), ids=lambda page: page.name)
def test_links_and_figures_are_there(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", FENCE.sub("", page.read_text("utf-8"))):
        assert (page.parent / target).exists(), (page.name, target)
        if "/images/" in target:
            assert (page.parent / target).stat().st_size <= FIGURE_BYTES, target
