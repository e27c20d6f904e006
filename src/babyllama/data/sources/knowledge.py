"""The embedded corpora: records made from packages of the registry, and the chats written for this project.

Each function yields records in the shapes of records.py, always the same ones; what varies (the wording of a question)
varies by a hash of the content. Not here: fetching (packages.py), the table of corpora (corpora.py).
"""

from __future__ import annotations

import json
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import xxhash

from babyllama.data.sources import packages
from babyllama.data.sources.packages import read_member, read_plain_pickle

Record = dict[str, Any]


_ROLES = {"U:": "user", "A:": "assistant"}


def _chat(question: str, answer: str) -> Record:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _pick(phrasings: tuple[str, ...], subject: str) -> str:
    """One of the phrasings, chosen by the subject's hash, with the subject in it."""
    return phrasings[xxhash.xxh3_64_intdigest(subject.encode()) % len(phrasings)].format(subject)


class _Topic(NamedTuple):
    """Wordings of one question, those kept from training, and answers that fit them all; or a conversation."""

    wordings: list[str]
    held_out: list[str]
    answers: list[str]
    conversation: list[tuple[str, str]]


def _topics() -> Iterator[_Topic]:
    """The blocks of the file: lines of ``?``, ``~`` and ``!``, or of ``U:`` and ``A:``; ``#`` names the block."""
    text = (resources.files("babyllama") / "data" / "embedded" / "everyday.txt").read_text("utf-8")
    for block in text.split("\n\n"):
        lines = [line.partition(" ") for line in block.splitlines()]
        wordings, held_out, answers = ([text for mark, _, text in lines if mark == wanted] for wanted in "?~!")
        yield _Topic(wordings, held_out, answers, [(_ROLES[mark], text) for mark, _, text in lines if mark in _ROLES])


def everyday() -> Iterator[Record]:
    """Chats about the model itself, the day and the world, written for this project and in the public domain.

    Every wording of a question has the topic's first answer: one thing to learn, and the rephrasings that are held out
    can be told right from wrong.
    """
    for topic in _topics():
        for asked, apart in ((topic.wordings, False), (topic.held_out, True)):
            yield from ({**_chat(question, topic.answers[0]), "held_out": apart} for question in asked)
        if topic.conversation:
            turns = [{"role": role, "content": text} for role, text in topic.conversation]
            yield {"messages": turns, "held_out": False}


def everyday_text(texts_of_a_topic: int = 12) -> Iterator[Record]:
    """The same topics told for pretraining: some wordings one after the other, so that they become alike, then an
    answer; never one that is held out."""
    rng = Random(0)
    for topic in _topics():
        if topic.conversation:
            yield {"text": "".join(text for _, text in topic.conversation), "held_out": False}
        for _ in range(texts_of_a_topic if topic.wordings else 0):
            said = "".join(_ended(text) for text in rng.sample(topic.wordings, 3))
            yield {"text": said + rng.choice(topic.answers), "held_out": False}


# ── idioms ─────────────────────────────────────────────────────────────────────────────────────────────────────────
# The package lost every opening quotation mark: 《古诗十九首》胡马依北风。” A quotation that runs from a book's title
# (and volume) to the end, and 同…”, get theirs back; other lone marks are dropped.
_QUOTED = re.compile(
    r"^([^“”]*?》(?:[卷第][〇一二三四五六七八九十百千零上中下之]+[回卷折章出则篇首齣]?(?:[上中下])?)?(?:注)?引?)"
    r"[：:]?([^“”《》]+[^“”]*)”$"
)
_SAME_AS = re.compile(r"(同|见|犹|犹言|亦作|也作|又作|参见)([\u4e00-\u9fff，]{2,12})”")
_CIRCLED = re.compile(r"[①②③④⑤⑥⑦⑧⑨]")
_DEFINING = re.compile(r"^(?:比喻|形容|指|表示|用来|用以|泛指|常指|多指|常用|多用|后指|后用|后比喻|喻|谓)")
_IDIOM_QUESTIONS = ("“{}”是什么意思？", "成语“{}”怎么解释？", "请解释一下“{}”这个成语。")


def _idioms() -> Iterator[dict[str, str]]:
    for entry in json.loads(read_member(packages.IDIOMS)):
        word = entry["word"].strip()
        meaning = _with_colons(_clean_meaning(entry["explanation"]), word)
        if len(meaning) > 3 and re.fullmatch(r"[\u4e00-\u9fff，]+", word):
            origin, example = _clean_quote(entry["derivation"]), _clean_example(entry["example"], word)
            yield {"word": word, "meaning": meaning, "origin": origin, "example": example}


def _tidy(text: str) -> str:
    text = text.replace("∶", "：").replace("?", "？").strip(" 　“”")
    return "" if text in ("无", "") or re.search(r"[^\w\u4e00-\u9fff，。；、：！？“”‘’《》（）·…—]", text) else text


def _ended(text: str) -> str:
    return text if not text or text.endswith(("。", "！", "？", "”", "…", "）")) else text.rstrip("，；、：") + "。"


def _clean_meaning(text: str) -> str:
    text = _SAME_AS.sub(r"\1“\2”", text)
    if text.count("“") != text.count("”"):
        text = text.replace("“", "").replace("”", "")
    text = _CIRCLED.sub("", text.split("◇")[0].replace("“”", ""))
    quote_end = text.rstrip().endswith("”")
    text = _tidy(text) + ("”" if quote_end and "“" in text else "")
    return _ended(text).replace("”。。", "”。")


def _with_colons(meaning: str, word: str) -> str:
    """捷快；足脚步。比喻… of 捷足先得 → 捷：快；足：脚步。比喻…: the colons were lost too."""
    glosses, stop, rest = meaning.partition("。")
    if "；" not in glosses or not rest:
        return meaning
    gloss = re.compile(rf"((?:[{word}]、)*[{word}])([^{word}：]+)")
    found = [gloss.fullmatch(part) for part in glosses.split("；")]
    if None in found:
        return meaning
    return "；".join(f"{match[1]}：{match[2]}" for match in found if match) + stop + rest


def _clean_quote(text: str) -> str:
    found = _QUOTED.match(text.strip())
    if found:
        before, quote = _tidy(found[1]), _tidy(found[2])
        return f"{before}：“{quote}”" if before and quote else ""
    return _ended(_tidy(text.replace("“", "").replace("”", "")))


def _clean_example(text: str, word: str) -> str:
    sentence, star, source = text.partition("★")
    sentence = _tidy(re.sub(r"～+", word, sentence).replace("“", "").replace("”", ""))
    if "～" in text and sentence and "》" not in sentence:
        source = _tidy(source)
        return _ended(sentence) + (f"（{source}）" if star and source else "")
    return ""


def idiom_words() -> Iterator[str]:
    """The idioms of four characters."""
    yield from (idiom["word"] for idiom in _idioms() if len(idiom["word"]) == 4)


def idioms() -> Iterator[Record]:
    """An idiom, its meaning, where it comes from, an example."""
    for idiom in _idioms():
        origin = re.sub(r"^(?:语出|出自|典出|见|语本|源自)(?=.*《)", "", idiom["origin"])
        parts = [f"{idiom['word']}：{idiom['meaning']}"]
        parts += [f"出自{origin}" if "《" in origin[:20] else f"典故：{origin}"] if origin else []
        parts += [f"例句：{idiom['example']}"] if idiom["example"] else []
        yield {"text": "\n".join(parts)}


def idiom_qa() -> Iterator[Record]:
    """What an idiom means, asked in three ways."""
    for idiom in _idioms():
        joint = "" if _DEFINING.match(idiom["meaning"]) else "的意思是："
        yield _chat(_pick(_IDIOM_QUESTIONS, idiom["word"]), f"“{idiom['word']}”{joint}{idiom['meaning']}")


# ── the Romance of the Three Kingdoms ──────────────────────────────────────────────────────────────────────────────
def sanguo() -> Iterator[Record]:
    """The 120 chapters, a paragraph a line."""
    for chapter in json.loads(read_member(packages.SANGUO)):
        lines = (re.sub(r"[\s\u3000]+", " ", line).strip() for line in chapter.split("\n"))
        yield {"text": "\n".join(line for line in lines if line)}


# ── laws in force ──────────────────────────────────────────────────────────────────────────────────────────────────
_ARTICLES = """
    SELECT a.law_id, a.law_name, a.chapter, a.section, a.article_no, a.article_text FROM articles a
    WHERE a.status = '现行有效' ORDER BY a.law_id, a.id"""
_LAW_QUESTIONS = ("《{}是怎么规定的？", "《{}的内容是什么？", "请告诉我《{}的规定。")


def _articles() -> list[tuple[str, str, str | None, str | None, str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "laws.db"
        path.write_bytes(read_member(packages.LAWS))
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute(_ARTICLES).fetchall()
    return [(*row[:5], re.sub(r"(?<=[^。；：:！？])\n(?!（)", "", row[5].strip())) for row in rows]


def laws() -> Iterator[Record]:
    """A law in force a document, with its chapters."""
    lines: list[str] = []
    law, part = "", ("", "")
    for law_id, name, chapter, section, number, text in _articles():
        if law_id != law:
            if lines:
                yield {"text": "\n".join(lines)}
            lines, law, part = [name], law_id, ("", "")
        for old, new in zip(part, (chapter or "", section or ""), strict=True):
            lines += [new] if new and new != old else []
        part = (chapter or "", section or "")
        lines.append(f"{number} {text}")
    if lines:
        yield {"text": "\n".join(lines)}


def law_qa() -> Iterator[Record]:
    """What an article says."""
    for _, name, _, _, number, text in _articles():
        if "解释" not in name and "修正案" not in name and "决定" not in name:
            short = name.removeprefix("中华人民共和国")
            yield _chat(_pick(_LAW_QUESTIONS, f"{short}》{number}"), f"《{short}》{number}规定：{text}")


# ── medicine ───────────────────────────────────────────────────────────────────────────────────────────────────────
_NAME = re.compile(r"[\u4e00-\u9fffA-Za-z0-9（）—]{2,16}")
_ITEM = re.compile(r"(?=[A-Za-z0-9—]*[\u4e00-\u9fff])[\u4e00-\u9fffA-Za-z0-9—]{2,12}")
_FRAGMENT = re.compile(
    r"^(?:伴|可|如|为|或|与|及|偶|严重|患者|用于|常并|多为|并|故|因|无|呈|有|以|使|由|其|本品|对|在|于|尚|所致|等|个别|罕见|少数|部分)"
    r"|(?:等|者|的|和|及|或|与|为|致|所致|引起|有关|方面)$"
)
# Medical relation → (sentence of a description, questions, answer); {0} is the subject, {1} the list.
_RELATIONS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "常见症状": ("常见症状有{1}", ("{}有哪些症状？", "得了{}会有什么表现？", "{}的常见症状是什么？"),
             "{0}的常见症状有{1}。"),
    "就诊科室": ("患者可到{1}就诊", ("{}应该挂什么科？", "得了{}该看哪个科？", "{}去哪个科室看？"),
             "{0}可以到{1}就诊。"),
    "检查": ("常做的检查有{1}", ("{}需要做哪些检查？", "怀疑{}要查什么？", "诊断{}要做什么检查？"),
           "{0}常做的检查有{1}。"),
    "常见发病部位": ("多发生在{1}", ("{}一般发生在什么部位？", "{}多发于哪里？"), "{0}多发生在{1}。"),
    "多发群体": ("多见于{1}", ("{}多见于哪些人？", "什么人容易得{}？"), "{0}多见于{1}。"),
    "常见病因": ("常见病因有{1}", ("{}的常见病因是什么？", "{}是什么原因引起的？"), "{0}的常见病因有{1}。"),
    "并发症": ("可能并发{1}", ("{}会引起哪些并发症？", "{}有什么并发症？"), "{0}可能并发{1}。"),
    "适应症": ("可用于{1}", ("{}有什么用？", "{}能治什么病？", "{}的适应症是什么？"), "{0}可用于{1}。"),
    "不良反应": ("可能的不良反应有{1}", ("{}有哪些不良反应？", "吃{}有什么副作用？", "{}的副作用是什么？"),
             "{0}可能的不良反应有{1}。"),
    "功效": ("功效是{1}", ("{}有什么功效？", "{}的功效是什么？"), "{0}的功效是{1}。"),
    "主治": ("主治{1}", ("{}主治什么？", "中药里{}用来治什么？"), "{0}主治{1}。"),
    "性味": ("性味为{1}", ("{}的性味是什么？",), "{0}的性味是{1}。"),
    "入药部位": ("入药部位是{1}", ("{}用什么部位入药？",), "{0}的入药部位是{1}。"),
}  # fmt: skip
_SINGLE_CHARACTERS = {"性味", "入药部位"}


def _medical() -> Iterator[tuple[str, dict[str, list[str]]]]:
    graph = read_plain_pickle(read_member(packages.MEDICAL), packages.MEDICAL.file)
    for name, relations in graph.items():
        found = {key: _items(relations.get(key, []), key) for key in _RELATIONS}
        if _NAME.fullmatch(name) and any(found.values()):
            yield name, {key: items for key, items in found.items() if items}


def _items(values: list[str], relation: str) -> list[str]:
    """The items that read as words: no fragments of sentences, none that contains another."""
    kept: list[str] = []
    for value in values[:40]:
        item = value.replace("初发性或维持性睡眠障碍［失眠症］", "失眠").strip()
        fits = _ITEM.fullmatch(item) or (relation in _SINGLE_CHARACTERS and re.fullmatch(r"[\u4e00-\u9fff]", item))
        if fits and not _FRAGMENT.search(item) and item not in kept:
            kept.append(item)
    if relation in _SINGLE_CHARACTERS:
        return kept
    return [item for item in kept if not any(other != item and other in item for other in kept)]


def medical_text() -> Iterator[Record]:
    """A disease, drug or herb in one sentence or two, up to eight items of each relation."""
    for name, relations in _medical():
        listed = {key: "、".join(items[:8]) for key, items in relations.items()}
        first, *others = listed
        parts = [_RELATIONS[first][2].format(name, listed[first]).rstrip("。")]
        parts += [_RELATIONS[key][0].format(name, listed[key]) for key in others]
        if sum(map(len, parts)) > 16:
            yield {"text": f"{'，'.join(parts[:2])}。" + "".join(f"{part}。" for part in parts[2:])}


def medical_qa() -> Iterator[Record]:
    """One question for each relation of a subject, answered by up to six items."""
    for name, relations in _medical():
        for key, items in relations.items():
            _, questions, answer = _RELATIONS[key]
            yield _chat(_pick(questions, name), answer.format(name, "、".join(items[:6])))
