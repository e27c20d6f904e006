"""Small trainings of every kind, and ways to spoil one: for the doctor's tests. Texts and chats are made here."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from babyllama.commands import prepare, train
from babyllama.commands.doctor import DoctorRecipe, main
from babyllama.data.shards.shards import Prepared
from babyllama.data.sources.corpora import CorpusChoice
from babyllama.foresight.doctor import CHECKS
from babyllama.recipe import dump_recipe, load_recipe
from babyllama.run import Run
from babyllama.tokenizer.train import train_bpe

MODEL = ("init.model.preset=tiny", "init.model.hidden_size=48", "init.model.num_hidden_layers=2",
         "init.model.num_attention_heads=4", "init.model.num_key_value_heads=2")  # fmt: skip
PLAN = ("plan.steps=60", "plan.micro_batch_size=8", "plan.context=64", "plan.save_every=60", "plan.log_every=5",
        "plan.validate_every=15", "device=cpu", "precision=fp32")  # fmt: skip
WORDS = ("今天 昨天 早上 晚上 夏天 冬天", "小羊 老师 医生 农夫 学生 妈妈 小狗 国王", "喜欢 看见 买了 画了 找到 吃了",
         "苹果 一本书 红色的花 一条河 大山 月亮 白云 小船", "很高兴 有点累 不说话 笑了 睡着了")  # fmt: skip


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    when, who, does, what, feels = (words.split() for words in WORDS)

    def sentence() -> str:
        first = draw.choice(when) + draw.choice(who) + draw.choice(does) + draw.choice(what)
        return f"{first}，{draw.choice(who)}{draw.choice(feels)}。"

    return ["".join(sentence() for _ in range(draw.randint(2, 6))) for _ in range(count)]


def chats(count: int, seed: int) -> list[dict]:
    found = []
    for text in texts(count, seed):
        first, second = text.split("。")[:2]
        messages = [{"role": "user", "content": f"说说{first}？"}, {"role": "assistant", "content": f"{second}。"}]
        found.append({"messages": messages})
    return found


class World:
    """A folder with a tokenizer, texts, chats and a base model that has learned the texts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = folder / "tok"
        self.tokenizer.mkdir()
        train_bpe(texts(300, 0), 400).save(self.tokenizer)
        self.prepare("texts", [{"text": text} for text in texts(1000, 0)])
        self.prepare("chats", chats(400, 1))
        self.train("base", f"data.path={folder}/texts", *MODEL)

    def prepare(self, name: str, lines: list[dict], **keys: object) -> Path:
        file = self.folder / f"{name}.jsonl"
        file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), "utf-8")
        prepare.main(prepare.PrepareRecipe(**{
            "out": self.folder / name, "tokenizer": self.tokenizer, "validation": 0.05, "workers": 1,
            "corpora": (CorpusChoice(path=str(file)),), **keys}))  # fmt: skip
        return self.folder / name

    def recipe(self, name: str, *words: str) -> train.TrainRecipe:
        return load_recipe(train.TrainRecipe, None, [f"out={self.folder}/{name}", *PLAN, *words])

    def train(self, name: str, *words: str) -> Path:
        if not (self.folder / name / "run.json").exists():
            train.main(self.recipe(name, *words))
        return self.folder / name

    def written(self, name: str, *words: str) -> Path:
        """A train recipe as a file."""
        file = self.folder / f"{name}.yaml"
        file.write_text(dump_recipe(self.recipe(name, *words)), "utf-8")
        return file

    def copied(self, name: str, source: str) -> Path:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return Path(shutil.copytree(self.folder / source, self.folder / name))


def examined(target: Path, out: Path, *words: str) -> dict[str, dict]:
    """What the verb says is wrong: check → finding."""
    recipe = load_recipe(DoctorRecipe, None, [f"target={target}", f"out={out}", "device=cpu", *words])
    try:
        main(recipe)
        code = 0
    except SystemExit as left:
        code = left.code
    report = json.loads(out.read_text("utf-8"))
    found = {f["check"]: f for f in report["findings"] if f["verdict"] == "fault"}
    assert [f["check"] for f in report["findings"]] == list(CHECKS)
    assert code == bool(found) and report["healthy"] == (not found)
    for finding in found.values():
        assert finding["where"] and finding["evidence"] and finding["remedy"], finding
    return found


# ── data ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def shards(folder: Path, split: str, bend: Callable[[np.ndarray], np.ndarray]) -> None:
    """Each shard of a split, bent in place."""
    for file in folder.rglob(f"{split}-*.bin"):
        bend(np.fromfile(file, "<u2")).astype("<u2").tofile(file)


def masks(folder: Path, bend: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """The mask of each training shard, made anew of (tokens, mask)."""
    for file in folder.rglob("train-*.mask"):
        bend(np.fromfile(file.with_suffix(".bin"), "<u2"), np.fromfile(file, "u1")).astype("u1").tofile(file)


def manifest(folder: Path, **changes: object) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}), "utf-8")


def held_out_from_training(folder: Path) -> None:
    """The validation split becomes the first twenty documents of the training split."""
    label = next(iter(Prepared.open(folder).corpora))
    train, held = (next(folder.rglob(f"{split}-*.bin")) for split in ("train", "val"))
    rows = np.fromfile(train.with_suffix(".docs"), "<u4").reshape(-1, 2)[:20]
    tokens = np.fromfile(train, "<u2")[: rows[:, 0].sum()]
    tokens.tofile(held)
    rows.tofile(held.with_suffix(".docs"))
    corpora = json.loads((folder / "manifest.json").read_text("utf-8"))["corpora"]
    corpora[label]["splits"]["val"]["shards"][0] |= {"tokens": len(tokens), "documents": 20}
    manifest(folder, corpora=corpora)


# ── weights ────────────────────────────────────────────────────────────────────────────────────────────────────────
def weights(run: Path, part: str, bend: Callable[[torch.Tensor], torch.Tensor], state: bool = True) -> Path:
    """The tensors with `part` in their name, bent in model/ and, sealed anew, in the newest checkpoint too."""

    def bent(file: Path) -> None:
        found = load_file(file)
        mine = {n: bend(t.clone()) if part in n and "exp_avg" not in n and t.ndim == 2 else t for n, t in found.items()}
        save_file(mine, file, metadata={"format": "pt"})

    bent(run / "model" / "model.safetensors")
    if state:
        step, folder = Run(run).states()[-1]
        whole = shutil.copytree(folder, run / "whole")
        bent(whole / "state.safetensors")
        (whole / "files.json").unlink()
        Run(run).save_state(step, lambda new: shutil.copytree(whole, new, dirs_exist_ok=True) and None)
    return run
