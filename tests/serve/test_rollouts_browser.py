"""A run's rollouts in a real Chromium, beside a training that goes on.

With the extra `e2e`: pytest -m slow tests/serve/test_rollouts_browser.py; $CHROMIUM names another than
/usr/bin/chromium, and $AXE the file axe.min.js of the package axe-core, by which the page is then judged too.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from babyllama.serve.watching import watched

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra e2e")
pytestmark = pytest.mark.slow
PER_GROUP = 4


def lines(step: int, groups: int = 2) -> list[dict]:
    """Answers of a rollout; the second of each group has a call whose result a tool wrote."""
    found = []
    for group in range(groups):
        for number in range(PER_GROUP):
            worth = number - 1.5
            found.append({
                "step": step, "rollout": step, "prompt": f"第{step}步<b>问{group}", "reference": "三\n四",
                "answer": "一二", "tokens": 3, "ended": number != 3, "calls": int(number == 1), "answered": 1,
                "reward": float(number), "parts": {"exact": float(number), "ends": 0.5}, "advantage": worth,
                "pieces": ["一", "<i>二\n", "</s>"],
                "logprobs": [-0.1, None if number == 1 else -3.0, -9.0] if step % 2 else None})  # fmt: skip
    return [{name: value for name, value in line.items() if value is not None} for line in found]


def append(run: Path, step: int, groups: int = 2) -> None:
    with (run / "rollouts.jsonl").open("a", encoding="utf-8") as handle:
        handle.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines(step, groups))
    with (run / "metrics.jsonl").open("a") as handle:
        handle.write(json.dumps({"step": step, "kind": "train", "loss": 1 / step}) + "\n")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "rl"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"verb": "train", "status": "started", "created": "2026-11-29"}))
    (folder / "recipe.yaml").write_text("plan: {steps: 40}\n")
    for step in range(1, 8):
        append(folder, step, 200 if step == 5 else 2)
    return folder


@pytest.mark.parametrize(("locale", "width", "words"), [
    ("en", 390, ("Earlier", "Newest", "More", "Colour by", "written by a tool")),
    ("zh-CN", 1280, ("更早", "最新", "更多", "着色", "工具所写"))])  # fmt: skip
def test_rollouts_by_step_and_token(run, locale, width, words):
    earlier, newest, more, colour, by_tool = words
    with watched(run.parent) as url, playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"))
        page, faults = browser.new_page(locale=locale, viewport={"width": width, "height": 844}, bypass_csp=True), []
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: said.type == "error" and faults.append(said.text))
        page.goto(f"{url}/#/runs/rl")
        shown, answers = page.locator(".rollouts h3"), page.locator(".rollouts li")
        playwright.expect(shown).to_have_text(["第7步<b>问0", "第7步<b>问1"])
        assert answers.count() == 2 * PER_GROUP and answers.first.locator(".drawn").inner_text() == "一<i>二↵\n</s>"
        share = """n => n.style.getPropertyValue("--share")"""
        strong, weak = (answers.nth(n).locator("span").first.evaluate(share) for n in (0, 1))
        assert float(strong[:-1]) > float(weak[:-1]) > 0
        page.get_by_label(colour).select_option("logprobs")
        by_place = [answers.first.locator("span").nth(n).evaluate(share) for n in range(3)]
        assert float(by_place[0][:-1]) < float(by_place[1][:-1]) < float(by_place[2][:-1])
        assert answers.nth(1).locator("span").nth(1).get_attribute("title") == by_tool

        append(run, 8)  # the training goes on
        playwright.expect(shown.first).to_have_text("第8步<b>问0")
        page.get_by_role("button", name=earlier, exact=True).click()
        playwright.expect(shown.first).to_have_text("第7步<b>问0")
        append(run, 9)  # who looks at an earlier one is left alone
        page.wait_for_timeout(2500)
        assert shown.first.inner_text() == "第7步<b>问0"
        page.locator(".rollouts input[type=range]").fill("5")
        playwright.expect(shown.first).to_have_text("第5步<b>问0")
        seen = answers.count()
        assert PER_GROUP < seen <= 200 * PER_GROUP
        while page.get_by_role("button", name=more, exact=True).is_visible():
            page.get_by_role("button", name=more, exact=True).click()
            playwright.expect(answers).not_to_have_count(seen)
            seen = answers.count()
        assert seen == 200 * PER_GROUP and shown.count() == 200
        page.get_by_role("button", name=newest, exact=True).click()
        playwright.expect(shown.first).to_have_text("第9步<b>问0")
        wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
        assert not wide and not faults
        if "AXE" in os.environ:
            page.evaluate(Path(os.environ["AXE"]).read_text("utf-8"))
            found = page.evaluate("axe.run()")["violations"]
            assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
        if "SHOT" in os.environ:
            page.screenshot(path=f"{os.environ['SHOT']}-{width}.png")
        browser.close()
