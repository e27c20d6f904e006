"""The pictures of the READMEs: the chat page and the report, as a browser shows them, in English and Chinese.

    python docs/screenshots.py RUNS      RUNS: a finished quickstart, such as runs/quickstart

With the extras `serve`, `report` (which brings Pillow) and `e2e`, and Chromium; $CHROMIUM names another than
/usr/bin/chromium.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).with_name("images")
SIZE = {"width": 1000, "height": 640}
LANGUAGES = {"en": "en", "zh": "zh-CN"}
QUESTIONS = (
    "你是谁？",
    "请填上量词：三（）小狗。",
    "小军有35个贝壳，又捡到27个，现在有多少个？",
)  # each in a chat of its own


@contextmanager
def served(runs: Path) -> Iterator[str]:
    """`babyllama serve` of the quickstart's last model; its address."""
    command = [sys.executable, "-m", "babyllama", "serve", str(runs / "medical"), f"runs={runs.parent}", "port=0",
               "device=cpu", "sampling.temperature=0", "log=false"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        yield next(found[1] for line in process.stderr if (found := re.search(r"at (http://\S+)/v1 ", line)))
    finally:
        process.terminate()
        process.wait()


def opened(browser: Browser, url: str, locale: str) -> Page:
    page = browser.new_context(viewport=SIZE, locale=locale).new_page()
    page.goto(url)
    return page


def keep(page: Page, name: str) -> None:
    """What is in the window, as docs/images/NAME.webp."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.save(IMAGES / f"{name}.webp", quality=85, method=6)


def chat(page: Page) -> None:
    """Ask the questions."""
    for question in QUESTIONS:
        page.goto(page.url.split("#")[0] + "#/chat")
        page.locator(".hello").wait_for()
        page.locator(".composer textarea").fill(question)
        page.keyboard.press("Enter")
        page.locator(".message.assistant .figures:not(:empty)").wait_for()
        page.locator(".composer button:not(.stop)").wait_for()


def reported(runs: Path, language: str, folder: Path) -> str:
    """The address of the report in a language."""
    page = folder / f"{language}.html"
    named = ",".join(str(run.parent) for run in runs.glob("*/run.json"))
    command = [sys.executable, "-m", "babyllama", "report", f"runs=[{named}]", f"out={page}", f"language={language}"]
    subprocess.run(command, check=True)
    return page.as_uri()


def main() -> None:
    """Make all four."""
    runs = Path(sys.argv[1]).resolve()
    with sync_playwright() as engine, served(runs) as url, tempfile.TemporaryDirectory() as folder:
        browser = engine.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"))
        for language, locale in LANGUAGES.items():
            page = opened(browser, url, locale)
            chat(page)
            keep(page, f"chat-{language}")
            page = opened(browser, reported(runs, language, Path(folder)), locale)
            sft = page.get_by_role("heading", name="general", exact=True)
            sft.evaluate("found => scrollTo(0, found.offsetTop - 30)")
            keep(page, f"report-{language}")
        browser.close()


if __name__ == "__main__":
    main()
