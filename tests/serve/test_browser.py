"""The web app in a real Chromium against a real server that asks for a key.

With the extra `e2e`: pytest -m slow tests/serve/test_browser.py; $CHROMIUM names another than /usr/bin/chromium.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter

import pytest
from small_data import prepared
from small_run import CHATS, small_tokenizer, taught_model

from babyllama import inside
from babyllama.data.shards.shards import Prepared
from babyllama.data.shards.statistics import statistics
from babyllama.data.sources.documents import Rated
from babyllama.data.sources.preferences import read_rated
from babyllama.serve.pages import WEB
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.tokenizer import Tokenizer

from .conftest import KEY, started

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra e2e")
pytestmark = pytest.mark.slow
QUESTION, ANSWER = CHATS[0]
SIZES = {"phone": {"width": 390, "height": 844}, "desk": {"width": 1280, "height": 800}}


@pytest.fixture(scope="module")
def served(folders, runs, tmp_path_factory):
    mine = tmp_path_factory.mktemp("browser") / "runs"
    shutil.copytree(runs, mine)
    with started(
        folders, str(folders / "taught"), str(folders / "steady"), f"runs={mine}", "sampling.temperature=0"
    ) as found:
        found.runs = mine
        yield found


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"))
        yield browser
        browser.close()


@pytest.fixture(params=SIZES)
def page(request, served, chromium):
    """The page at /, the key given; nothing may be said on the console, nothing asked of another server."""
    context = chromium.new_context(viewport=SIZES[request.param], locale="en", accept_downloads=True)
    page, faults = context.new_page(), []
    page.set_default_timeout(15_000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: said.type == "error" and "401" not in said.text and faults.append(said.text))
    page.on("request", lambda asked: asked.url.startswith((served.url, "blob:")) or faults.append(asked.url))
    page.goto(served.url)
    for key in ("sk-wrong", KEY):
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Use it").click()
        if key != KEY:
            page.get_by_text("The server does not know this key.").wait_for()
    page.get_by_label("Message", exact=True).wait_for()
    yield page
    wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    context.close()
    assert not faults and not wide


def ask(page, text, model="taught"):
    page.get_by_label("Model", exact=True).select_option(model)
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answers(page):
    return page.locator(".message.assistant")


def ended(page):
    page.get_by_role("button", name="Send", exact=True).wait_for()


STORED = """import("/web/store.js").then(store => store.chats.all())"""


def test_a_chat_streams_and_a_reload_keeps_it(page):
    ask(page, QUESTION)
    ended(page)
    assert answers(page).locator(".text").inner_text() == ANSWER
    assert re.search(
        r"\d+ tokens · [\d.,]+ tokens/s · first token [\d.]+ s", answers(page).locator(".figures").inner_text()
    )
    page.reload()
    assert answers(page).locator(".text").inner_text() == ANSWER
    seen = page.evaluate(STORED)
    assert [chat["title"] for chat in seen] == [QUESTION]


# In the page itself: all 4,000 tokens take a third of a second.
STOP_SOON = """() => new MutationObserver((_, watch) => {
    if (!(document.querySelector(".message.assistant .text")?.textContent.length > 20)) return;
    watch.disconnect();
    document.querySelector(".composer button").click();
}).observe(document.body, { subtree: true, childList: true, characterData: true })"""


def test_stop_stops(page):
    page.evaluate(STOP_SOON)
    ask(page, "x", "steady")
    playwright.expect(answers(page).locator(".text")).to_have_text(re.compile(r".{20}", re.DOTALL))
    ended(page)
    assert "stopped" in answers(page).locator(".figures").inner_text()
    before = answers(page).locator(".text").inner_text()
    page.wait_for_timeout(300)
    assert answers(page).locator(".text").inner_text() == before


def test_a_text_is_continued(page, served):
    """By the setting: all that is written goes to the model as one text, without template, and again with its own."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Continue the text instead of answering").check()
    page.keyboard.press("Escape")
    page.get_by_placeholder("Begin a text").wait_for()
    text = ""
    for turn, more in enumerate(("你好，很", "高兴")):
        text += more
        ask(page, more)
        ended(page)
        with served.client() as client:
            asked = {"model": "taught", "prompt": text, "temperature": 0}
            expected = client.post("/v1/completions", json=asked).json()["choices"][0]["text"]
        assert answers(page).nth(turn).locator(".text").inner_text().strip() == expected.strip() != ""
        text += expected


def test_edit_and_retry_branch(page):
    ask(page, QUESTION)
    ended(page)
    page.get_by_role("button", name="Edit").click()
    page.locator(".editing textarea").fill(CHATS[1][0])
    page.get_by_role("button", name="Send as a new branch").click()
    ended(page)
    assert answers(page).locator(".text").inner_text() == CHATS[1][1]
    page.get_by_role("button", name="Previous branch").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.title") == "Next branch"  # the keyboard's place
    assert page.locator(".message.user .plain").inner_text() == QUESTION
    assert answers(page).locator(".text").inner_text() == ANSWER
    page.get_by_role("button", name="Again").click()
    ended(page)
    assert answers(page).locator(".branches").inner_text().replace("\n", "") == "‹2/2›"


def go_on(page):
    return page.get_by_role("button", name="Continue", exact=True)


def cut_after(page, tokens):
    """The longest answer."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer").fill(str(tokens))
    page.keyboard.press("Escape")


def test_an_answer_that_was_cut_off_goes_on_in_its_place(page):
    """By button and by keyboard until it has ended: one message, kept as one; an edited question and another answer
    stand beside it as ever. Of a model of single questions, too, which sees no turn before."""
    page.route("**/api/app", lambda route: route.fulfill(json={**route.fetch().json(), "memory": {"taught": 0}}))
    page.reload()
    sent = []
    page.on("request", lambda asked: asked.url.endswith("/chat/completions") and sent.append(asked.post_data_json))
    cut_after(page, 1)
    ask(page, QUESTION)
    ended(page)
    said = [answers(page).locator(".text").inner_text()]
    assert "ended at the limit of tokens" in answers(page).locator(".figures").inner_text()
    go_on(page).click()
    ended(page)
    said.append(answers(page).locator(".text").inner_text())
    assert ANSWER.startswith(said[1]) and len(said[1]) > len(said[0]) > 0
    assert sent[1]["messages"] == [*sent[0]["messages"], {"role": "assistant", "content": said[0]}]
    page.reload()
    cut_after(page, "")
    page.get_by_role("button", name="A bad answer").click()
    page.get_by_role("button", name="A bad answer", pressed=True).wait_for()
    go_on(page).focus()
    page.keyboard.press("Enter")
    ended(page)
    assert page.get_by_role("button", name="A bad answer", pressed=True).count() == 0  # that was of half of it
    assert page.evaluate("document.activeElement.textContent") == "Send"
    assert answers(page).locator(".text").all_inner_texts() == [ANSWER] and go_on(page).count() == 0
    tokens = len(small_tokenizer().encode(ANSWER)) + 1
    assert answers(page).locator(".figures").inner_text().startswith(f"{tokens} tokens")
    (chat,) = page.evaluate(STORED)
    assert [node["text"] for node in chat["nodes"].values()] == [QUESTION, ANSWER]
    page.get_by_role("button", name="Again").click()
    ended(page)
    assert answers(page).locator(".branches").inner_text().replace("\n", "") == "‹2/2›"
    assert answers(page).locator(".text").inner_text() == ANSWER
    page.unroute_all(behavior="wait")


def written(page):
    """The first answer as it is kept."""
    (chat,) = page.evaluate(STORED)
    return next(node["text"] for node in chat["nodes"].values() if node["role"] == "assistant")


BY_HAND = """() => {
    const real = fetch, begun = (signal) => (control) => {
        const write = (text) => control.enqueue(new TextEncoder().encode(text));
        window.come = (content) => write(`data: ${JSON.stringify({ choices: [{ delta: { content } }] })}\\n\\n`);
        const end = (how) => { window.come = null; how(); };
        window.finish = () => end(() => control.close());
        signal.addEventListener("abort", () => end(() => control.error(signal.reason)));
    };
    window.fetch = async (url, options) => String(url).endsWith("completions")
        ? new Response(new ReadableStream({ start: begun(options.signal) })) : real(url, options);
}"""


def come(page, text):
    """Into the answer that is being written."""
    while not page.evaluate("Boolean(window.come)"):
        page.wait_for_timeout(20)
    page.evaluate("text => come(text)", text)
    playwright.expect(answers(page).last.locator(".body")).to_contain_text(text[:1])


def test_an_answer_that_was_stopped_goes_on(page):
    """Nothing of it is lost where another tab, which has an older state, writes on the same chat."""
    page.evaluate(BY_HAND)
    ask(page, QUESTION)
    come(page, "一二")
    page.get_by_role("button", name="Stop").click()
    ended(page)
    assert "stopped" in answers(page).locator(".figures").inner_text()
    other = page.context.new_page()
    other.goto(page.url)
    go_on(other).wait_for()
    for more, whole in (("三", "一二三"), ("四", "一二三四")):
        go_on(page).click()
        come(page, more)
        page.evaluate("finish()")
        ended(page)
        assert answers(page).locator(".text").all_inner_texts() == [whole]
    ask(other, CHATS[1][0])
    ended(other)
    assert written(page) == "一二三四"
    other.close()


def test_what_has_come_of_an_answer_stays_while_more_comes(page):
    """Block by block, so that what is selected stays selected and a long answer costs no more than its last block."""
    text = "# 题\n\n第一段 **粗**\n续\n\n- 一\n- 二\n  - 里\n\n|a|b|\n|-|-|\n|1|2|\n\n```py\nx = 1\n\ny\n```\n"
    text += "> 引\n\n1. 末 $x^2$\n---\n完"
    found = page.evaluate("""async text => {
        const { showMarkdown } = await import("/web/markdown.js"), inPieces = document.createElement("div");
        const wrong = [], plain = (element) => element.innerHTML.replace(/\\s*\\n\\s*(?=<|$)/g, "");
        let first = null;
        for (let at = 1; at <= text.length; at += 1) {
            const whole = document.createElement("div");
            showMarkdown(whole, text.slice(0, at), true);
            showMarkdown(inPieces, text.slice(0, at), false);
            if (plain(inPieces) !== plain(whole)) wrong.push(text.slice(0, at));
            if (at === 10) first = inPieces.firstChild;
        }
        return [wrong, first === inPieces.firstChild, inPieces.querySelectorAll("li, td, pre, blockquote").length];
    }""", text)  # fmt: skip
    assert found == [[], True, 8]


def test_an_answer_comes_on_while_something_else_is_chosen(page):
    """Another model for the next question: the page is drawn anew, and the answer comes into what is drawn."""
    page.evaluate(BY_HAND)
    ask(page, QUESTION)
    come(page, "一二")
    playwright.expect(answers(page).locator(".text")).to_have_text("一二")
    page.get_by_label("Model", exact=True).select_option("steady")
    come(page, "三四")
    playwright.expect(answers(page).locator(".text")).to_have_text("一二三四")
    page.evaluate("finish()")
    ended(page)
    assert answers(page).locator(".who").inner_text() == "taught"


MANY = """async () => {
    const store = await import("/web/store.js"), chat = store.newChat();
    let at = null;
    for (let i = 0; i < 200; i += 1) {
        at = store.addMessage(chat, at, "user", `问题 ${i}`).id;
        at = store.addMessage(chat, at, "assistant", "一行\\n\\n".repeat(i % 9), { finish: "stop" }).id;
    }
    await store.chats.put(chat);
    location.hash = `#/chat/${chat.id}`;
}"""


def test_a_long_conversation_is_not_drawn_anew_and_shows_its_end(page):
    """Only messages that changed are: a page of 2,000 took three seconds for each."""
    page.evaluate(MANY)
    playwright.expect(page.locator(".message")).to_have_count(400)
    away = "(log => log.scrollHeight - log.scrollTop - log.clientHeight)(document.querySelector('.log'))"
    assert page.evaluate(away) < 80
    page.evaluate("document.querySelectorAll('.message').forEach(one => { one.drawnBefore = true; })")
    kept = "[...document.querySelectorAll('.message')].filter(one => one.drawnBefore).length"
    page.get_by_role("button", name="Edit").nth(150).click()
    page.locator(".editing textarea").fill("别的")
    page.get_by_label("Model", exact=True).select_option("steady")
    assert page.locator(".editing textarea").input_value() == "别的" and page.evaluate(kept) == 399
    page.get_by_role("button", name="Cancel").click()
    assert page.locator(".message.user .plain").nth(150).inner_text() == "问题 150"
    ask(page, QUESTION)
    ended(page)
    assert page.locator(".message").count() == 402 and page.evaluate(kept) == 399 and page.evaluate(away) < 80


def test_an_answer_that_ends_takes_nobody_away(page):
    """Neither from a question that is being edited, nor from what is read further up; a new question shows itself."""
    page.evaluate(BY_HAND)
    ask(page, QUESTION)
    come(page, "很长。\n\n" * 60)
    page.get_by_role("button", name="Edit").click()
    page.locator(".editing textarea").fill("改了一半")
    page.locator(".log").evaluate("log => { log.scrollTop = 0; }")
    page.evaluate("finish()")
    ended(page)
    assert page.locator(".editing textarea").input_value() == "改了一半"
    assert page.evaluate("document.activeElement === document.querySelector('.editing textarea')")
    assert page.locator(".log").evaluate("log => log.scrollTop") == 0
    page.get_by_role("button", name="Cancel").click()
    assert page.locator(".message.user .plain").inner_text() == QUESTION and page.locator(".editing").count() == 0
    ask(page, CHATS[1][0])
    come(page, "好")
    playwright.expect(answers(page).last.locator(".text")).to_have_text("好")
    assert page.locator(".log").evaluate("log => log.scrollHeight - log.scrollTop - log.clientHeight") < 80
    page.evaluate("finish()")
    ended(page)


def test_a_chat_that_is_deleted_while_it_is_answered_stays_away(page):
    page.on("dialog", lambda dialog: dialog.accept())
    page.route("**/v1/chat/completions", lambda route: None)
    ask(page, QUESTION)
    page.get_by_role("button", name="Stop").wait_for()
    if page.viewport_size["width"] < 900:
        page.get_by_role("button", name="History").click()
    page.get_by_role("button", name=f"Delete: {QUESTION}").click()
    page.get_by_role("button", name="Send").wait_for()
    page.wait_for_timeout(300)
    assert page.evaluate(STORED) == []
    page.unroute_all(behavior="ignoreErrors")


def test_an_answer_that_fills_the_context_has_no_rest(page):
    page.route("**/api/app", lambda route: route.fulfill(json={**route.fetch().json(), "context": {"taught": 6}}))
    page.reload()
    cut_after(page, 3)
    ask(page, QUESTION)
    ended(page)
    assert "ended at the limit" in answers(page).locator(".figures").inner_text() and go_on(page).count() == 0
    page.unroute_all(behavior="wait")


def test_a_text_is_gone_on_with_without_a_word_more(page, served):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Continue the text instead of answering").check()
    page.get_by_label("Longest answer").fill("2")
    page.keyboard.press("Escape")
    page.get_by_placeholder("Begin a text").wait_for()
    ask(page, "我是小羊驼")
    ended(page)
    first = written(page)
    go_on(page).click()
    ended(page)
    with served.client() as client:
        asked = {"model": "taught", "prompt": f"我是小羊驼{first}", "temperature": 0, "max_tokens": 2}
        rest = client.post("/v1/completions", json=asked).json()["choices"][0]["text"]
    assert first and rest and written(page) == first + rest


HOSTILE = """<img src=x onerror="window.hit=1"><script>window.hit=1</script>
<a href="javascript:window.hit=1">a</a> [b](javascript:window.hit=1) ![c](https://example.invalid/x.png)
<svg onload="window.hit=1"><style>*{display:none}</style>
```js
<b>code</b>
```
$\\frac{1}{2}$ and $\\href{javascript:window.hit=1}{x}$ | <math><mi xlink:href="javascript:window.hit=1">"""


def test_injected_html_stays_text(page):
    ask(page, HOSTILE, "steady")
    page.get_by_role("button", name="Stop").click()
    ended(page)
    assert page.locator(".message.user .plain").inner_text() == HOSTILE
    page.evaluate("""async text => {
        const { showMarkdown } = await import("/web/markdown.js");
        const place = document.createElement("div");
        place.id = "probe";
        document.body.append(place);
        showMarkdown(place, text);
    }""", HOSTILE)  # fmt: skip
    probe = page.locator("#probe")
    probe.locator("math mfrac").wait_for(state="attached")
    page.wait_for_timeout(200)
    said = probe.inner_text()
    for written in (
        '<img src=x onerror="window.hit=1">',
        "<script>window.hit=1</script>",
        "<svg onload",
        "<b>code</b>",
    ):
        assert written in said
    assert page.evaluate("window.hit") is None
    assert probe.locator("img, script, svg, style, iframe").count() == 0
    hrefs = page.evaluate("[...document.querySelectorAll('#probe [href]')].map(a => a.getAttribute('href'))")
    assert not [href for href in hrefs if not href.startswith("http")]
    page.evaluate("document.getElementById('probe').remove()")


def test_history_is_exported_searched_and_imported(page, tmp_path):
    ask(page, QUESTION)
    ended(page)
    if page.viewport_size["width"] < 900:
        page.get_by_role("button", name="History").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / "chats.json"
    download.value.save_as(file)
    kept = json.loads(file.read_text("utf-8"))
    kept["chats"][0]["title"] = "<b>other</b> <script>window.hit=1</script>"
    file.write_text(json.dumps(kept))
    vote = {"id": "v", "time": 1, "best": "bad", "answers": [{"model": "m", "text": "x", "prompt": []}]}
    foreign = [{}, {**kept, "votes": [{**vote, "answers": [{}]}]}, {**kept, "votes": [{**vote, "time": 1e300}]}]
    circle = json.loads(json.dumps(kept))
    nodes = list(circle["chats"][0]["nodes"].values())
    nodes[0]["parent"] = nodes[1]["id"]
    foreign.append(circle)
    whole = {**kept, "votes": [vote]}
    said = "1 conversations came in.", "This is no file"
    for text, wanted in [(json.dumps(x), how) for one in foreign for x, how in zip((whole, one), said, strict=True)]:
        file.write_text(text)
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Import").click()
        chooser.value.set_files(file)
        page.locator("#history .note", has_text=wanted).wait_for()
    page.get_by_role("button", name="Save ratings (1)").wait_for()
    assert page.locator(".chats a").inner_text().startswith("<b>other</b>") and page.evaluate("window.hit") is None
    page.get_by_label("Search").fill("nowhere")
    page.locator("#history .note", has_text="Nothing found").wait_for()
    page.get_by_label("Search").fill(QUESTION)
    playwright.expect(page.locator(".chats li")).to_have_count(1)


def test_compare_shows_two_answers_and_keeps_the_vote(page, tmp_path):
    page.goto(page.url.split("#")[0] + "#/compare")
    page.get_by_role("heading", name="Compare").wait_for()  # the chat, which was there before, has such a field too
    page.get_by_placeholder("Write a message").fill(QUESTION)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="A: This is best").wait_for(timeout=60_000)
    first, second = page.locator(".columns .text").all_inner_texts()
    assert first == ANSWER and second != ANSWER and len(second) > 20
    page.get_by_role("button", name="A: This is best").click()
    page.get_by_text("taught: best 1 times").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save votes (1 pairs)").click()
    line = json.loads(download.value.path().read_text("utf-8"))
    assert line["chosen"] == [{"role": "assistant", "content": ANSWER}] and line["rejected_model"] == "steady"
    assert line["prompt"] == [{"role": "user", "content": QUESTION}]


def test_compare_goes_on_with_an_answer_that_was_cut_off(page):
    """In its own column, before the vote, which keeps all of it; nothing of what was left behind is voted on."""
    page.goto(page.url.split("#")[0] + "#/compare")
    page.get_by_role("heading", name="Compare").wait_for()
    page.get_by_label("Model B").select_option("taught")
    cut_after(page, 1)
    page.get_by_placeholder("Write a message").fill(QUESTION)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="A: This is best").wait_for()
    first, second = page.locator(".columns .text").all_inner_texts()
    assert ANSWER.startswith(first) and first != ANSWER and go_on(page).count() == 2
    cut_after(page, "")
    go_on(page).first.click()
    page.get_by_role("button", name="A: This is best").click()
    page.get_by_text("taught: best 1 times").wait_for()
    assert page.locator(".columns .text").all_inner_texts() == [ANSWER, second] and go_on(page).count() == 1
    (vote,) = page.evaluate("""import("/web/store.js").then(store => store.votes.all())""")
    assert [one["text"] for one in vote["answers"]] == [ANSWER, second]
    assert [one["prompt"] for one in vote["answers"]] == [[{"role": "user", "content": QUESTION}]] * 2
    page.evaluate(BY_HAND)
    page.get_by_placeholder("Write a message").fill("x")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_role("button", name="Start anew").click()
    page.wait_for_timeout(100)
    assert page.get_by_role("button", name="This is best").count() == 0
    page.get_by_role("button", name="Send", exact=True).wait_for()


def test_an_input_method_keeps_its_enter_and_escape(page):
    """Enter takes the letters as they are, Escape the candidates away. Safari tells it by the code 229."""
    press = """(element, [key, more]) => element.dispatchEvent(
        new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more }))"""
    box = page.get_by_label("Message", exact=True)
    box.fill("ganmao")
    for how in ({"isComposing": True}, {"keyCode": 229}):
        box.evaluate(press, ["Enter", how])
    assert page.locator(".message").count() == 0 and box.input_value() == "ganmao"
    box.fill(QUESTION)
    box.evaluate(press, ["Enter", {"keyCode": 13}])
    ended(page)
    page.get_by_role("button", name="Edit").click()
    edit = page.locator(".editing textarea")
    for how in ({"isComposing": True}, {"keyCode": 229}):
        edit.evaluate(press, ["Escape", how])
    assert edit.count() == 1
    edit.press("Escape")
    assert edit.count() == 0


def test_ratings_are_kept_and_saved_as_kto_takes_them(page):
    """Of answers in a chat, and of those that a vote found bad altogether; not what was taken back."""
    ask(page, QUESTION)
    ended(page)
    page.get_by_role("button", name="A bad answer").click()
    page.locator("button", has_text="Save ratings (1)").wait_for(state="attached")
    page.reload()
    bad, good = (page.get_by_role("button", name=name, pressed=on)
                 for name, on in (("A bad answer", True), ("A good answer", False)))  # fmt: skip
    bad.wait_for()
    good.click()
    page.get_by_role("button", name="A good answer", pressed=True).wait_for()
    page.goto(page.url.split("#")[0] + "#/compare")
    page.get_by_placeholder("Write a message").and_(page.locator("[rows='2']")).fill(QUESTION)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="All bad").click(timeout=60_000)
    page.get_by_text("Vote kept.").first.wait_for()
    page.goto(page.url.split("#")[0] + "#/chat")
    if page.viewport_size["width"] < 900:
        page.get_by_role("button", name="History").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save ratings (3)").click()
    lines = [json.loads(line) for line in download.value.path().read_text("utf-8").splitlines()]
    assert [(line["model"], line["label"]) for line in lines] == [
        ("taught", True),
        ("taught", False),
        ("steady", False),
    ]
    assert all(line["prompt"] == [{"role": "user", "content": QUESTION}] for line in lines)
    assert lines[0]["completion"] == [{"role": "assistant", "content": ANSWER}]
    assert all(isinstance(read_rated(line, Counter()), Rated) for line in lines)
    page.goto(page.url.split("#")[0] + "#/chat/" + page.evaluate(STORED)[0]["id"])
    page.get_by_role("button", name="A good answer").click()
    page.get_by_role("button", name="A good answer", pressed=False).wait_for()
    page.locator("button", has_text="Save ratings (2)").wait_for(state="attached")


def test_the_curve_of_a_running_training_grows(page, served):
    log = served.runs / "base" / "metrics.jsonl"
    os.utime(log)
    page.goto(page.url.split("#")[0] + "#/runs/base")
    page.get_by_text(re.compile(r"steps \d+ of 40")).wait_for()
    before = page.locator(".chart path").get_attribute("d").count("L")
    assert page.get_by_text("天<b>来了").count() == 1
    at = len(log.read_text().splitlines())
    with log.open("a") as handle:
        handle.write(json.dumps({"step": at, "kind": "train", "loss": 2.0}) + "\n")
        handle.write(json.dumps({"step": at, "kind": "sample", "prompt": "夏", "text": f"new at {at}"}) + "\n")
    page.get_by_text(f"new at {at}").wait_for()
    assert page.locator(".chart path").get_attribute("d").count("L") == before + 1
    page.goto(page.url.split("#")[0] + "#/runs/sft")
    page.get_by_role("heading", name="sft").wait_for()
    assert page.locator("section", has_text="Lineage").locator("li").all_inner_texts()[0].splitlines()[:2] == [
        "sft",
        "base",
    ]
    page.get_by_text("exact").wait_for()


def test_runs_that_begin_and_end_show_by_themselves(page, served):
    page.goto(page.url.split("#")[0] + "#/runs")
    page.get_by_role("link", name="sft", exact=True).first.wait_for()
    begun = served.runs / f"begun-{page.viewport_size['width']}"
    shutil.copytree(served.runs / "base", begun)
    os.utime(begun / "metrics.jsonl")
    row = page.locator(".runs-list li", has=page.get_by_role("link", name=begun.name, exact=True))
    row.get_by_text("running").wait_for()
    playwright.expect(row.get_by_role("checkbox")).to_be_checked()
    info = json.loads((begun / "run.json").read_text())
    (begun / "run.json").write_text(json.dumps({**info, "status": "finished", "summary": {"bits_per_byte": 1.23456}}))
    row.get_by_text("finished").wait_for()
    row.get_by_text("held out: 1.23 bits per byte").wait_for()


def test_the_data_of_a_run_in_figures_and_documents(page, served):
    folder = served.runs / "made"
    if not folder.is_dir():
        folder.mkdir()
        prepared(folder)
    page.goto(page.url.split("#")[0] + "#/data/made/out")
    table = page.locator("table").first
    row = table.get_by_role("row", name="chat").inner_text().split("\t")
    found = statistics(Prepared.open(folder / "out"), Tokenizer.load(folder / "out"))["corpora"]["chat"]
    assert row[:5] == ["chat", "chat", "90", str(found["splits"]["val"]["documents"]), f"{found['tokens']:,}"]
    page.get_by_label(re.compile("^Corpus")).select_option("chat")
    page.get_by_label(re.compile("^Split")).select_option("train")
    document = page.locator("article", has_text="chat, training, document").first
    document.wait_for()
    answers = document.locator("mark").all_inner_texts()
    assert len(answers) == 1 and re.fullmatch(r"等于\d+。</s>", answers[0])
    before = page.locator("article").all_inner_texts()
    page.get_by_role("button", name="Others").click()
    playwright.expect(page.locator("article").first).not_to_have_text(before[0])
    page.get_by_label("Tokens, at least").fill("100000")
    page.get_by_label("Tokens, at least").press("Enter")
    page.get_by_text("No document is of these lengths.").wait_for()
    page.get_by_label("Tokens, at least").fill("")
    page.get_by_label("Tokens, at least").press("Enter")
    page.get_by_role("button", name="中文").click()
    page.get_by_role("heading", name="数据").wait_for()


def test_a_chat_begins_with_a_question_of_the_models_training(page):
    asked = {"taught": [question for question, _ in CHATS[:2]]}
    page.route("**/api/app", lambda route: route.fulfill(json={**route.fetch().json(), "questions": asked}))
    page.reload()
    page.get_by_role("button", name=CHATS[1][0]).click()
    ended(page)
    assert answers(page).locator(".text").inner_text() == CHATS[1][1]
    page.unroute_all(behavior="wait")


def test_look_inside_gets_the_turns_that_the_model_saw(page):
    """Of a model whose training's chats had no earlier turn: the last question alone, with its answer."""
    page.route("**/api/app", lambda route: route.fulfill(json={**route.fetch().json(), "memory": {"taught": 0}}))
    page.reload()
    for question, _ in CHATS[:2]:
        ask(page, question)
        ended(page)
    page.get_by_role("button", name="Look inside").last.click()
    page.locator(".tokens button").first.wait_for()
    (question, answer), shown = CHATS[1], page.evaluate("JSON.parse(sessionStorage.getItem('babyllama.inspect'))")
    assert shown["messages"] == [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    page.unroute_all(behavior="wait")


def test_look_inside_shows_the_python_apis_figures(page):
    ask(page, QUESTION)
    ended(page)
    page.get_by_role("button", name="Look inside").click()
    page.locator(".tokens button").first.wait_for()
    tokenizer, chat = (
        small_tokenizer(),
        [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}],
    )
    ids = render_chat(tokenizer, chat).tokens
    shown = page.evaluate("[...document.querySelectorAll('.tokens button')].map(b => [Number(b.dataset.id), b.title])")
    found = inside.expectations(taught_model(), ids, tokenizer.vocab_size)
    assert [id for id, _ in shown] == ids[: len(shown)]
    for t, (_, title) in list(enumerate(shown))[1:]:
        told = float(re.search(r"([\d.e+-]+) bits", title.replace(",", ""))[1])
        assert told == pytest.approx(-found.logprobs[t].item() / 0.6931472, rel=0.006, abs=1e-5)
    page.locator(".tokens button").last.click()
    for view, there in (
        ("attention", "canvas.map"),
        ("lens", ".lens td"),
        ("sampling", ".bars i"),
        ("rope", ".chart path"),
        ("neighbours", ".bars i"),
    ):
        page.goto(page.url.split("#")[0] + f"#/inside/{view}")
        page.locator(there).first.wait_for(state="attached")
    page.get_by_role("button", name="The code: src/babyllama/inside.py:").click()
    assert page.locator(".source .here").inner_text().startswith("def neighbours(")
    page.keyboard.press("Escape")


def test_the_page_is_small_and_soon_there(served, chromium, capsys):
    context = chromium.new_context(locale="zh-CN")
    page, sizes = context.new_page(), {}
    page.on("response", lambda found: sizes.update({found.url: len(found.body())}))
    page.goto(served.url)
    page.get_by_label("API 密钥").wait_for()
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    total = sum(file.stat().st_size for file in WEB.rglob("*") if file.suffix != ".txt")
    with capsys.disabled():
        print(f"\nfirst paint {paint:.0f} ms, chat page {sum(sizes.values())} bytes, all files {total}")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    assert total < 400_000 and sum(sizes.values()) < 400_000
    context.close()


def test_a_browser_without_light_dark_has_the_light_colours(served, chromium):
    """The same colours as newer ones have: of such a browser the style is what it does not know."""
    shown, names = [], sorted(set(re.findall(r"--(\w+):", (WEB / "app.css").read_text("utf-8"))))
    for old in (False, True):
        page = chromium.new_context(color_scheme="light").new_page()
        if old:
            page.route("**/app.css", lambda route: route.fulfill(
                body=route.fetch().text().replace("light-dark(", "unknown("), content_type="text/css"))  # fmt: skip
        page.goto(served.url)
        page.get_by_label("API key").wait_for()
        shown.append(page.evaluate("""names => names.map(name => {
            document.body.style.color = `var(--${name})`;
            return getComputedStyle(document.body).color;
        })""", names))  # fmt: skip
        page.context.close()
    assert shown[0] == shown[1] and len(set(shown[1])) > 10


def test_two_tabs_of_one_chat_keep_what_both_wrote(page):
    ask(page, QUESTION)
    ended(page)
    other = page.context.new_page()
    other.goto(page.url)
    other.locator(".message.assistant").wait_for()
    for tab, (question, _) in zip((page, other), CHATS[1:3], strict=True):
        ask(tab, question)
        ended(tab)
    (chat,) = page.evaluate(STORED)
    assert {node["text"] for node in chat["nodes"].values()} == {text for pair in CHATS[:3] for text in pair}
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # it is looked at again
    playwright.expect(page.locator(".message.user .plain").last).to_have_text(CHATS[2][0])
    other.get_by_role("button", name="Previous branch").click()
    assert answers(other).nth(1).locator(".text").inner_text() == CHATS[1][1]
    other.close()


def test_an_answer_that_was_left_says_so(page):
    page.route("**/v1/chat/completions", lambda route: None)
    ask(page, QUESTION)
    page.get_by_role("button", name="Stop").wait_for()
    page.locator(".chats a").wait_for(state="attached")  # it is kept
    page.reload()
    assert "broken off when the page was left" in answers(page).locator(".figures").inner_text()
    page.unroute_all(behavior="ignoreErrors")
    ask(page, CHATS[1][0])  # a question without an answer is not sent again
    ended(page)
    assert answers(page).last.locator(".text").inner_text() == CHATS[1][1]


def test_the_oldest_turns_make_room(page, served):
    """Until a quarter of the context is left for the answer, as in a terminal."""
    sent = []
    page.on("request", lambda asked: asked.url.endswith("/chat/completions") and sent.append(asked.post_data_json))
    for _ in range(12):
        ask(page, QUESTION)
        ended(page)
        if "no longer fit" in answers(page).last.locator(".figures").inner_text():
            break
    asked, before = (body["messages"] for body in (sent[-1], sent[-2]))
    assert "the first 1 turns no longer fit" in answers(page).last.locator(".figures").inner_text()
    assert len(asked) == len(before) > 1 and asked[0]["role"] == "user" == asked[-1]["role"]
    with served.client() as client:
        counted = client.post("/v1/tokenize", json={"model": "taught", "messages": asked}).json()
    assert counted["count"] <= 0.75 * counted["max_model_len"]


def test_compare_shows_each_model_the_turns_that_it_learned_to_read(page):
    page.route("**/api/app", lambda route: route.fulfill(json={**route.fetch().json(), "memory": {"taught": 0}}))
    page.goto(page.url.split("#")[0] + "#/compare")
    page.reload()
    page.get_by_role("heading", name="Compare").wait_for()
    sent = []
    page.on("request", lambda asked: asked.url.endswith("/chat/completions") and sent.append(asked.post_data_json))
    for question, _ in CHATS[:2]:
        page.get_by_placeholder("Write a message").fill(question)
        page.keyboard.press("Enter")
        page.get_by_role("button", name="A: This is best").wait_for(timeout=60_000)
        page.get_by_role("button", name="All bad").click()
    second = {body["model"]: body["messages"] for body in sent[2:]}
    assert second["taught"] == [{"role": "user", "content": CHATS[1][0]}]
    assert [message["role"] for message in second["steady"]] in (["user"], ["user", "assistant", "user"])
    page.unroute_all(behavior="wait")


def test_a_page_that_cannot_be_fetched_says_so_and_is_there_later(page):
    """As while the server is started again: a browser asks for code that it did not get no second time."""
    page.route("**/web/runs.js", lambda route: route.fulfill(status=401, body=""))  # which the console may say
    page.goto(page.url.split("#")[0] + "#/runs")
    page.get_by_text("The server cannot be reached.").wait_for()
    page.unroute_all(behavior="wait")
    for _ in range(2):
        page.goto(page.url.split("#")[0] + "#/chat")
        page.get_by_label("Message", exact=True).wait_for()
        page.goto(page.url.split("#")[0] + "#/runs")
        page.get_by_role("link", name="sft", exact=True).first.wait_for()


def test_all_of_it_works_below_a_path_of_a_proxy(page, served):
    """As notebooks in the cloud and nginx put it: every request goes there."""
    home = f"{served.url}/proxy/8000/"
    page.route(
        "**/*", lambda route: route.fulfill(response=route.fetch(url=route.request.url.replace(home, f"{served.url}/")))
    )
    asked = []
    page.on("request", lambda one: asked.append(one.url))
    page.goto(home)
    ask(page, QUESTION)
    ended(page)
    assert answers(page).locator(".text").inner_text() == ANSWER
    formula = "({ showMarkdown }) => showMarkdown(document.querySelector('.hint'), '$x^2$', true)"
    page.evaluate(f"import('./web/markdown.js').then({formula})")
    page.locator("math").wait_for(state="attached")
    for view in ("compare", "runs", "inside/text"):
        page.goto(f"{home}#/{view}")
        page.locator(f"main.{view.partition('/')[0]} h1").first.wait_for()
    assert len(asked) > 20 and all(url.startswith(home) for url in asked)
    page.unroute_all(behavior="wait")


def test_a_refusal_is_told_in_chinese_and_copying_needs_no_https(page):
    page.get_by_role("button", name="中文").click()
    words = page.evaluate(
        """import("/web/api.js").then(({ Fault }) => [new Fault("m 9", "context_length_exceeded", 400),
           new Fault("too large", null, 413), new Fault("other", null, 400)].map((fault) => fault.message))"""
    )
    assert words[0].startswith("放不进模型的上下文") and words[0].endswith("（m 9）")
    assert words[1].endswith("（too large）") and words[2] == "other"
    moments = """import("/web/i18n.js").then(({ moment }) => ["2026-11-30T01:04:24+0800", "soon", null].map(moment))"""
    day, *others = page.evaluate(moments)
    assert re.match(r"2026年11月(29|30)日", day) and others == ["soon", ""]
    page.evaluate("delete Navigator.prototype.clipboard")
    heard = page.evaluate(
        """import("/web/copy.js").then(({ copyButton }) => new Promise((heard) => {
           document.addEventListener("copy", () => heard(getSelection().toString() || document.activeElement.value));
           const button = copyButton("抄我"); document.body.append(button); button.click(); button.remove(); }))"""
    )
    assert heard == "抄我"


def test_a_text_that_outgrew_the_context_is_continued_at_its_end(page):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Continue the text instead of answering").check()
    page.keyboard.press("Escape")
    page.get_by_placeholder("Begin a text").wait_for()
    sent = []
    page.on("request", lambda asked: asked.url.endswith("/v1/completions") and sent.append(asked.post_data_json))
    ask(page, QUESTION * 60)
    ended(page)
    assert "tokens of the text no longer fit" in answers(page).locator(".figures").inner_text()
    ids = small_tokenizer().encode(QUESTION * 60)
    assert sent[0]["prompt"] == ids[-len(sent[0]["prompt"]) :] and 0 < len(sent[0]["prompt"]) < len(ids)
