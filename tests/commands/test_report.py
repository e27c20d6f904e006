"""The report on hand-made runs: complete, self-contained, safe with whatever a model wrote, patient with gaps."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from html.parser import HTMLParser

import pytest
from small_run import save_taught, small_tokenizer, taught_model

from babyllama import inside
from babyllama.atomic import write_atomic
from babyllama.commands.report import TEMPLATE, ReportRecipe, main
from babyllama.commands.report_story import spread
from babyllama.commands.report_words import CHINESE
from babyllama.errors import InputError
from babyllama.recipe import Recipe
from babyllama.run import Run

SHAPE = {"model_type": "llama", "vocab_size": 4096, "hidden_size": 192, "intermediate_size": 512,
         "num_hidden_layers": 4, "num_attention_heads": 6, "tie_word_embeddings": True}  # fmt: skip
EVIL = "<script>alert('坏')</script><img src=http://evil.example/x.png>"


class Example(Recipe):
    note: str = "配方"


def make_train(path, parent=None, steps=40, start=8.3):
    run = Run.create(path, "train", Example(), parent)
    for step in range(1, steps + 1):
        loss = 2.5 + (start - 2.5) * math.exp(-step / 8) + 0.05 * math.sin(step)
        run.log(step * 10, kind="train", loss=loss, lr=0.01 * (1 - step / steps), norm=1.0, tokens=step * 40960,
                seconds=step * 4.5, tokens_per_second=9100.0, mfu=0.31)  # fmt: skip
        if step % 10 == 0:
            run.log(step * 10, kind="validation", loss=loss + 0.1, bits_per_byte=(loss + 0.1) / 2.4, corpora={})
            run.log(step * 10, kind="sample", prompt="春天来了，", text=f"花儿{'开' * step}了。")
            run.log(step * 10, kind="sample", prompt="<b>prompt", text=EVIL)
    run.save_model(lambda folder: write_atomic(folder / "config.json", json.dumps(SHAPE)))
    run.finish(tokens=steps * 40960, seconds=steps * 4.5, train_loss=2.51, validation_loss=2.61, bits_per_byte=1.087,
               steps=steps * 10, tokens_per_second=9100.0, mfu=0.31, device="CPU", precision="fp32")  # fmt: skip
    return path


def make_prepare(path):
    run = Run.create(path, "prepare", Example())
    split = {"documents": 30462, "tokens": 1_890_937, "bytes": 6_608_271}
    corpora = {"成语": {"kind": "text", "licence": "MIT", "source": "idioms", "splits": {"train": split, "val": split}}}
    write_atomic(path / "manifest.json", json.dumps({"corpora": corpora}))
    run.finish(seconds=41.0, documents=60924, tokens=3_781_874)
    return path


def add_evals(path):
    answers = [{"question": f"第{i}问：什么是感冒？", "answer": "感冒是病。" if i else EVIL,
                "reference": "感冒。"} for i in range(20)]  # fmt: skip
    found = {"loss": {"chats": {"loss": 2.2, "perplexity": 9.03, "bits_per_byte": None, "accuracy": 0.517,
                                "tokens": 900}},
             "answers": {"medical": {"asked": 20, "exact": 0.25, "f1": 0.612, "ended": 0.95, "answers": answers},
                         "empty": {"asked": 0, "answers": []}}}  # fmt: skip
    write_atomic(path / "evals" / "medical-val.json", json.dumps(found))


@pytest.fixture
def pipeline(tmp_path):
    tokenizer = Run.create(tmp_path / "tokenizer", "tokenizer", Example())
    tokenizer.finish(vocab_size=4096, characters_per_token=1.613, seconds=12.0)
    prepare, base = make_prepare(tmp_path / "corpus"), make_train(tmp_path / "base")
    medical = make_train(tmp_path / "medical", base, steps=20, start=4)
    add_evals(medical)
    return (tokenizer.path, prepare, base, medical)


def report(runs, out, title="First steps", **more) -> str:
    main(ReportRecipe(runs=tuple(runs), out=out, title=title, **more))
    return out.read_text("utf-8")


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not close in order."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_tells_the_story(pipeline, tmp_path):
    page = Page(report(pipeline, tmp_path / "r.html"))
    shown = " ".join(page.text.split())
    for word in ("First steps", "tokenizer", "corpus", "base", "medical", "Where the time went", "成语", "30.5 k",
                 "1.89 M", "2.56 M", "4 layers × 192 wide, 6 heads", "3 min", "9,100", "31.0 %", "1.087",
                 "春天来了，",
                 f"花儿{'开' * 40}了。", "note: 配方", "61 % of characters", "51.7 %",
                 "continues from", "model/"):  # fmt: skip
        assert word in shown, word
    # three charts of each of the two trainings; the fine-tuning starts far below guessing
    assert page.tags.count("svg") == 6
    assert shown.count("pure guessing") == 1
    assert "Questions and answers: medical" in shown
    assert "Questions and answers: empty" not in shown


def test_parameters_by_hand(pipeline, tmp_path):
    """4096·192 + 4·(4·192² + 3·192·512 + 2·192) + 192 = 2,557,632."""
    assert "2.56 M" in report(pipeline[2:3], tmp_path / "r.html")


def test_it_opens_offline(pipeline, tmp_path):
    html = report(pipeline, tmp_path / "r.html")
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert "//" not in (value or "")
        if name in ("href", "xlink:href", "src"):
            assert value.startswith("#")
    style = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert len(style) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_what_a_model_wrote_is_text(pipeline, tmp_path):
    html = report(pipeline, tmp_path / "r.html", title="<i>title")
    assert "<script" not in html
    assert "<i>title" not in html
    assert html.count("&lt;script&gt;alert") > 2  # samples of both runs and an answer
    assert EVIL in Page(html).text


def test_colours_follow_the_page(pipeline, tmp_path):
    html = report(pipeline, tmp_path / "r.html")
    charts = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "var(--first)" in charts
    assert not re.findall(r"#0[1-5]0[1-5]0[1-5]|#ffffff|#000000", charts)
    assert "prefers-color-scheme: dark" in html


def test_samples_run_from_the_first_to_the_last(pipeline, tmp_path):
    text = Page(report(pipeline[2:3], tmp_path / "r.html")).text
    steps = re.findall(r"step (\d+)\s*花儿", text)
    assert steps == ["100", "200", "300", "400"]


def test_gaps_are_left_out(tmp_path, capsys):
    bare = Run.create(tmp_path / "bare", "train", Example()).path
    (bare / "env.json").unlink()
    (bare / "recipe.yaml").unlink()
    write_atomic(bare / "evals" / "broken.json", "{")
    write_atomic(bare / "evals" / "list.json", "[1]")
    page = Page(report([bare], tmp_path / "r.html"))
    assert "not finished" in page.text
    assert "svg" not in page.tags
    assert "Where the time went" not in page.text
    assert "r.html is ready" in capsys.readouterr().out


def test_an_unfinished_run_shows_how_far_it_came(tmp_path):
    run = Run.create(tmp_path / "going", "train", Example())
    run.log(10, kind="train", loss=5.4321, lr=0.1, tokens=1000, seconds=66.0)
    run.log(10, kind="validation", loss=5.5, bits_per_byte=None, corpora={})
    run.log(20, kind="train", loss=float("nan"), lr=0.1, tokens=2000, seconds=70.0)
    with (run.path / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 30, "ki')
    page = Page(report([run.path], tmp_path / "r.html"))
    assert "1 min 10 s" in page.text
    assert page.tags.count("svg") == 2  # no bits per byte
    assert "5.500" in page.text


def test_a_long_run_stays_a_small_page(tmp_path):
    run = Run.create(tmp_path / "long", "train", Example())
    lines = [json.dumps({"step": i, "kind": "train", "loss": 3 + 1 / (i + 1), "lr": 0.1}) + "\n" for i in range(50_000)]
    write_atomic(run.path / "metrics.jsonl", "".join(lines))
    assert len(report([run.path], tmp_path / "r.html")) < 200_000


def test_the_same_runs_give_the_same_page(pipeline, tmp_path):
    assert report(pipeline, tmp_path / "a.html") == report(pipeline, tmp_path / "b.html")


def test_a_folder_is_all_trainings_below_it_by_names_that_tell_them_apart(pipeline, tmp_path):
    """The sums are those of the last one's line, however many others stand beside it."""
    shutil.copytree(tmp_path / "base", tmp_path / "wang" / "base")
    copied = tmp_path / "wang" / "base" / "run.json"
    copied.write_text(copied.read_text().replace('"created": "2', '"created": "1'))  # it began first
    html = report([tmp_path], tmp_path / "r.html", sentence="")
    shown = " ".join(Page(html).text.split())
    assert re.findall(r"<h2>(.*?)</h2>", html)[1:4] == ["wang/base", f"{tmp_path.name}/base", "medical"]
    lines = shown[shown.index("Where it comes from") : shown.index("Where the time went")]
    assert lines.split()[4:] == [f"{tmp_path.name}/base", "train→medical", "train"]
    assert "trained on 2.46 M tokens" in shown and "4.1 M" not in shown  # 40 and 20 steps of 40,960


def test_no_run(tmp_path):
    with pytest.raises(InputError, match="is not a run"):
        report([tmp_path], tmp_path / "r.html")
    with pytest.raises(InputError, match="does not exist"):
        report([tmp_path / "gone"], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_without_matplotlib_the_remedy_is_named(pipeline, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[report\]'"):
        report(pipeline, tmp_path / "r.html")


def test_some_of_many():
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread("ab", 4) == ["a", "b"]


# ── tests, abilities, languages ────────────────────────────────────────────────────────────────────────────────────
def a_test(accuracy, chance, p, **more):
    verdict = f"above chance, p = {p}" if p < 0.05 else "not distinguishable from chance"
    return {"items": 320, "accuracy": accuracy, "interval": [accuracy - 0.05, accuracy + 0.05], "chance": chance,
            "p": p, "verdict": verdict, "cut": 0, **more}  # fmt: skip


@pytest.fixture
def tested(pipeline):
    *_, base, medical = pipeline
    for step, accuracy in ((100, 0.5), (400, 0.613)):
        score = {"accuracy": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05, "chance": 0.5, "p": 0.2}
        Run(base).log(step, kind="abilities", minimal_pairs=score, idioms={**score, "chance": 0.25})
    tasks = {"minimal_pairs": a_test(0.613, 0.5, 0.012), "ceval": a_test(0.2489, 0.25, 0.51, cut=7, contaminated=3)}
    write_atomic(base / "evals" / "zh-small.json", json.dumps({"recipe": {"suite": "zh-small"}, "tasks": tasks}))
    tasks = {"minimal_pairs": a_test(0.581, 0.5, 0.2), "arithmetic": a_test(0.287, 0.25, 0.06)}
    write_atomic(medical / "evals" / "zh-small.json", json.dumps({"recipe": {"suite": "zh-small"}, "tasks": tasks}))
    return pipeline


def test_the_first_screen_says_it_in_words(tested, tmp_path):
    shown = " ".join(Page(report(tested, tmp_path / "r.html")).text.split())
    assert ("“medical” is a Chinese LLaMA of 2.56 M parameters (4 layers, 192 wide, a vocabulary of 4,096). It was "
            "trained on 2.46 M tokens in 4 min 30 s on CPU. It needs 1.09 bits for a byte of text that was held out "
            "from its training. In none of 2 tests can it be told from guessing.") in shown  # fmt: skip
    first = " ".join(Page(report(tested[2:3], tmp_path / "r.html")).text.split())
    assert "Of 2 tests it is above chance in 1: minimal pairs. In the others it cannot be told from guessing." in first


def test_tests_stand_side_by_side_with_the_ledgers_figures_and_published_ones(tested, tmp_path):
    page = Page(report(tested, tmp_path / "r.html"))
    shown = " ".join(page.text.split())
    assert "minimal pairs 320 items base 61.3 % above chance, p = 0.012 medical 58.1 % not distinguishable" in shown
    assert "minimind-3 24.89 % published: the minimind project's README; not measured here" in shown
    assert shown.count("minimind-3") == 1 and "25.38" not in shown  # only beside a test that was taken
    styles = [value for name, value in page.attributes if name == "style"]
    assert "left: 61.30%" in styles and "left: 56.30%; width: 10.00%" in styles and "left: 50.00%" in styles


def test_abilities_are_drawn_over_the_steps(tested, tmp_path):
    page = Page(report(tested, tmp_path / "r.html"))
    assert page.tags.count("svg") == 6 + 2 and "Abilities over the steps" in page.text
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert {"minimal pairs", "idioms"} <= set(labels) and page.text.count("guessing") > 2


def test_limits_and_commands(tested, tmp_path):
    shown = " ".join(Page(report(tested, tmp_path / "r.html")).text.split())
    assert "base: 7 prompts of tests were cut to fit its context" in shown
    assert "base: 3 questions of tests occur in its training data" in shown
    assert "medical: nobody looked for the tests' text" in shown
    assert "It is no doctor, lawyer or judge." in shown
    base = tested[2]
    assert f"babyllama train {base}/recipe.yaml babyllama evaluate {base} suite=zh-small" in shown


def test_quantised_variants_stand_beside_the_base(pipeline, tmp_path):
    run = Run.create(tmp_path / "q4", "quantize", Example(), pipeline[-1])
    before = {"loss": 2.2, "perplexity": 9.03, "bits_per_byte": 1.5, "held_bytes": 2_000_000, "tokens_per_second": 80.0}
    after = {**before, "name": "gptq 4 bit g128", "bits_per_weight": 4.25, "loss": 2.31, "held_bytes": 700_000}
    write_atomic(run.path / "report.json", json.dumps({"before": before, "after": [after]}))
    run.finish(name="gptq 4 bit g128")
    cells = re.findall(r"<td>(.*?)</td>", report([run.path], tmp_path / "r.html"))
    at, then = cells.index("before"), cells.index("gptq 4 bit g128")
    assert cells[at : at + 5] == ["before", "–", "2.200", "9.0", "1.500"] and cells[then + 1 : then + 3] == [
        "4.25",
        "2.310",
    ]


def test_a_page_in_chinese_has_no_english_left(tested, tmp_path):
    said = re.findall(r'_\("((?:[^"\\]|\\.)*)"', TEMPLATE.read_text("utf-8"))
    for file in ("report", "report_story", "report_charts", "report_inside"):
        source = TEMPLATE.with_name(f"{file}.py").read_text("utf-8")
        said += ["".join(re.findall(r'"((?:[^"\\]|\\.)*)"', words)) for words in re.findall(
            r'(?:say|append)\(\(?((?:\s*"(?:[^"\\]|\\.)*")+)', source)]  # fmt: skip
    assert len(said) > 70 and not [words for words in said if words not in CHINESE]
    assert all(set(re.findall(r"{\w+}", a)) == set(re.findall(r"{\w+}", b)) for a, b in CHINESE.items())
    html = report(tested, tmp_path / "r.html", language="zh")
    shown = " ".join(Page(html).text.split())
    assert '<html lang="zh">' in html and "“medical”是一个中文 LLaMA，有 2.56 M 个参数" in shown
    assert "测试对比" in shown and "合语法句" in shown and "与随机猜测无法区分" in shown
    assert "not distinguishable" not in shown and "pure guessing" not in shown


def test_the_card_is_that_of_the_last_model(tested, tmp_path):
    report(tested, tmp_path / "r.html", card=tmp_path / "card.md")
    text = (tmp_path / "card.md").read_text("utf-8")
    assert "# medical" in text and "| minimal_pairs | 320 | 58.1% | 53%–63% | 50% | not distinguishable" in text
    with pytest.raises(InputError, match="card: none of the runs has a model"):
        report(tested[:1], tmp_path / "r.html", card=tmp_path / "card.md")


SENTENCE = "你你你好，好好好"


def test_a_look_inside_shows_the_python_apis_figures(tmp_path):
    run = Run.create(tmp_path / "taught", "train", Example())
    save_taught(run.model)
    run.finish(seconds=1.0)
    html = report([run.path], tmp_path / "r.html", sentence=SENTENCE)
    model, tokenizer = taught_model(), small_tokenizer()
    ids = [*tokenizer.start_ids, *tokenizer.encode(SENTENCE)]
    shown = re.findall(r"<title>[^<]* → [^<]*: (\d+) %</title>", html)
    expected = [inside.attention(model, ids, layer).mean(0) for layer in range(len(model.layers))]
    below = [f"{100 * held[t, s].item():.0f}" for held in expected for t in range(len(ids)) for s in range(t + 1)]
    assert shown == below
    lens = inside.logit_lens(model, ids, tokenizer.vocab_size, 1)
    table = html[html.index('<table class="lens"') :]
    last = table[table.index("after layer") : table.index("</tr>", table.index("after layer"))]
    assert re.findall(r'title="(\d+) %"', last) == [
        f"{100 * x:.0f}" for x in lens.top_logprobs[-1, :, 0].exp().tolist()
    ]
    said = lens.top[..., 0].tolist()  # two layers: every depth is shown
    right = sum(row[place] == ids[place + 1] for row in said for place in range(len(ids) - 1))
    assert len(said) <= 6 and table[: table.index("</table>")].count('class="right"') == right > 0
    assert "A look inside" not in report([run.path], tmp_path / "r.html", sentence="")


def test_energy_is_watts_by_the_ledgers_seconds(tmp_path):
    run = Run.create(tmp_path / "gpu", "train", Example())
    for step, seconds, watts in ((10, 60.0, 300.0), (20, 120.0, 600.0), (20, 180.0, 600.0), (30, 240.0, None)):
        more = {} if watts is None else {"watts": watts}
        run.log(step, kind="train", loss=3.0, lr=0.1, tokens=9, seconds=seconds, **more)
    assert "25.0 Wh" in report([run.path], tmp_path / "r.html")  # 300 W a minute, 600 W two, then nobody told
