"""Every command in the docs: babyllama's are read as the command line reads them, up to the recipe that they make;
of the scripts in bench/ the options exist. Both languages give the same commands, and say the rest in the same shape.
(test_readme.py runs the README, test_site.py follows links.)"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from babyllama.recipe import load_recipe
from babyllama.verbs import VERBS, call, joined, recipe_type
from babyllama.words import understand

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.remove(ROOT / "docs" / "log.md")  # what was run on a day, with the command line of that day
LESSONS = sorted((ROOT / "docs" / "course").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHOWN = "…"  # stands for what the reader fills in


def blocks(page: Path) -> list[str]:
    """Fenced shell blocks, continued lines joined; the picture of how runs follow each other is none."""
    found = [body for language, body in FENCE.findall(page.read_text("utf-8")) if language in ("", "sh", "bash")]
    return [body.replace("\\\n", " ") for body in found if "─▶" not in body]


def commands(page: Path) -> list[list[str]]:
    """Words of every command line in fenced blocks and in inline code."""
    spans = re.findall(r"`([^`]+)`", FENCE.sub("", page.read_text("utf-8")))
    lines = [line for block in blocks(page) for line in block.splitlines()] + [" ".join(s.split()) for s in spans]
    kinds = re.compile(r"(babyllama|python bench/|torchrun|accelerate launch|deepspeed --|srun torchrun)")
    found = [shlex.split(line, comments=True) for line in lines if kinds.match(line) and SHOWN not in line]
    return [words for words in found if len(words) > 1]


def of_babyllama(words: list[str]) -> list[str] | None:
    """What comes after the program's name, behind a launcher too."""
    if words[0] == "babyllama":
        return words[1:]
    return words[words.index("babyllama.cli") + 1 :] if "babyllama.cli" in words else None


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in ("my.yaml", "RUN/recipe.yaml"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{out: runs/mine, data: {path: runs/corpus}, plan: {steps: 10}}\n")
    (tmp_path / "RUN/run.json").write_text('{"verb": "train"}')
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_makes_its_recipe(page, place):
    for words in commands(page):
        after = of_babyllama(words)
        if after is None or after[0] not in VERBS or "--help" in after or len(after) == 1:  # the last only names a verb
            continue
        verb, *rest = joined(after)
        given = [word for word in rest if word not in ("--keys", "--print-config")]
        said = understand(recipe_type(verb), given, verb, VERBS[verb][1])
        assert load_recipe(recipe_type(verb), said.source, said.settings)


def test_every_verb_that_is_named_exists():
    for page in PAGES:
        for words in commands(page):
            after = joined(of_babyllama(words) or [])
            if after and re.fullmatch(r"[a-z][a-z-]+", after[0]):
                assert after[0] in {*VERBS, "recipes"}, (page.name, words)


def test_the_scripts_have_the_options_that_the_docs_give():
    seen = 0
    for page in PAGES:
        for words in commands(page):
            if words[0] == "python":
                source = (ROOT / words[1]).read_text("utf-8")
                for option in [word for word in words[2:] if word.startswith("--")]:
                    assert f'"{option}"' in source, (page.name, words)
                seen += 1
    assert seen > 10


def test_what_a_shell_would_read_is_quoted():
    """zsh, the shell of macOS, refuses `tasks=[ceval]` without quotes: no file has such a name."""
    for page in [*PAGES, *LESSONS]:
        for line in [line for block in blocks(page) for line in block.splitlines() if line.startswith("babyllama ")]:
            bare = re.sub(r"'[^']*'|\"[^\"]*\"|\s#.*", "", line)
            assert not re.search(r"[\[\]{}*?();&]", bare), (page.name, line)


def test_the_forecasts_of_the_questions_are_plans(capsys):
    """Within a quarter, so that small changes of what is counted need no new table."""
    rows = re.findall(
        r"^\| ((?:RTX|A100|H100)[^|]*) \|(.*)\|$", (ROOT / "docs/questions.md").read_text("utf-8"), re.MULTILINE
    )
    for card, cells in rows:
        figures = [float(cell) for cell in cells.split("|")]
        for preset, hours, batch in (("seed", *figures[:2]), ("base-218m", *figures[2:])):
            assert call(["plan", f"gpu={card}", f"model.preset={preset}", "tokens=1000000000", "format=json"]) == 0
            found = json.loads(capsys.readouterr().out)
            assert found["seconds"] / 3600 == pytest.approx(hours, rel=0.25), (card, preset)
            assert found["micro_batch_size"] == pytest.approx(batch, rel=0.25), (card, preset)
    assert len(rows) == 5


# ── two languages ──────────────────────────────────────────────────────────────────────────────────────────────────
TWINS = [page for page in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))] if ".zh" in page.name]


def english_of(chinese: Path) -> Path:
    return chinese.with_name(re.sub(r"\.zh(-CN)?\.md$", ".md", chinese.name))


def shape(page: Path) -> list[tuple[str, ...]]:
    """Of each section what no language changes: its heading's level, the cells of its tables' rows, its list items,
    where its links lead, and its figures with a decimal point. Those in millions, thousands or 万 are not compared."""
    found = []
    for section in re.split(r"^(?=#+ )", FENCE.sub("", page.read_text("utf-8")), flags=re.MULTILINE):
        rows = [str(row.count("|")) for row in re.findall(r"^\|.*", section, re.MULTILINE)]
        items = len(re.findall(r"^(?:- |\d+\. )", section, re.MULTILINE))
        links = [
            re.sub(r"\.zh(-CN)?(?=\.md)|-(en|zh)(?=\.webp)|#.*", "", to) for to in re.findall(r"\]\(([^)\s]+)", section)
        ]
        links = [link for link in links if link not in (page.name, re.sub(r"\.zh(-CN)?", "", page.name))]
        figures = re.findall(r"\d+\.\d+(?!\d| ?万| ?M| million| k )", section.replace(",", ""))
        found.append((re.match("#*", section)[0], " ".join(rows), f"{items} items", *sorted(links), *sorted(figures)))
    return found


@pytest.mark.parametrize("chinese", TWINS, ids=lambda page: page.name)
def test_both_languages_have_the_same_shape(chinese):
    for ours, theirs in zip(shape(english_of(chinese)), shape(chinese), strict=True):
        assert ours == theirs


@pytest.mark.parametrize("chinese", TWINS, ids=lambda page: page.name)
def test_each_language_leads_to_the_other(chinese):
    if "course" in chinese.parts and "README" not in chinese.name:
        return  # lessons are reached by their overview
    english = english_of(chinese)
    for page, label, other in ((english, "中文", chinese), (chinese, "English", english)):
        assert f"[{label}]({other.name})" in "".join(page.read_text("utf-8").splitlines()[:6]), page.name


def test_every_fence_is_closed():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        assert len(re.findall(r"^```", page.read_text("utf-8"), re.MULTILINE)) % 2 == 0, page.name


def test_a_table_is_one_piece():
    """A row after an empty line is no row: it is read as text."""
    for page in ROOT.glob("docs/**/*.md"):
        for block in FENCE.sub("", page.read_text("utf-8")).split("\n\n"):
            rows = re.findall(r"^\|.*", block, re.MULTILINE)
            assert not rows or re.fullmatch(r"[|: -]+", rows[1]), (page.name, rows[0])


@pytest.mark.parametrize("chinese", sorted((ROOT / "docs").glob("*.zh-CN.md")), ids=lambda page: page.name)
def test_both_languages_give_the_same_commands(chinese):
    english = english_of(chinese)
    in_blocks = [[shlex.split(line, comments=True) for body in blocks(page) for line in body.splitlines()]
                 for page in (english, chinese)]  # fmt: skip
    assert in_blocks[0] == in_blocks[1]
