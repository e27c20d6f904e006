"""Both READMEs: every `babyllama` command in them runs (made small), every make target exists, both say the same."""

import json
import re
import shlex
from pathlib import Path

import httpx
import pytest
from small import sentencepiece_model
from small_quickstart import small_packages

from babyllama.commands.quickstart import STAGES
from babyllama.data.sources import corpora, knowledge
from babyllama.data.sources.known import SKILLS
from babyllama.verbs import app, joined

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")
SMALLER = {
    "tokenizer": [],
    "prepare": ["workers=1", "validation=0.1"],
    "train": ["plan.epochs=null", "plan.steps=2", "plan.micro_batch_size=2", "plan.accumulate=1", "plan.context=32",
              "samples.max_tokens=2", "device=cpu", "precision=fp32", "compile=false"],
    "evaluate": ["device=cpu", "questions=2", "answer_tokens=4"],
    "generate": ["device=cpu", "max_tokens=4"],
    "chat": ["device=cpu", "max_tokens=4"],
}  # fmt: skip
TINY_MODEL = ["init.model.hidden_size=32", "init.model.num_hidden_layers=1", "init.model.num_attention_heads=2"]


def blocks(readme, language):
    text = (ROOT / readme).read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(readme):
    lines = [line.split("#")[0].strip() for block in blocks(readme, "sh") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("babyllama ")]


def test_both_readmes_have_the_same_commands():
    without_comments = [[re.sub(r"\s*#.*", "", b) for b in blocks(r, "sh") + blocks(r, "python")] for r in READMES]
    assert without_comments[0] == without_comments[1]
    headings = [len(re.findall(r"^## ", (ROOT / r).read_text("utf-8"), re.MULTILINE)) for r in READMES]
    assert headings[0] == headings[1]


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for block in blocks("README.md", "sh"):
        for target in re.findall(r"^make (\w+)", block, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_corpora_named_exist():
    text = (ROOT / "README.md").read_text("utf-8")
    named = text[text.index("Corpora known by name") : text.index("## A real model")]
    assert set(corpora.CORPORA) == set(re.findall(r"`(\w+)`", named))


def chat(i):
    return {"instruction": f"第{i}个问题是什么？", "input": "", "output": f"第{i}个回答。"}


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """A folder with a newcomer's files; packages and the hub serve small files of the real formats."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "sft").mkdir(parents=True)
    lines = [json.dumps({"text": f"春天来了，第{i}朵花开了。"}, ensure_ascii=False) for i in range(120)]
    (tmp_path / "data" / "text.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    chats = "".join(json.dumps(chat(i), ensure_ascii=False) + "\n" for i in range(60))
    (tmp_path / "data" / "sft" / "alpaca.jsonl").write_text(chats, "utf-8")

    def hub(repo, name, repo_type, revision):
        file = tmp_path / "hub" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if "wikipedia" in name:
            records = [{"completion": f"维基百科第{i}条。", "source": "wikipedia.zh2307"} for i in range(60)]
            file.write_text(json.dumps(records, ensure_ascii=False), "utf-8")
        elif "finetune" in name:
            file.write_text(chats, "utf-8")
        else:
            texts = [json.dumps({"text": f"第{i}种病应当多休息。"}, ensure_ascii=False) for i in range(60)]
            file.write_text("\n".join(texts) + "\n", "utf-8")
        return str(file)

    import huggingface_hub

    monkeypatch.setattr("babyllama.data.sources.hub.reach", lambda _: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    monkeypatch.setattr(knowledge, "read_member", small_packages)
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    return tmp_path


def small(words):
    verb, *rest = words
    more = list(SMALLER.get(verb, []))
    if verb == "train" and any("pretrain" in w or "init.model" in w for w in rest):
        more += TINY_MODEL
    if "seed/tokenizer" in rest:
        more += ["source.path=tokenizer.model"]
    return [verb, *rest, *more]


def test_every_command_runs(newcomer, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115, PTH123  (a chat without questions ends)
    for words in commands("README.md"):
        if "runs/quickstart" in " ".join(words):  # what make quickstart makes: the next test
            continue
        if words[1].startswith("--"):  # would change this user's shell; test_keys.py tries completion itself
            continue
        app(small(joined(words[1:])), standalone_mode=False)
    assert (newcomer / "runs/seed/medical/model/config.json").is_file()
    (python,) = blocks("README.md", "python")
    exec(compile(python, "README.md", "exec"), {})
    capsys.readouterr()


def test_quickstart_runs_all_its_stages(small_quickstart):
    """The ten minutes in miniature: every stage of `make quickstart`, with two training steps each; the page whose
    address it prints shows each run once it is there."""
    folder = small_quickstart.parents[1]
    said, again = ((folder / name).read_text("utf-8") for name in ("said.txt", "again.txt"))
    on_the_page = json.loads((folder / "page.json").read_text())
    runs = [stage.paths["out"] for stage in STAGES if "out" in stage.paths]
    assert on_the_page[: len(runs)] == [dict.fromkeys(runs[: i + 1], "finished") for i in range(len(runs))]
    with pytest.raises(httpx.ConnectError):  # it ended
        httpx.get(re.search(r"http://\S+", said)[0])
    took = said[said.index("what it took") :]
    assert re.search(r"base +\d+ +[\d.]+ (MiB|GiB)\n", took), took
    assert "babyllama chat runs/quickstart/medical" in said.replace("\n", " ")
    table = said[said.index("exact answers") :]
    assert all(f"\n{skill.name} " in table for skill in SKILLS), table
    assert re.search(r"sums +sums and word problems +0% \(0–66\) +0% \(0–66\) +1%", table), table
    page = (small_quickstart / "report.html").read_text("utf-8")
    assert "medical" in page and "<svg" in page
    assert len(list(small_quickstart.rglob("evals/*.json"))) == 3
    assert again.count("is finished") == 7  # nothing is done twice
