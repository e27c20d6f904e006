"""The pages as a reader clicks through them: links, images and anchors exist; the reference knows every key; and, slow,
with the extra `docs` installed, the site builds strictly and fetches nothing from another host."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from babyllama.index import keys
from babyllama.verbs import VERBS

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"^(`{3,})[^\n]*\n.*?^\1|`+[^`\n]+`+", re.DOTALL | re.MULTILINE)
TARGET = re.compile(r"\]\(<?([^)\s>]+)|^\[[^\]]+\]:\s*(\S+)|(?:src|href)=\"([^\"]+)\"", re.MULTILINE)


# ── what the pages say ─────────────────────────────────────────────────────────────────────────────────────────────
def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them, and its own."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = set(re.findall(r"(?:id|name)=\"([^\"]+)\"", text))
    for heading in re.findall(r"^#+ (.+?)\s*#*$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", words.lower()).strip().replace(" ", "-")
        found.add(
            name if name not in found else next(f"{name}-{n}" for n in range(1, 99) if f"{name}-{n}" not in found)
        )
    return found


def faults(page: Path) -> list[str]:
    """The targets of a page's relative links and images that are not there."""
    found = []
    for groups in TARGET.findall(CODE.sub("", page.read_text("utf-8"))):
        target = unquote("".join(groups))
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_images_and_anchors_lead_somewhere(page):
    assert faults(page) == []


def test_what_leads_nowhere_is_found(tmp_path):
    (tmp_path / "b.md").write_text("# 一、二 (`x`)\n\n## Again\n\n## Again\n", "utf-8")
    good = (
        "# A title\n[1](b.md#一二-x) [2](b.md#again-1) [3](#a-title) [4](https://x.org) `[5](no)`\n```\n[6](no)\n```\n"
    )
    bad = '[1](c.md) ![2](images/a.png) [3](b.md#二) [4](#b-title) <img src="d.png">\n\n[5]: e.md\n'
    (tmp_path / "a.md").write_text(good + bad, "utf-8")
    assert faults(tmp_path / "a.md") == ["c.md", "images/a.png", "b.md#二", "#b-title", "d.png", "e.md"]


def test_the_reference_has_a_page_for_each_verb_and_on_it_every_key():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages = module.pages()
    for verb in VERBS:
        page = pages[f"{verb}.md"]
        assert f"babyllama {verb} [" in page and f"({verb}.md)" in pages["index.md"]
        for key in keys(verb):
            told_by_headings = key.name.endswith(".kind") and f"### `{key.name}=" in page
            assert f"| <code>{key.name}</code> |" in page or told_by_headings, (verb, key.name)
            assert not key.about or module.text(key.about) in page, (verb, key.name)
    assert module.text("a <b> | *c* `d|e`") == "a &lt;b&gt; &#124; &#42;c&#42; <code>d&#124;e</code>"


# ── the site, built ────────────────────────────────────────────────────────────────────────────────────────────────
def build(tree: Path, out: Path) -> subprocess.CompletedProcess:
    """`make docs`, with every way to the network closed."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    return subprocess.run(command, cwd=tree, env=os.environ | nowhere, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


class Fetched(HTMLParser):
    """What a browser fetches for a page, its links left out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        own = {"src", "srcset", "poster", "data"} | ({"href"} if tag in ("link", "image", "use") else set())
        self.found += [
            given[name] for name in own & set(given) if given.get("rel") not in ("canonical", "next", "prev")
        ]


@pytest.mark.slow
def test_no_page_fetches_anything_from_another_host(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text("utf-8")
        parser = Fetched()
        parser.feed(text)
        asked = parser.found + re.findall(r"(?:url\(|@import )[\"']?([^\"')]+)", text)
        assert parser.found and not [url for url in asked if re.match(r"(https?:)?//", url)], page
        assert 'class="mermaid"' not in text, page  # for these the theme fetches a script
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(https?:)?//", style.read_text("utf-8")), style


@pytest.mark.slow
def test_each_language_has_its_navigation_and_leads_to_the_other(site):
    english, chinese = ((site / f"serving{suffix}.html").read_text("utf-8") for suffix in ("", ".zh-CN"))
    assert '<html lang="en"' in english and '<html lang="zh"' in chinese
    assert 'href="serving.zh-CN.html" hreflang="zh"' in english and 'href="serving.html" hreflang="en"' in chinese
    assert (
        ">\n    指南" not in english and 'href="web.zh-CN.html"' in chinese and 'href="reference/train.html"' in chinese
    )
    for chapter in (ROOT / "docs" / "course").glob("*.md"):
        home = "index.zh-CN.html" if ".zh" in chapter.name else "index.html"
        name = "index" if chapter.name == "README.md" else chapter.stem
        assert f'href="course/{name}.html"' in (site / home).read_text("utf-8")


@pytest.mark.slow
def test_links_images_and_anchors_that_lead_nowhere_fail_the_build(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for file in [*ROOT.glob("*.md"), ROOT / "mkdocs.yml"]:
        shutil.copy(file, tmp_path)
    for name in ("src", "tests", "bench"):
        (tmp_path / name).symlink_to(ROOT / name)
    with (tmp_path / "docs" / "web.md").open("a", encoding="utf-8") as page:
        page.write("\n[a](no-page.md) ![b](images/no-image.png) [c](serving.md#no-anchor)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert re.findall(r"WARNING.*?'web.md'.*?(no-\w+)", done.stderr) == ["no-page", "no-image", "no-anchor"]
    assert done.stderr.count("WARNING -") == 3


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_open_as_files_and_the_search_finds_both_languages(site, width):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra e2e")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"))
        page, faults = browser.new_context(viewport={"width": width, "height": 900}).new_page(), []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(("file:", "data:", "blob:")) or faults.append(asked.url))
        for name in ("architecture", "reference/train", "fine-tuning.zh-CN"):
            page.goto(f"file://{site}/{name}.html")
            assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), name
        if width < 1000:
            page.locator("label[for=__search]:visible").first.click()
        box = page.locator("input.md-search__input")
        for words, expected in (("微调", "fine-tuning.zh-CN.html"), ("longlora", "reference/recipes.html")):
            box.fill(words)
            box.press("Shift")  # the theme listens to keys
            page.locator(f".md-search-result__link[href*='{expected}']").first.wait_for(timeout=15_000)
        browser.close()
    assert not faults
