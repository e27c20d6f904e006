"""What the site holds beyond docs/*.md, and its navigation: hooks of mkdocs (`make docs`); nothing is written to docs/.

Added are the pages at the repository's top (README is the home), the reference, and a page for each file of the source
that a page links to. Chinese pages are NAME.zh-CN.md or NAME.zh.md beside NAME.md; each language has its own
navigation, and the language switch leads to the same page's twin.
"""

from __future__ import annotations

import itertools
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Link, Navigation, Section
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
TOP = {"README.md": "index.md", "README.zh-CN.md": "index.zh-CN.md", "CHANGELOG.md": "changelog.md",
       "CONTRIBUTING.md": "contributing.md"}  # file at the top → page  # fmt: skip
PROJECT = ("benchmarks.md", "log.md", "architecture.md", "contributing.md", "changelog.md")
CHINESE = re.compile(r"\.zh(-CN)?\.md$")
NAMES = {  # of what the navigation shows
    "en": {"home": "Home", "course": "Course", "guides": "Guides", "reference": "Reference", "project": "Project"},
    "zh": {"home": "首页", "course": "课程", "guides": "指南", "reference": "参考（英文）", "project": "项目（英文）"},
}
SHOWN = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".toml": "toml", ".js": "javascript", ".cpp": "cpp"}
LINK = re.compile(r"(\]\(|(?:src|href)=\")(?![a-z]+:)([^)\s#\"]+)")
JOINT = re.compile(r"(?<=[\u2014-\u201d\u3000-\u9fff\uff00-\uffef])\n(?=[\u2014-\u201d\u3000-\u9fff\uff00-\uffef])")
DRAWN = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)


# ── pages ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def on_files(files: Files, config: Any) -> Files:
    """Add what is made here."""
    sys.path.insert(0, str(Path(__file__).parent))
    import reference

    made = {page: (ROOT / file).read_text("utf-8") for file, page in TOP.items()}
    made |= {f"reference/{name}": text for name, text in reference.pages().items()}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    seen = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for page, text in seen.items():
        for number, drawing in enumerate(DRAWN.findall(text)):
            files.append(File.generated(config, drawn(page, number), content=svg(drawing)))
        for _, target in LINK.findall(text):
            source = destination(target, page)
            if source.startswith("source/") and files.get_file_from_path(source) is None:
                files.append(File.generated(config, source, content=shown(source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links as they are on the site, pictures drawn, and what else only GitHub reads: words after a fence's language,
    Markdown within <details>."""
    at = page.file.src_uri
    if at.startswith("source/"):
        return markdown
    numbers = itertools.count()
    text = DRAWN.sub(lambda _: f"![diagram]({relative(drawn(at, next(numbers)), at)})", markdown)
    text = LINK.sub(lambda found: found[1] + relative(destination(found[2], at), at), text)
    text = re.sub(r"^(```+\w+) .*$", r"\1", text, flags=re.MULTILINE)
    return re.sub(r"^<details>", '<details markdown="1">', text, flags=re.MULTILINE)


def on_page_content(html: str, **_: Any) -> str:
    """Lines of Chinese are joined without a space, outside code."""
    parts = re.split(r"(<pre.*?</pre>)", html, flags=re.DOTALL)
    parts[::2] = [JOINT.sub("", part) for part in parts[::2]]
    return "".join(parts)


def relative(place: str, page: str) -> str:
    return posixpath.relpath(place, posixpath.dirname(page) or ".")


def destination(target: str, page: str) -> str:
    """Where a relative link on a page leads, from the site's top."""
    written = ROOT / ("" if page in TOP.values() else "docs") / page
    path = Path(os.path.normpath(written.parent / target))
    if not path.exists() or not path.is_relative_to(ROOT):  # made here, or nowhere: mkdocs will tell
        return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    name = path.relative_to(ROOT).as_posix()
    if name.startswith("docs/") and path.suffix not in ("", ".py"):
        return name.removeprefix("docs/")
    return TOP.get(name, f"source/{name}.md")


def shown(source: str) -> str:
    """The page of a file, or of a folder's list of files."""
    path = ROOT / source.removeprefix("source/").removesuffix(".md")
    listed = path.is_dir()
    body = "\n".join(sorted(each.name for each in path.iterdir())) if listed else path.read_text("utf-8")
    head = f"---\nsearch: {{exclude: true}}\n---\n\n# {path.relative_to(ROOT).as_posix()}"
    return f'{head}\n\n````{SHOWN.get(path.suffix, "text")} linenums="1"\n{body.rstrip()}\n````\n'


def drawn(page: str, number: int) -> str:
    return f"{page.removesuffix('.md')}-{number}.svg"


def svg(diagram: str) -> str:
    """Mermaid text → a picture, on white in the dark too."""
    import mermaidx

    return mermaidx.render(diagram).svg().replace("background-color: transparent", "background-color: white", 1)


# ── navigation ─────────────────────────────────────────────────────────────────────────────────────────────────────
def language(page: str) -> str:
    return "zh" if CHINESE.search(page) else "en"


def twin(page: str, pages: dict[str, Page]) -> str:
    """The same page in the other language; the other home where there is none."""
    stem = CHINESE.sub("", page).removesuffix(".md")
    names = [f"{stem}.md"] if language(page) == "zh" else [f"{stem}.zh-CN.md", f"{stem}.zh.md"]
    home = "index.md" if language(page) == "zh" else "index.zh-CN.md"
    return next((name for name in names if name in pages), home)


def navigation(said: str, pages: dict[str, Page]) -> Navigation:
    """Home and four sections in one language; what there is in English only is linked from the Chinese one."""
    import reference

    own = [name for name in pages if language(name) == said]
    found = {
        "course": sorted((name for name in own if name.startswith("course/")), key=chapter),
        "guides": sorted(name for name in own if "/" not in name and name not in (*PROJECT, *TOP.values())),
        "reference": [f"reference/{name}" for name in reference.pages()],
        "project": list(PROJECT),
    }
    names, items = NAMES[said], []
    for section, listed in found.items():
        children = [pages[n] if n in own else Link(title(pages[n]), pages[n].url) for n in listed]
        items += [Section(names[section], children)] if children else []
        for child in children:
            child.parent = items[-1]
    home = pages["index.zh-CN.md" if said == "zh" else "index.md"]
    home.title = names["home"]
    flat = [home, *(pages[name] for listed in found.values() for name in listed if name in own)]
    for before, after in itertools.pairwise(flat):
        before.next_page, after.previous_page = after, before
    return Navigation([home, *items], flat)


def chapter(page: str) -> tuple[bool, str]:
    """The order of the course: its overview first."""
    return "/README." not in page, page


def title(page: Page) -> str:
    """The first heading, which mkdocs itself reads only later."""
    return re.search(r"^# (.+)$", page.file.content_string, re.MULTILINE)[1]


def on_nav(nav: Navigation, config: Any, files: Files) -> Navigation:
    pages = {file.src_uri: file.page for file in files.documentation_pages() if file.page}
    for page in pages.values():
        page.parent = page.next_page = page.previous_page = None
    config.extra["navigations"] = {said: navigation(said, pages) for said in NAMES}
    config.extra["pages"] = pages
    return Navigation(list(pages.values()), list(pages.values()))


def on_page_context(context: dict[str, Any], page: Page, config: Any, **_: Any) -> dict[str, Any]:
    """Each page in its own language: the theme's words, the navigation, the way to its twin."""
    said, pages = language(page.file.src_uri), config.extra["pages"]
    other = pages[twin(page.file.src_uri, pages)]
    config.theme["language"] = said
    links = {said: page.url, language(other.file.src_uri): other.url}
    config.extra["alternate"] = [{"name": name, "lang": code, "link": links[code]}
                                 for code, name in (("en", "English"), ("zh", "中文"))]  # fmt: skip
    config.extra["homepage"] = pages["index.zh-CN.md" if said == "zh" else "index.md"].url
    return context | {"nav": config.extra["navigations"][said]}
