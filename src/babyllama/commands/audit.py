"""audit: one HTML page about what prepare did to documents: the flow from in to out, histograms, samples.

It reads the ledgers in the manifests and nothing else, so the same runs give the same page, byte for byte. How the page
looks is in audit.html, what a ledger holds in data/clean/ledger.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup, escape
from pydantic import Field

from babyllama.amounts import short
from babyllama.atomic import read_json, write_atomic
from babyllama.commands.report_words import Language
from babyllama.data.clean.ledger import added
from babyllama.errors import InputError
from babyllama.recipe import Recipe

TEMPLATE = Path(__file__).with_name("audit.html")
Json = dict[str, Any]
WIDTH, BAND, TOP = 960, 120, 26  # of the flow, in the SVG's own units
TITLES = {  # filter → its name in English and Chinese
    "normalise": ("Unicode", "Unicode 规范化"),
    "simplify": ("traditional → simplified", "繁体转简体"),
    "mojibake": ("wrong encodings", "乱码修复"),
    "html": ("HTML", "HTML 标签"),
    "boilerplate": ("boilerplate", "页面套话"),
    "repeated_lines": ("repeated lines", "文内重复行"),
    "length": ("length", "长度"),
    "hanzi": ("share of hanzi", "汉字比例"),
    "symbols": ("share of symbols", "符号比例"),
    "line_breaks": ("line breaks", "换行比例"),
    "punctuated_lines": ("lines with punctuation", "行尾标点比例"),
    "duplicate_lines": ("duplicate lines", "重复行比例"),
    "duplicate_grams": ("repetition", "重复片段比例"),
    "personal": ("personal data", "个人信息"),
    "leaks": ("evaluation items", "评测题泄漏"),
    "quality": ("quality score", "质量分"),
    "perplexity": ("bits per byte by a model", "模型的每字节比特数"),
    "bits": ("bits per byte", "每字节比特"),
    "exact": ("same documents", "完全重复"),
    "near": ("near-duplicates", "近似重复"),
    "lines": ("lines of many documents", "跨文档重复行"),
}


class AuditRecipe(Recipe):
    """Which prepared folders to tell about, and where to write the page."""

    runs: tuple[Path, ...] = Field(
        min_length=1, description="runs of prepare, with clean or dedup", examples=["runs=[runs/corpus]"]
    )
    out: Path = Field(default=Path("audit.html"), description="the page to write")
    language: Language = Field(default="en", description="of the page: English or Chinese")


def main(recipe: AuditRecipe) -> None:
    """Read the manifests, write the page."""
    corpora: dict[str, list[Json]] = {}
    for run in recipe.runs:
        for label, ledger in ledgers(run).items():
            corpora[label if len(recipe.runs) == 1 else f"{run.name}/{label}"] = ledger
    write_atomic(recipe.out, page(corpora, recipe.language))
    print(f"{recipe.out} is ready; open it in a browser")


def ledgers(run: Path) -> dict[str, list[Json]]:
    """Corpus → its ledger. Raises InputError: no prepared folder, or one that nothing was cleaned in."""
    manifest = read_json(run / "manifest.json", "give a folder that babyllama prepare has made")
    corpora = manifest.get("corpora")
    found = {label: one.get("cleaning") for label, one in corpora.items()} if isinstance(corpora, dict) else {}
    if not any(found.values()):
        raise InputError(f"{run}: nothing was cleaned in it; prepare it with clean=zh-web or dedup=[exact, near]")
    return {label: ledger for label, ledger in found.items() if ledger}


def page(corpora: dict[str, list[Json]], language: Language) -> str:
    """The page. Everything that came out of a corpus is escaped."""

    def say(english: str, chinese: str) -> str:
        return chinese if language == "zh" else english

    def title(name: str) -> str:
        return say(*TITLES.get(name, (name, name)))

    alike = {tuple(entry["filter"] for entry in ledger) for ledger in corpora.values()}
    parts = dict(corpora)
    if len(corpora) > 1 and len(alike) == 1:
        parts = {say("all corpora", "全部语料"): added(corpora.values()), **corpora}
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"short": short, "share": share}
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        language=language, _=say, title=title, parts=parts, flow=lambda ledger: flow(ledger, say, title), bars=bars
    )


def share(part: float, whole: float) -> str:
    """In percent, with the digits that small ones need."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


# ── drawings ───────────────────────────────────────────────────────────────────────────────────────────────────────
def flow(ledger: list[Json], say: Any, title: Any) -> Markup:
    """The documents as a band that grows narrower at every filter that drops some, which flow down out of it."""
    dropping = [entry for entry in ledger if entry["dropped"]]
    total = max(ledger[0]["documents"], 1)
    left = ledger[-1]["documents"] - ledger[-1]["dropped"]
    step = WIDTH / (len(dropping) + 1)
    drawn = []
    height = BAND * ledger[0]["documents"] / total
    for number, entry in enumerate(dropping):
        x, gone = number * step, max(BAND * entry["dropped"] / total, 0.6)
        drawn.append(_band(x, step + 0.5, height))
        low, high, begin = TOP + height - gone, TOP + height, x + step * 0.3
        end, floor = x + step * 0.72, TOP + BAND + 34 + 26 * (number % 2)
        inner = end - max(gone, 1.2)
        drawn.append(
            f'<path class="gone" d="M{begin:.1f} {low:.2f}C{end:.1f} {low:.2f} {end:.1f} {low:.2f} {end:.1f} {floor}'
            f'H{inner:.1f}C{inner:.1f} {high:.2f} {begin:.1f} {high:.2f} {begin:.1f} {high:.2f}Z">'
            f"<title>{escape(title(entry['filter']))}: {entry['dropped']:,}</title></path>"
        )
        words = f"{title(entry['filter'])} −{short(entry['dropped'])}"
        drawn.append(f'<text x="{end:.1f}" y="{floor + 14}" text-anchor="middle">{escape(words)}</text>')
        height -= BAND * entry["dropped"] / total
    drawn.append(_band(len(dropping) * step, step, height))
    came, stayed = say("documents in: ", "进入文档："), say("out: ", "留下：")
    drawn.append(f'<text x="0" y="16">{came}{short(ledger[0]["documents"])}</text>')
    drawn.append(f'<text x="{WIDTH}" y="16" text-anchor="end">{stayed}{short(left)} ({share(left, total)})</text>')
    name = escape(say("documents from in to out", "文档从进入到留下"))
    return Markup(f'<svg role="img" aria-label="{name}" viewBox="0 0 {WIDTH} {TOP + BAND + 84}">{"".join(drawn)}</svg>')


def _band(x: float, width: float, height: float) -> str:
    return f'<rect x="{x:.1f}" y="{TOP}" width="{width:.1f}" height="{max(height, 0.6):.2f}" class="kept"/>'


def bars(entry: Json) -> Markup:
    """The histogram of what a filter measured."""
    most = max(entry["bins"]) or 1
    width = 300 / len(entry["bins"])
    drawn = [f'<rect class="kept" x="{i * width:.1f}" y="{60 - 56 * count / most:.1f}" width="{width - 1:.1f}" '
             f'height="{56 * count / most:.1f}"><title>{count:,}</title></rect>'
             for i, count in enumerate(entry["bins"])]  # fmt: skip
    end = short(entry["top"]) if entry["top"] > 1000 else f"{entry['top']:g}"
    begin = "1" if entry["top"] > 1000 else "0"  # by the logarithm
    axis = f'<text x="0" y="74">{begin}</text><text x="300" y="74" text-anchor="end">{end}</text>'
    name = escape(entry["filter"])
    return Markup(f'<svg role="img" aria-label="{name}" viewBox="0 0 300 78">{"".join(drawn)}{axis}</svg>')
