"""Chats of every published shape, the table of corpora, the embedded packages."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import sqlite3
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_data import write_lines

from babyllama.data.sources import finding, knowledge, packages
from babyllama.data.sources.blobs import pack_records
from babyllama.data.sources.corpora import CorpusChoice, read_documents, read_texts
from babyllama.data.sources.documents import Chat, Document
from babyllama.data.sources.known import CORPORA
from babyllama.data.sources.records import Shape, parse
from babyllama.errors import InputError
from babyllama.recipe import load_recipe
from babyllama.tokenizer.chat import check_messages

HISTORY = [["你好", "您好！"], ["几点了？", "三点。"]]
PAIR = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
MOSS = {
    "conversation_id": 1, "meta_instruction": "You are an AI assistant whose name is MOSS.\n", "num_turns": 1,
    "chat": {"turn_1": {
        "Human": "<|Human|>: 问<eoh>\n", "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
        "Commands": "<|Commands|>: None<eoc>\n", "Tool Responses": "<|Results|>: None<eor>\n",
        "MOSS": "<|MOSS|>: 答<sup><|1|></sup><eom>\n".replace("<sup><|1|></sup>", "")}},
    "category": "Brainstorming",
}  # fmt: skip


def chats(*records: dict[str, Any], **shape: Any) -> list[Any]:
    return [plain(d) for blob in pack_records(records, "test, record ")
            for d in parse(blob, Shape("chat", **shape)).documents]  # fmt: skip


def plain(document: Document) -> Any:
    """A chat as its messages, a text as its text."""
    return list(document.messages) if isinstance(document, Chat) else document.text


def read_plain(choice: CorpusChoice) -> list[Any]:
    return [plain(document) for document in read_documents(choice)]


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "问", "input": "", "output": "答"},
        {"instruction": "", "input": "问", "output": "答"},
        {"instruction": "Human:问\nAssistant:", "input": "", "output": "答"},
        {"messages": PAIR},
        {"conversations": PAIR, "source": "x"},
        {"id": "1", "conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]},
        {"conversations": [{"from": "human", "value": "问"}, {"from": "assistant", "value": "答"}]},
        {"conversation": [{"human": "问", "assistant": "答"}], "category": "Brainstorming"},
        MOSS,
    ],
)
def test_every_shape_is_the_same_chat(record: dict[str, Any]) -> None:
    assert chats(record) == [PAIR]


def test_alpaca_with_everything() -> None:
    record = {"instruction": "翻译", "input": "hello", "output": "你好", "history": HISTORY, "system": "你是翻译。"}
    (found,) = chats(record)
    assert [m["role"] for m in found] == ["system", *["user", "assistant"] * 3]
    assert [m["content"] for m in found] == [
        "你是翻译。",
        "你好",
        "您好！",
        "几点了？",
        "三点。",
        "翻译\nhello",
        "你好",
    ]


def test_belle_turns() -> None:
    (found,) = chats({"instruction": "Human:一\nAssistant:二\nHuman: 三\nAssistant:\n", "input": "", "output": "四"})
    assert [m["content"] for m in found] == ["一", "二", "三", "四"]
    (found,) = chats({"instruction": "解释 Human: 这个词", "input": "", "output": "人"})
    assert found[0]["content"] == "解释 Human: 这个词"


def test_order_is_mended() -> None:
    roles = ["gpt", "human", "human", "gpt", "human"]
    record = {"conversations": [{"from": role, "value": str(i)} for i, role in enumerate(roles)]}
    assert chats(record) == [[{"role": "user", "content": "1\n2"}, {"role": "assistant", "content": "3"}]]
    assert chats({"messages": PAIR[:1]}, {"instruction": "问", "output": " "}) == []


@given(
    st.lists(
        st.tuples(st.sampled_from(["system", "human", "gpt", "tool"]), st.sampled_from(["", "甲", "乙"])), max_size=8
    )
)
def test_what_comes_out_can_be_rendered(turns: list[tuple[str, str]]) -> None:
    record = {"conversations": [{"from": role, "value": value} for role, value in turns]}
    for found in chats(record, on_bad="skip"):
        check_messages(found)
        assert found[-1]["role"] == "assistant"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "无"}, "no chat in it: keys are text, which is a text, but the corpus is taken as chats"),
        ({"无": "无"}, "no chat in it: keys are 无; known are messages"),
        ({"messages": [{"role": "king", "content": "朕"}]}, "unknown role 'king'"),
        ({"messages": [{"role": "user", "content": None}]}, "content must be text"),
        ({"messages": ["x"]}, "a message must be an object"),
        ({"instruction": "问", "output": 3}, "key 'output' must hold text"),
        ({"instruction": "问", "output": "答", "history": [["一"]]}, "pairs of question and answer"),
        ({"chat": {"turn_1": {"Human": "问"}}}, "must hold the texts Human and MOSS"),
    ],
)
def test_bad_chats(record: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=r"test, record 1: .*on_bad=skip") as caught:
        chats(record)
    assert message in str(caught.value)


def test_kinds_and_texts(tmp_path: Path) -> None:
    chat, text = (
        write_lines(tmp_path / "c.jsonl", [{"messages": PAIR}]),
        write_lines(tmp_path / "t.jsonl", [{"text": "文"}]),
    )
    assert CorpusChoice(path=str(chat)).open().kind == "chat" and CorpusChoice(path=str(text)).open().kind == "text"
    assert list(read_texts([CorpusChoice(path=str(p)) for p in (text, chat)])) == ["文", "问\n答"]
    assert (read_plain(CorpusChoice(path=str(chat), kind="text"))) == ["问\n答"]
    write_lines(tmp_path / "e.jsonl", [{"text": ""}])
    with pytest.raises(InputError, match="corpus e: no document"):
        list(read_texts([CorpusChoice(path=str(tmp_path / "e.jsonl"))]))


def test_cuts(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [{"text": "字" * n} for n in (9, 2, 8, 3, 4)])
    assert (read_plain(CorpusChoice(path=str(path), max_documents=3))) == ["字" * n for n in (9, 2, 8)]
    assert (read_plain(CorpusChoice(path=str(path), max_documents=2, max_characters=4))) == ["字" * 2, "字" * 3]


@pytest.mark.parametrize(
    ("given_keys", "message"),
    [
        ([], "give a name or a path"),
        (["name=idiom"], "unknown corpus 'idiom'; known are microworld"),
        (["name=idioms", "path=x"], "not both"),
        (["name=baidubaike"], "cannot be fetched"),
        (["path=x.jsonl", "label=a/b"], "plain folder name"),
        (["path=x.jsonl", "feild=a"], "did you mean field"),
    ],
)
def test_bad_choices(given_keys: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(CorpusChoice, None, given_keys)
    assert message in str(caught.value)


def test_wudao(tmp_path: Path) -> None:
    path = tmp_path / "part-2021278643.json"
    record = {"id": 7, "uniqueKey": "a1", "titleUkey": "b2", "dataType": "百科", "title": "标题", "content": "正文"}
    path.write_text(json.dumps([record]), "utf-8")
    assert read_plain(CorpusChoice(name="wudao", path=str(tmp_path / "*.json"))) == ["正文"]


def test_baidubaike(tmp_path: Path) -> None:
    record = {
        "title": "红楼梦",
        "summary": "小说。",
        "sections": [{"title": "作者", "content": "曹雪芹。"}],
        "tags": ["书"],
        "url": "u",
    }
    path = write_lines(tmp_path / "563w_baidubaike.json", [record, {**record, "summary": None, "sections": []}])
    choice = CorpusChoice(name="baidubaike", path=str(path))
    assert (read_plain(choice)) == ["红楼梦\n小说。\n作者\n曹雪芹。", "红楼梦"]
    assert choice.stored_as == "baidubaike"


def test_hub_corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = {
        "wikipedia-cn-20230720-filtered.json": json.dumps([{"completion": "昭通机场", "source": "wikipedia.zh2307"}]),
        "pretrain/train_encyclopedia.json": '{"text": "疾病"}\n', "pretrain/medical_book_zh.json": '{"text": "书"}\n',
        "finetune/train_zh_0.json": '{"instruction": "问", "input": "", "output": "答"}\n',
    }  # fmt: skip

    commit = "89abcdef" * 5  # the newest

    def download(repo: str, name: str, repo_type: str, revision: str | None) -> str:
        assert repo_type == "dataset" and "/" in repo
        path = tmp_path / "snapshots" / (revision or commit) / Path(name).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(published[name], "utf-8")
        return str(path)

    monkeypatch.setattr("babyllama.data.sources.hub.reach", lambda _: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    names = ["wikipedia_cn", "shibing624_medical_encyclopedia", "shibing624_medical_books", "shibing624_medical_sft"]
    assert [(read_plain(CorpusChoice(name=n))) for n in names] == [["昭通机场"], ["疾病"], ["书"], [PAIR]]

    first = CorpusChoice(name="wikipedia_cn", revision="01234567" * 5).open()
    for source, where in ((CorpusChoice(name="wikipedia_cn").open(), commit), (first, "01234567" * 5)):
        content = published["wikipedia-cn-20230720-filtered.json"].encode()
        assert source.source.endswith(f"at {where[:12]}") and source.fetched == (
            {"file": "wikipedia-cn-20230720-filtered.json", "revision": where,
             "sha256": hashlib.sha256(content).hexdigest()},)  # fmt: skip
    for choice in ({"name": "idioms"}, {"path": "x.jsonl"}):
        with pytest.raises(ValueError, match="revision is for a corpus from the hub"):
            CorpusChoice(**choice, revision=commit)

    def offline(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("Cannot find the file\nlong explanation")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(InputError, match=r"cannot be fetched .*give its path instead") as caught:
        CorpusChoice(name="wikipedia_cn").open()
    assert "\n" not in str(caught.value)


def hub_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, bytes]) -> None:
    """A hub with these files, named REPO/FILE, all of one commit, behind its own client."""
    commit = "ab" * 20

    def names(self: object, repo: str, **_: object) -> list[str]:
        return [name.removeprefix(f"{repo}/") for name in files if name.startswith(f"{repo}/")]

    def download(repo: str, name: str, repo_type: str, revision: str | None) -> str:
        assert revision in (None, commit)
        path = tmp_path / "snapshots" / commit / repo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[f"{repo}/{name}"])
        return str(path)

    info = type("Info", (), {"sha": commit})
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *_, **__: info)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", names)
    monkeypatch.setattr("babyllama.data.sources.hub.reach", lambda _: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


def lines_of(*records: dict[str, Any]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def test_many_files_of_the_hub_by_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"o/web/data/{n}.jsonl": lines_of({"text": f"第{n}篇"}) for n in ("b", "a", "c")}
    hub_of(monkeypatch, tmp_path, {**files, "o/web/README.md": b"#", "o/web/other/d.jsonl": lines_of({"text": "别的"})})
    every = CorpusChoice(path="hf://o/web/data/*.jsonl")
    assert read_plain(every) == ["第a篇", "第b篇", "第c篇"] and every.stored_as == "data"
    two = CorpusChoice(path="hf://o/web/data/*.jsonl", files=2, label="web").open()
    assert [one["file"] for one in two.fetched] == ["data/a.jsonl", "data/b.jsonl"] and two.part
    assert {one["revision"] for one in two.fetched} == {"ab" * 20}
    assert read_plain(CorpusChoice(path="hf://o/web/other/d.jsonl")) == ["别的"]
    with pytest.raises(InputError, match=r"o/web: no file fits x/\*; it has README.md, data/a.jsonl"):
        CorpusChoice(path="hf://o/web/x/*").open()
    with pytest.raises(ValueError, match="must be hf://OWNER/NAME/FILES"):
        CorpusChoice(path="hf://o/web")
    with pytest.raises(ValueError, match="files is for a corpus from the hub"):
        CorpusChoice(path="x.jsonl", files=2)


def test_offline_the_cache_says_which_files_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_of(monkeypatch, tmp_path, {"o/web/data/a.jsonl": lines_of({"text": "甲"})})
    assert read_plain(CorpusChoice(path="hf://o/web/data/*.jsonl")) == ["甲"]

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network\nlong explanation")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", offline)
    kept = str(tmp_path / "snapshots" / ("ab" * 20) / "o" / "web")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: kept)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name, **_: f"{kept}/{name}")
    assert read_plain(CorpusChoice(path="hf://o/web/data/*.jsonl")) == ["甲"]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(InputError, match=r"its files cannot be listed \(no network\); check the network") as caught:
        CorpusChoice(path="hf://o/web/data/*.jsonl").open()
    assert "\n" not in str(caught.value)


PUBLISHED_FORMS = {
    "ultra_fineweb_zh": (
        "openbmb/Ultra-FineWeb/data/ultrafineweb_zh/p0.parquet",
        {"content": "正文", "score": 0.9},
        "正文",
    ),
    "ultra_fineweb_l3_qa_zh": (
        "openbmb/Ultra-FineWeb-L3/data/ultrafineweb_zh_l3/qa/part-00000-0.c000.snappy.parquet",
        {"content": "正文\n问题：什么？\n答案：正文。"},
        "正文\n问题：什么？\n答案：正文。",
    ),
    "ultra_fineweb_l3_styles_zh": (
        "openbmb/Ultra-FineWeb-L3/data/ultrafineweb_zh_l3/multi_style/part-00000-0.c000.snappy.parquet",
        {"content": "定义与证明"},
        "定义与证明",
    ),
    "cci4_zh": ("BAAI/CCI4.0-M2-Base-v1/zh_cc-high-loss0/000_00000.jsonl", {"text": "网页"}, "网页"),
    "chinese_simpleqa": (
        "OpenStellarTeam/Chinese-SimpleQA/chinese_simpleqa.jsonl",
        {
            "id": "97e7",
            "primary_category": "中华文化",
            "secondary_category": "中医",
            "question": "伏兔穴所属的经脉是什么？",
            "answer": "足阳明胃经",
            "urls": ["https://example.org/a"],
        },
        "伏兔穴所属的经脉是什么？\n足阳明胃经",
    ),
    "skypile": ("Skywork/SkyPile-150B/data/2020-40_zh_head_0000.jsonl", {"text": "网页"}, "网页"),
    "medical_o1": (
        "FreedomIntelligence/medical-o1-reasoning-SFT/medical_o1_sft_Chinese.json",
        [{"Question": "怎么办？", "Complex_CoT": "想一想", "Response": "多喝水。"}],
        "怎么办？\n多喝水。",
    ),
    "huatuo_sft": (
        "FreedomIntelligence/HuatuoGPT-sft-data-v1/HuatuoGPT_sft_data_v1.jsonl",
        {"data": ["问：头疼？", "答：休息。", "问:还疼？", "答：看医生。"]},
        "头疼？\n休息。\n还疼？\n看医生。",
    ),
    "disc_med_sft": (
        "Flmc/DISC-Med-SFT/DISC-Med-SFT_released.jsonl",
        {
            "_id": "1",
            "source": "x",
            "conversation": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}],
        },
        "问\n答",
    ),
    "chatmed_consult": (
        "michaelwzhu/ChatMed_Consult_Dataset/ChatMed_Consult-v0.3.json",
        {"query": "问", "response": "答"},
        "问\n答",
    ),
    "fineweb_edu_zh": (
        "opencsg/Fineweb-Edu-Chinese-V2.1/4_5/0.parquet",
        {"text": "课文", "score": 4.5, "source": "CCI3"},
        "课文",
    ),
    "cosmopedia_zh": (
        "opencsg/chinese-cosmopedia/data/00000.parquet",
        {"text": "故事", "score": 0.9, "source": "wiki", "data_format": "小学教材"},
        "故事",
    ),
    "cci3_hq": ("BAAI/CCI3-HQ/data/part_000000.jsonl", {"id": "1", "text": "网页", "score": 3.2}, "网页"),
    "c4_zh": (
        "allenai/c4/multilingual/c4-zh.tfrecord-00000-of-01024.json.gz",
        {"text": "网页", "timestamp": "2019-01-16T07:10:12Z", "url": "http://example.org/"},
        "网页",
    ),
    "minimind_pretrain": (
        "jingyaogong/minimind_dataset/pretrain_hq.jsonl",
        {"text": "<|im_start|>问？\n答。<|im_end|>"},
        "<|im_start|>问？\n答。<|im_end|>",
    ),
    "minimind_sft": (
        "jingyaogong/minimind_dataset/sft_mini_512.jsonl",
        {"conversations": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]},
        "问\n答",
    ),
    "minimind_dpo": (
        "jingyaogong/minimind_dataset/dpo.jsonl",
        {"chosen": PAIR, "rejected": [PAIR[0], {"role": "assistant", "content": "不知道"}]},
        "问\n答",
    ),
    "coig_p": (  # as LLaMA-Factory has such pairs; not seen
        "m-a-p/COIG-P/data/train-00000-of-00010.parquet",
        {
            "conversations": [{"from": "human", "value": "问"}],
            "chosen": {"from": "gpt", "value": "答"},
            "rejected": {"from": "gpt", "value": "不知道"},
        },
        "问\n答",
    ),
    "belle_2m": (
        "BelleGroup/train_2M_CN/train_2M_CN.json",
        {"instruction": "问\n", "input": "", "output": "答"},
        "问\n\n答",
    ),
    "alpaca_zh": (
        "shibing624/alpaca-zh/alpaca_gpt4_data_zh.json",
        [{"instruction": "翻译", "input": "cat", "output": "猫"}],
        "翻译\ncat\n猫",
    ),
    "coig_cqia": (
        "m-a-p/COIG-CQIA/zhihu.jsonl",
        {
            "instruction": "问",
            "input": "",
            "output": "答",
            "task_type": {"major": ["问答"], "minor": []},
            "domain": ["常识"],
            "metadata": None,
            "answer_from": "human",
            "human_verified": True,
        },
        "问\n答",
    ),
    "r1_distill_zh": (
        "Congliu/Chinese-DeepSeek-R1-Distill-data-110k-SFT/distill_r1_110k_sft.jsonl",
        {"instruction": "问", "input": "", "output": "<think>想</think>答", "repo_name": "x", "score": 10},
        "问\n<think>想</think>答",
    ),
    "smoltalk_zh": (
        "opencsg/smoltalk-chinese/data/0.parquet",
        {"conversations": [{"from": "user", "value": "问"}, {"from": "assistant", "value": "答"}]},
        "问\n答",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED_FORMS)
def test_corpora_of_the_hub_in_their_published_form(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, record, text = PUBLISHED_FORMS[name]
    content = json.dumps(record).encode() if isinstance(record, list) else lines_of(record)
    if file.endswith(".gz"):
        content = gzip.compress(content)
    if file.endswith(".parquet"):
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), buffer)
        content = buffer.getvalue()
    hub_of(monkeypatch, tmp_path, {file: content})
    assert [document.text for document in read_documents(CorpusChoice(name=name))] == [text]


# ── embedded ───────────────────────────────────────────────────────────────────────────────────────────────────────
def wheel(member: str, content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as handle:
        handle.writestr(member, content)
    return archive.getvalue()


def sdist(member: str, content: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as handle:
        entry = tarfile.TarInfo(member)
        entry.size = len(content)
        handle.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with tiny archives in the published layout, under the hashes that they really have."""
    monkeypatch.setenv("BABYLLAMA_CACHE", str(tmp_path))
    idiom = {
        "word": "画蛇添足", "pinyin": "huà shé tiān zú", "abbreviation": "hstz",
        "explanation": "画蛇时给蛇添上脚。比喻做了多余的事。同多此一举”。",
        "derivation": "《战国策·齐策二》蛇固无足，子安能为之足？”", "example": "何必～？★《水浒传》第一回",
    }  # fmt: skip
    database = tmp_path / "laws.db"
    with sqlite3.connect(database) as connection:
        connection.execute(
            "CREATE TABLE articles (id INTEGER, law_id, law_name, chapter, section, article_no, article_text, status)"
        )
        rows = [(1, "第一条", "为了甲。", "现行有效"), (2, "第二条", "旧文。", "已废止")]
        insert = "INSERT INTO articles VALUES (?, 'a', '中华人民共和国甲法', '第一章 总则', NULL, ?, ?, ?)"
        connection.executemany(insert, rows)
    graph = {
        "糖尿病": {"常见症状": ["多饮", "多尿", "多尿症", "伴消瘦"], "就诊科室": ["内分泌科"], "ICD10": ["E14"]},
        "感冒": {"常见症状": [f"{c}痛" for c in "头眼鼻耳喉胸背腹腿"]},
    }
    contents = {
        "IDIOMS": wheel(
            packages.IDIOMS.member, json.dumps([idiom, {**idiom, "explanation": "无", "word": "无此"}]).encode()
        ),
        "SANGUO": wheel(packages.SANGUO.member, json.dumps(["第一回　桃园\n\n  \n\t话说天下大势。\n\n"]).encode()),
        "LAWS": wheel(packages.LAWS.member, database.read_bytes()),
        "MEDICAL": sdist(packages.MEDICAL.member, pickle.dumps(graph)),
    }
    for name, content in contents.items():
        package = replace(getattr(packages, name), sha256=hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(packages, name, package)
        (tmp_path / package.file).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("name,form,hinted", [("a.txt", "auto", True), ("a.txt", "lines", False),
                                              ("a.jsonl", "auto", False)])  # fmt: skip
def test_a_text_file_that_is_one_document_comes_with_a_hint(tmp_path, name, form, hinted):
    (tmp_path / name).write_text('{"text": "一"}\n', "utf-8")
    source = CorpusChoice(path=str(tmp_path / name), format=form).open()
    assert any("format: lines" in hint for hint in source.hints) == hinted


def test_embedded_entries(cache: Path) -> None:
    def found(name: str) -> list[Any]:
        return read_plain(CorpusChoice(name=name))

    assert found("idioms") == [
        "画蛇添足：画蛇时给蛇添上脚。比喻做了多余的事。同“多此一举”。\n"
        "出自《战国策·齐策二》：“蛇固无足，子安能为之足？”\n例句：何必画蛇添足？（《水浒传》第一回）"
    ]
    assert (
        found("idiom_qa")[0][1]["content"] == "“画蛇添足”的意思是：画蛇时给蛇添上脚。比喻做了多余的事。同“多此一举”。"
    )
    assert found("sanguo") == ["第一回 桃园\n话说天下大势。"]
    assert found("laws") == ["中华人民共和国甲法\n第一章 总则\n第一条 为了甲。"]
    assert [m[1]["content"] for m in found("law_qa")] == ["《甲法》第一条规定：为了甲。"]
    assert found("medical_text") == [
        "糖尿病的常见症状有多饮、多尿，患者可到内分泌科就诊。",
        "感冒的常见症状有头痛、眼痛、鼻痛、耳痛、喉痛、胸痛、背痛、腹痛。",
    ]
    assert {m[1]["content"] for m in found("medical_qa")} == {
        "糖尿病的常见症状有多饮、多尿。",
        "糖尿病可以到内分泌科就诊。",
        "感冒的常见症状有头痛、眼痛、鼻痛、耳痛、喉痛、胸痛。",
    }
    assert all(CORPORA[name].licence for name in CORPORA)


def fake_pip(monkeypatch: pytest.MonkeyPatch, stderr: str) -> None:
    class Failed:
        returncode = 1

        def __init__(self, command: list[str], **_: object) -> None:
            self.stderr = stderr

    monkeypatch.setattr(packages.subprocess, "run", Failed)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("python: No module named pip", "pip is missing"),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
            "another file than the pinned one",
        ),
        (
            "WARNING: x\nERROR: Could not find a version\nERROR: No matching distribution found",
            "No matching distribution",
        ),
    ],
)
def test_download_faults(cache: Path, monkeypatch: pytest.MonkeyPatch, log: str, message: str) -> None:
    (cache / packages.IDIOMS.file).write_bytes(b"damaged: fetched anew")
    fake_pip(monkeypatch, log)
    with pytest.raises(InputError) as caught:
        list(knowledge.idioms())
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not [p for p in cache.iterdir() if p.is_dir()]


def test_another_file_than_the_pinned_one_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever pip says of it: neither what it fetched nor what lies in the cache is read without its hash."""

    class Served:
        returncode, stderr = 0, ""

        def __init__(self, command: list[str], **_: object) -> None:
            target = Path(command[command.index("-d") + 1]) / packages.IDIOMS.file
            target.write_bytes(wheel(packages.IDIOMS.member, b"[]"))

    monkeypatch.setattr(packages.subprocess, "run", Served)
    cached = cache / packages.IDIOMS.file
    cached.write_bytes(wheel(packages.IDIOMS.member, b"[]"))
    with pytest.raises(InputError, match="the index served another file"):
        list(knowledge.idioms())
    assert cached.read_bytes() == wheel(packages.IDIOMS.member, b"[]")  # not replaced by what was refused


def test_order_is_of_the_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a corpus is a fair sample of it, and files come in the order of their names."""
    records = [{"text": f"第{number}篇"} for number in range(40)]
    found = []
    for given_order in (records, records[::-1]):
        corpus = replace(CORPORA["idioms"], records=lambda given_order=given_order: iter(given_order))
        monkeypatch.setitem(CORPORA, "idioms", corpus)
        found.append(read_plain(CorpusChoice(name="idioms")))
    texts = [record["text"] for record in records]
    assert found[0] == found[1] != texts and sorted(found[0]) == sorted(texts) and found[0] != texts[::-1]
    for name in "cab":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    listed = list(tmp_path.iterdir())
    for order in (listed, listed[::-1]):
        monkeypatch.setattr(Path, "rglob", lambda *_, order=order: iter(order))
        monkeypatch.setattr(finding.glob, "glob", lambda *_, order=order, **__: list(map(str, order)))
        assert read_plain(CorpusChoice(path=str(tmp_path))) == ["a", "b", "c"]
        assert read_plain(CorpusChoice(path=f"{tmp_path}/*.jsonl")) == ["a", "b", "c"]


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('pickle ran code')",))


def test_pickle_is_data_only() -> None:
    good = {"甲": {"乙": ["丙", 1, 2.0, None, True]}}
    assert packages.read_plain_pickle(pickle.dumps(good), "x") == good
    for protocol in range(6):
        with pytest.raises(InputError, match="x: refused, it is not plain data"):
            packages.read_plain_pickle(pickle.dumps(Malicious(), protocol), "x")
    with pytest.raises(InputError, match="more than 10"):
        packages.read_plain_pickle(pickle.dumps(good), "x", max_bytes=10)
    with pytest.raises(InputError, match="refused"):
        packages.read_plain_pickle(b"\x80", "x")


@pytest.mark.slow
def test_real_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the user's own pip; needs a package index."""
    monkeypatch.setenv("BABYLLAMA_CACHE", str(tmp_path))
    counts = {name: len(read_plain(CorpusChoice(name=name)))
              for name, corpus in CORPORA.items() if corpus.records}  # fmt: skip
    assert counts["sanguo"] == 120 and counts["laws"] == 352
    assert counts["idioms"] > 30_000 and counts["law_qa"] > 20_000 and counts["medical_qa"] > 50_000
