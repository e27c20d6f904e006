"""The quickstart in miniature, for tests: all its stages, few records, two training steps each.

It takes half a minute, so that all processes of a session share one: `quickstart_once`.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Container
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from babyllama.commands import quickstart as stages
from babyllama.commands.quickstart import STAGES
from babyllama.data.microworld.skills import chats
from babyllama.data.sources import knowledge, packages
from babyllama.data.sources.known import CORPORA
from babyllama.recipe import Recipe, load_recipe
from babyllama.verbs import app
from once import once


def small_packages(package) -> bytes:
    """Small files of the real formats, instead of the ones that are downloaded."""
    if package is packages.MEDICAL:
        kinds = ("糖尿病", "肺炎", "胃炎", "头痛", "鼻炎", "贫血")
        facts = {f"{part}{kind}": {"常见症状": ["发热", "咳嗽", "乏力"], "就诊科室": ["内科"], "检查": ["血常规"]}
                 for kind in kinds for part in ("急性", "慢性", "小儿", "老年")}  # fmt: skip
        return pickle.dumps(facts)
    numbers = "一二三四五六七八九十百千"
    words = [f"{a}{b}成{c}" for a in numbers for b in "心意言语" for c in "功事"]
    return json.dumps([{"word": w, "explanation": f"形容{w[0]}件事情很快地完成。", "derivation": "无", "example": "无"}
                       for w in words], ensure_ascii=False).encode()  # fmt: skip


WORDS, DOCUMENTS = 240, 80  # records of each corpus for the vocabulary, which is then as large as the real one; else


def fewer_chats(patch: pytest.MonkeyPatch) -> None:
    """Of each skill a twentieth from which records are taken, since all are put in order first; texts stay as many:
    few are as long as a chapter needs them."""
    for name, corpus in CORPORA.items():
        if isinstance(made := corpus.records, partial) and made.func is chats:
            skill, *counts = made.args
            patch.setitem(CORPORA, name, replace(corpus, records=partial(chats, skill, *(n // 20 for n in counts))))


def small_overrides(only: Container[str] = CORPORA) -> list[str]:
    """Of the CPU's quickstart: the model keeps its shape, so that what a chapter says of shapes can be checked.

    Args:
        only: of the corpora.
    """
    found = ["corpus:validation=0.2"]
    for stage in STAGES:
        recipe = _recipe(stage.verb, stage.recipe, stage.name)
        if stage.verb == "train":
            weights = {name: weight for name, weight in recipe.data.weights.items() if name in only}
            found.append(f"{stage.name}:data.weights={json.dumps(weights)}")
            found += [f"{stage.name}:{key}" for key in ("plan.steps=2", "plan.micro_batch_size=4", "device=cpu",
                                                        "precision=fp32", "plan.validation_tokens=500",
                                                        "samples.max_tokens=2")]  # fmt: skip
        elif stage.verb == "evaluate":
            found += [f"{stage.name}:{key}" for key in ("questions=2", "loss_tokens=500", "device=cpu",
                                                        "answer_tokens=4")]  # fmt: skip
        else:
            key, corpora = ("source.corpora", recipe.source.corpora) if stage.verb == "tokenizer" else (
                "corpora", recipe.corpora)  # fmt: skip
            fewer = [{"name": c.name, **({"max_characters": c.max_characters} if c.max_characters else {}),
                      "max_documents": WORDS if stage.verb == "tokenizer" else DOCUMENTS}
                     for c in corpora if c.name in only]  # fmt: skip
            found.append(f"{stage.name}:{key}={json.dumps(fewer)}")
            found += [f"{stage.name}:workers=1"] if stage.verb == "prepare" else []
    return found


def _recipe(verb: str, kind: str, stage: str) -> Any:
    recipe_type: type[Recipe] = getattr(import_module(f"babyllama.commands.{verb}"), kind)
    return load_recipe(recipe_type, f"quickstart/cpu/{stage}")


def quickstart(out: Path | str, live: bool = False) -> None:
    """`babyllama quickstart`, small. The packages must be `small_packages`."""
    words = ["quickstart", f"out={out}", "size=cpu", f"live={live}", f"overrides={json.dumps(small_overrides())}"]
    app(words, standalone_mode=False)


def quickstart_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/quickstart, to be read and not written; beside it said.txt, what was printed, page.json, the
    runs that the page of its address showed after each stage, and again.txt, what the same command said once more."""
    return once(tmp_path_factory, "quickstart", _make)


def _make(folder: Path) -> None:
    on_the_page, real = [], stages._run

    def then_look(stage, *more):
        real(stage, *more)
        found = re.search(r"until it ends: (http://127\.0\.0\.1:\d+)\n", said.getvalue())
        assert found, said.getvalue()
        runs = httpx.get(f"{found[1]}/api/runs", timeout=30).json()["runs"]
        on_the_page.append({run["id"]: run["status"] for run in runs})

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(knowledge, "read_member", small_packages)
        fewer_chats(patch)
        with redirect_stdout(StringIO()) as said, patch.context() as watched:
            watched.setattr(stages, "_run", then_look)
            quickstart("runs/quickstart", live=True)
        with redirect_stdout(StringIO()) as again:
            quickstart("runs/quickstart")
    for name, text in (("said.txt", said.getvalue()), ("again.txt", again.getvalue()),
                       ("page.json", json.dumps(on_the_page))):  # fmt: skip
        (folder / name).write_text(text, "utf-8")
