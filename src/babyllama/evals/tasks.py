"""Tasks as data: one entry each. Where its items come from, how they are put to a model, what it is and under which
licence. A choice of one, with its settings, is a value in a recipe.

Not here: readers of files (sources.py, free_sources.py), sets made by rules (made.py), scores (suites.py).
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from babyllama.data.sources.hub import HubFile, fetch
from babyllama.errors import InputError
from babyllama.evals import free_sources, sources
from babyllama.evals.choices import Form, Normalise, Scoring
from babyllama.evals.free import Free
from babyllama.evals.items import Item, Items, checked
from babyllama.evals.made import made
from babyllama.evals.subjects import CEVAL, CMMLU
from babyllama.recipe import Recipe, Seed

PLAIN = Form()
_ASKED = Form("cloze", ask="\n答案：")
_EXAM = "以下是中国关于{subject}的单项选择题，请选出其中的正确答案。\n\n"
_CMMLU = "以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\n\n"


@dataclass(frozen=True)
class Task:
    """One test.

    Attributes:
        read: records of its files → items; None: it is made here.
        form, normalise: how it is put and chosen unless the recipe says otherwise.
        get: where its files are had.
        free: how answers are marked that the model writes; None: it chooses among options.
        hub: its files on the hub, if they can be fetched from there; None where `get` is by hand.
        chat: always asked in the model's chat template.
    """

    about: str
    licence: str = "public domain"
    read: sources.Reader | None = None
    form: Form = PLAIN
    normalise: Normalise = "none"
    split: str = "val"
    get: str = ""
    free: Free | None = None
    hub: tuple[HubFile, ...] = ()
    subjects: dict[str, str] | None = None
    chat: bool = False


_CLUE = "github.com/CLUEbenchmark"
_CEVAL_FILES = tuple(HubFile("ceval/ceval-exam", f"{subject}/{split}-00000-of-00001.parquet")
                     for subject in CEVAL for split in ("dev", "val", "test"))  # fmt: skip
TASKS: dict[str, Task] = {
    "minimal_pairs": Task("the grammatical of two sentences that differ in a word of grammar, by rules"),
    "measure_words": Task("the right of two measure words before a noun (量词), by rules"),
    "word_order": Task("the possible of two orders of the same words, by rules"),
    "induction": Task("the next character of a row that is said again, drawn"),
    "copying": Task("the word that was said before, drawn"),
    "arithmetic": Task("the right result of a sum, difference or product, drawn"),
    "hanzi_parts": Task("the hanzi that is made of two others (拆字), written here"),
    "common_knowledge": Task("facts that every child knows, to complete, written here"),
    "idioms": Task("the last hanzi of an idiom (成语), written here"),
    "verses": Task("the last hanzi of a verse (古诗), written here"),
    "word_problems": Task("word problems of arithmetic with a number as answer, drawn", form=_ASKED,
                          free=Free("number", 32)),
    "passkey": Task("a number that was said in a text of 30 to 300 characters, drawn", form=Form(),
                    free=Free("number", 12)),
    "instructions": Task("instructions whose keeping a rule can check, written here (IFEval's idea)", chat=True,
                         free=Free("instruction", 160)),
    "refusals": Task("questions to refuse beside questions to answer, written here", chat=True,
                     free=Free("refusal", 64)),
    "ceval": Task("C-Eval: 52 subjects of Chinese exams", "CC BY-NC-SA 4.0", sources.exam,
                  Form("letter", intro=_EXAM, ask="\n答案："),
                  get="huggingface.co/datasets/ceval/ceval-exam", hub=_CEVAL_FILES, subjects=CEVAL),
    "cmmlu": Task("CMMLU: 67 subjects in Chinese", "CC BY-NC-SA 4.0", sources.exam,
                  Form("letter", intro=_CMMLU, ask="\n答案："),
                  split="test", get="huggingface.co/datasets/haonan-li/cmmlu",
                  hub=(HubFile("haonan-li/cmmlu", "cmmlu_v1_0_1.zip"),), subjects=CMMLU),
    "c3": Task("C3: questions on texts and dialogues", "research only", sources.c3, _ASKED,
               "character", get="github.com/nlpdata/c3 (c3-m-dev.json, c3-d-dev.json)"),
    "chid": Task("ChID (FewCLUE): the idiom that fits a gap", "none stated", sources.chid, split="test",
                 get=f"{_CLUE}/FewCLUE (chid/test_public.json)"),
    "cluewsc": Task("CLUEWSC2020 (FewCLUE): does the pronoun mean the noun?", "none stated", sources.cluewsc,
                    split="test", get=f"{_CLUE}/FewCLUE (cluewsc/test_public.json)"),
    "ocnli": Task("OCNLI: does a sentence follow, may it, or not?", "CC BY-NC 2.0", sources.ocnli,
                  get=f"{_CLUE}/OCNLI (dev.json)"),
    "cmb": Task("CMB: Chinese medical exams, questions with one answer", "Apache-2.0", sources.medical_exam,
                Form("letter", intro="以下是医学考试的单项选择题，请选出其中的正确答案。\n\n", ask="\n答案："),
                get="huggingface.co/datasets/FreedomIntelligence/CMB (CMB-val, CMB-test)"),
    "cmexam": Task("CMExam: the medical licensing exam, questions with one answer", "Apache-2.0", sources.medical_exam,
                   Form("letter", intro="以下是医学考试的单项选择题，请选出其中的正确答案。\n\n", ask="\n答案："),
                   get="github.com/williamliujl/CMExam"),
    "gsm8k_zh": Task("GSM8K in Chinese: word problems with a number as answer", "MIT", free_sources.gsm8k, _ASKED,
                     split="test", free=Free("number", 256),
                     get="huggingface.co/datasets/meta-math/GSM8K_zh (GSM8K_zh.json)"),
    "chinese_simpleqa": Task("Chinese SimpleQA: short questions on facts", "CC BY-NC-SA 4.0", free_sources.simple_qa,
                             _ASKED, split="test", free=Free("fact", 48),
                             get="huggingface.co/datasets/OpenStellarTeam/Chinese-SimpleQA, or "
                             "github.com/OpenStellarTeam/ChineseSimpleQA (data/chinese_simpleqa.csv)",
                             hub=(HubFile("OpenStellarTeam/Chinese-SimpleQA", "chinese_simpleqa.jsonl"),)),
    "cmrc": Task("CMRC 2018: the words of a text that answer a question", "CC BY-SA 4.0", free_sources.cmrc,
                 _ASKED, free=Free("span", 48),
                 get="github.com/ymcui/cmrc2018 (cmrc2018_dev.json)"),
    "gaokao": Task("GAOKAO in AGIEval: the college entrance exam", "MIT", sources.gaokao,
                   Form("letter", intro="以下是高考的单项选择题，请选出其中的正确答案。\n\n", ask="\n答案："),
                   split="test", get="github.com/ruixiangcui/AGIEval (data/v1_1/gaokao-*.jsonl)"),
    "agieval_zh": Task("AGIEval in Chinese: college entrance, logic, law; questions with one answer", "MIT",
                       sources.gaokao,
                       Form("letter", intro="以下是单项选择题，请选出其中的正确答案。\n\n", ask="\n答案："),
                       split="test",
                       get="github.com/ruixiangcui/AGIEval (data/v1_1: gaokao-*, logiqa-zh, jec-qa-*)"),
    "gaokao_bench": Task("GAOKAO-Bench: objective questions of the college entrance exam with one answer", "Apache-2.0",
                         sources.gaokao_bench,
                         Form("letter", intro="以下是高考的单项选择题，请选出其中的正确答案。\n\n", ask="\n答案："),
                         split="test", get="github.com/OpenLMLab/GAOKAO-Bench (Data/Objective_Questions/2010-*.json)"),
    "cvalues": Task("CValues: the responsible of two replies", "Apache-2.0", sources.cvalues, _ASKED, "character",
                    split="test", get="github.com/X-PLUG/CValues (dataset/cvalues_responsibility_mc.jsonl), or "
                    "modelscope.cn/datasets/damo/CValues-Comparison (test.jsonl)"),
    "longbench": Task("LongBench in Chinese: questions, summaries, classes and retrieval over long texts", "MIT",
                      free_sources.longbench, free=Free("long", 128, middle=True), split="test",
                      get="huggingface.co/datasets/THUDM/LongBench (data.zip: multifieldqa_zh, dureader, vcsum, lsht, "
                      "passage_retrieval_zh)", hub=(HubFile("THUDM/LongBench", "data.zip"),)),
    "tool_calls": Task("the tool that a question needs, by name and arguments", "your own", free_sources.tool_calls,
                       chat=True, free=Free("call", 160), split="test",
                       get="a JSON-lines file of messages, tools and expected"),
}  # fmt: skip


class TaskChoice(Recipe):
    """A task with its settings; its name alone is enough."""

    name: str = Field(description="of a task")
    path: Path | None = Field(
        default=None, description="its files: one, a folder or a .zip; default: task_data, or the hub"
    )
    revision: str | None = Field(default=None, description="commit on the hub; default: the newest")
    split: Literal["dev", "val", "test", "train"] | None = Field(default=None, description="default: the task's own")
    scoring: Scoring | None = Field(
        default=None, description="letter and text show the options; default: the task's own"
    )
    normalise: Normalise | None = Field(default=None, description="divide log-likelihoods by; default: the task's own")
    shots: int = Field(default=0, ge=0, description="worked examples before each question, of its subject's dev split")
    chat: bool = Field(default=False, description="ask in the model's chat template")
    groups: tuple[str, ...] = Field(default=(), description="subjects; default: all")
    max_items: int | None = Field(default=None, ge=1, description="a sample of so many, always the same; default: all")
    seed: Seed = Field(default=0, description="of a task that is made here")
    label: str | None = Field(default=None, pattern=r"^[\w-][\w.-]*$", description="its name in the results")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("groups"), list):
            return {**value, "groups": tuple(value["groups"])}  # what comes from here is no longer YAML to pydantic
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in TASKS:
            raise ValueError(f"unknown task {name!r}; there are {', '.join(TASKS)}")
        return name

    @model_validator(mode="after")
    def _free_answers_have_no_options(self) -> TaskChoice:
        if self.task.free and (self.scoring or self.normalise):
            raise ValueError(f"{self.name} has free answers: scoring and normalise are for tests of choice")
        return self

    @property
    def least(self) -> int:
        """Options of an item: of a free answer one reference is enough."""
        return 1 if self.task.free else 2

    @property
    def task(self) -> Task:
        return TASKS[self.name]

    @property
    def called(self) -> str:
        """Its name in results, which tells what is not usual about it."""
        unusual = [str(x) for x in (self.scoring, self.normalise, self.split) if x]
        unusual += [f"{self.shots}-shot"] * bool(self.shots) + ["chat"] * self.chat
        return self.label or "-".join([self.name, *unusual])

    @property
    def form(self) -> Form:
        return replace(self.task.form, scoring=self.scoring or self.task.form.scoring, shots=self.shots,
                       chat=self.chat or self.task.chat)  # fmt: skip

    def found(self, task_data: Path | None) -> Path | None:
        """Its files on this machine: `path`, or what is called as the task is in the folder `task_data`. Raises
        InputError: that is none."""
        if task_data is not None and not task_data.is_dir():
            raise InputError(f"task_data: {task_data} is not a folder; give the one with the tests' files")
        if self.path is not None or task_data is None:
            return self.path
        places = sorted(p for p in task_data.glob(f"{self.name}*") if p.stem.split(".")[0] == self.name)
        return places[0] if places else None

    def items(self, task_data: Path | None) -> Items:
        """Raises InputError: its files are not there, cannot be fetched, or hold what is no item."""
        task = self.task
        if task.read is None:
            drawn = ((self.name, item) for item in made(self.name, self.seed))
            return Items(self._some(checked(drawn, self.least)), {})
        path, split = self.found(task_data), self.split or task.split
        paths = [path] if path is not None else self._fetched(split)
        kinds: dict[str, list[tuple[str, Item]]] = defaultdict(list)
        for place in paths:
            for row in sources.rows_of(place):
                kinds[row.split or split].extend((row.where, item) for item in task.read(row))
        asked = [pair for pair in kinds.get(split, []) if not self.groups or pair[1].group in self.groups]
        if not asked:
            has = ", ".join(sorted(kinds)) or "no item"
            wanted = f"of {', '.join(self.groups)} " if self.groups else ""
            raise InputError(f"{paths[0]}: {self.name} has no item {wanted}in split {split}; there is {has}")
        examples: dict[str, list[Item]] = defaultdict(list)
        for item in checked(kinds.get("dev", []), self.least) if split != "dev" else ():
            examples[item.group].append(item)
        return Items(self._some(checked(asked, self.least)), {group: tuple(held) for group, held in examples.items()})

    def _some(self, items: tuple[Item, ...]) -> tuple[Item, ...]:
        if self.max_items is None or len(items) <= self.max_items:
            return items
        picked = set(random.Random(0).sample(range(len(items)), self.max_items))
        return tuple(item for place, item in enumerate(items) if place in picked)

    def _fetched(self, split: str) -> list[Path]:
        task = self.task
        if not task.hub:
            raise InputError(f"{self.name}: {self.how}")
        wanted = [f for f in task.hub if "/" not in f.name or f.name.split("/")[1].split("-")[0] in (split, "dev")]
        return [fetch(replace(file, revision=self.revision), self.how).path for file in wanted]

    @property
    def how(self) -> str:
        """What to do when its files are not here."""
        return f"get it from {self.task.get} and write {{name: {self.name}, path: …}} for {self.name}"


CHAT = tuple(TaskChoice(name=name) for name in ("instructions", "refusals", "cvalues"))
EARLY = tuple(TaskChoice(name=name) for name, task in TASKS.items() if task.read is None and not task.free)
SUITES: dict[str, tuple[TaskChoice, ...]] = {
    "zh-early": EARLY,
    "zh-chat": CHAT,
    "zh-small": (
        *EARLY,
        TaskChoice(name="word_problems"),
        TaskChoice(name="ceval"),
        TaskChoice(name="ceval", scoring="cloze", normalise="character"),
        TaskChoice(name="cmmlu"),
        TaskChoice(name="cmmlu", scoring="cloze", normalise="character"),
        *(TaskChoice(name=name) for name in ("c3", "chid", "cluewsc", "ocnli", "cmb", "gaokao", "cmrc", "gsm8k_zh")),
    ),
}
