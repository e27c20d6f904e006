"""The figures of lessons 8 to 13, drawn from a quickstart's runs: docs/images/course-NAME.svg.

    python docs/course/figures_more.py [NAME …]      in a folder that holds a finished runs/quickstart

As figures.py, which draws those of lessons 1 to 7.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from random import Random
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from figures import BLUE, FIGURES, GREEN, GREY, ORANGE, RED, RUNS, draw
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from babyllama.data.shards.shards import Prepared
from babyllama.evals.statistics import wilson
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.load import load
from babyllama.model.laws import LinearRope, NtkRope, PlainRope, RopeConfig, YarnRope
from babyllama.model.rope import FREQUENCIES
from babyllama.quant.rtn import Rtn
from babyllama.tokenizer.chat import render_chat

STRETCH: dict[str, Any] = {"theta": 10_000.0, "factor": 4, "original": 64}
LAWS: dict[str, RopeConfig] = {"plain": PlainRope(theta=10_000.0), "linear": LinearRope(**STRETCH),
                               "ntk": NtkRope(**STRETCH), "yarn": YarnRope(**STRETCH)}  # fmt: skip
COLOURS = {"plain": GREY, "linear": ORANGE, "ntk": GREEN, "yarn": BLUE}


def lora() -> Figure:
    """How the error falls while patches of some ranks are trained; how much rank full fine-tuning's change has."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    torch.manual_seed(0)
    weight = load(RUNS / "base", precision="fp32").model.layers[0].self_attn.q_proj.weight
    wanted = weight + torch.randn(len(weight), 4) @ torch.randn(4, weight.shape[1]) / weight.shape[1]
    for rank, colour in ((1, RED), (2, ORANGE), (4, GREEN), (8, BLUE)):
        left.semilogy(_fitted(weight, wanted, rank), color=colour, label=f"rank {rank}")
    left.set(title="a change of rank 4, learned by a patch", xlabel="step", ylabel="error", ylim=(1e-9, 0.1))
    left.legend(frameon=False)
    before, after = (load(RUNS / name, precision="fp32").model for name in ("base", "general"))
    for name, colour in (("self_attn.q_proj", BLUE), ("mlp.up_proj", ORANGE)):
        old, new = (model.get_submodule(f"layers.0.{name}").weight for model in (before, after))
        energy = torch.linalg.svdvals(new - old) ** 2
        right.plot(range(1, len(energy) + 1), energy.cumsum(0) / energy.sum(), color=colour, label=name)
    right.set(title="change by full fine-tuning (base to general)", xlabel="rank", ylabel="share explained",
              ylim=(0, 1.02))  # fmt: skip
    right.legend(frameon=False)
    return figure


def _fitted(weight: Tensor, wanted: Tensor, rank: int) -> list[float]:
    """The error after each of 300 steps."""
    down = (torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5).requires_grad_()
    up = torch.zeros(len(weight), rank, requires_grad=True)
    optimizer, errors = torch.optim.Adam([down, up], lr=0.01), []
    for _ in range(300):
        x = torch.randn(64, weight.shape[1])
        error = ((x @ (weight + up @ down).T - x @ wanted.T) ** 2).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    return errors


def long_context() -> Figure:
    """Turns of each pair by law; the loss of texts as written and spread out four times."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for name, law in LAWS.items():
        turns = 256 * FREQUENCIES[law.kind](law, 32) / (2 * math.pi)
        left.semilogy(turns, "o-", markersize=3, color=COLOURS[name], label=f"{name}, 256 tokens")
    trained = 64 * FREQUENCIES["none"](LAWS["plain"], 32) / (2 * math.pi)
    left.semilogy(trained, "--", color="black", label="trained, 64 tokens")
    left.set(title="turns from the first token to the last", xlabel="pair of dimensions")
    left.legend(frameon=False, fontsize=8)
    store = Prepared.open(RUNS / "corpus").store("microworld", "train")
    starts = store.document_offsets[:-1][np.diff(store.document_offsets) >= 40][:64].tolist()
    tokens = torch.tensor(np.stack([store.tokens(start, start + 40) for start in starts]).astype(np.int64))
    for place, (name, law) in enumerate(LAWS.items()):
        model = load(RUNS / "base", precision="fp32", rope=None if name == "plain" else law).model
        for spread, shift in ((1, -0.2), (4, 0.2)):
            logits = model(tokens[:, :-1], torch.arange(39)[None] * spread)
            loss = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()
            bar = right.bar(place + shift, loss, 0.38, color=COLOURS[name], alpha=1 if spread == 1 else 0.5)
            right.bar_label(bar, fmt="%.2f", fontsize=8)
    right.set(title="loss: as written (dark), four times as far apart (light)", xticks=range(len(LAWS)),
              xticklabels=LAWS)  # fmt: skip
    return figure


def quantisation() -> Figure:
    """Thirty-two weights with their grid; the error of the weights by bits and group."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    weight = load(RUNS / "base", precision="fp32").model.layers[0].mlp.up_proj.weight.detach()
    solution = Rtn(group_size=32, bits=4).nearest(weight)
    step, zero = solution.scale[0, 0].item(), solution.zero[0, 0].item()
    for code in range(16):
        left.axhline((code - zero) * step, color="#dddddd", linewidth=0.8)
    left.plot(weight[0, :32], "o", markersize=4, color=ORANGE, label="weight")
    left.plot(solution.dense()[0, :32], "x", markersize=5, color=BLUE, label="its point of the grid")
    left.set(title="32 weights, 4 bits, 16 points", xlabel="input")
    left.legend(frameon=False, fontsize=8, loc="upper right")
    for size, colour in ((None, RED), (128, ORANGE), (64, GREEN), (32, BLUE)):
        bits = [8, 4, 3, 2]
        back = [Rtn(bits=b, group_size=size, short_group=True).nearest(weight).dense() for b in bits]  # type: ignore[arg-type]
        errors = [((one - weight).norm() / weight.norm()).item() for one in back]
        right.semilogy(bits, errors, "o-", color=colour, label=f"group {size or 'of a row'}")
    right.set(title="error of the weights", xlabel="bits", xticks=[2, 3, 4, 8])
    right.legend(frameon=False, fontsize=8)
    return figure


def preference() -> Figure:
    """Both answers' log-probabilities and the loss, over steps of DPO on one pair."""
    loaded = load(RUNS / "medical", precision="fp32")
    model, tokenizer = loaded.model.requires_grad_(True), loaded.tokenizer
    prompt = render_chat(tokenizer, [{"role": "user", "content": "你好！"}], add_generation_prompt=True).tokens

    def log_p(answer: str) -> Tensor:
        tokens = torch.tensor([[*prompt, *tokenizer.encode(answer), tokenizer.turn_end]])
        logits = model(tokens[:, :-1])[0, len(prompt) - 1 :]
        return -cross_entropy(logits, tokens[0, len(prompt) :], reduction="sum")

    texts = ("你好，很高兴见到你。", "不知道。")
    reference = [log_p(text).item() for text in texts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5)
    steps: list[Sequence[float]] = []
    for _ in range(20):
        good, bad = map(log_p, texts)
        loss = -logsigmoid(0.1 * ((good - reference[0]) - (bad - reference[1])))
        steps.append((good.item(), bad.item(), loss.item()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    for column, name, colour in ((0, "good answer", GREEN), (1, "bad answer", RED)):
        left.plot([step[column] for step in steps], "o-", markersize=3, color=colour, label=name)
    left.set(title="log-probability", xlabel="step")
    left.legend(frameon=False)
    right.plot([step[2] for step in steps], "o-", markersize=3, color=BLUE)
    right.set(title="loss", xlabel="step", ylim=(0, None))
    return figure


def evaluation() -> Figure:
    """Exact answers by skill: trained, unseen with its interval, marked by shuffled keys."""
    folder = RUNS / "medical" / "evals"
    trained, unseen = (json.loads((folder / f"medical-chats-{split}.json").read_text("utf-8"))["answers"]
                       for split in ("train", "val"))  # fmt: skip
    figure, axis = plt.subplots(figsize=(9, 3.6))
    names = [name for name in unseen if name in trained]
    for place, name in enumerate(names):
        seen, new = (part[name]["answers"] for part in (trained, unseen))
        keys = [answer["reference"] for answer in new]
        Random(0).shuffle(keys)
        share = _right(new, [answer["reference"] for answer in new])
        low, high = wilson(share * len(new), len(new))
        axis.bar(place - 0.27, _right(seen, [answer["reference"] for answer in seen]), 0.25, color=GREY)
        axis.bar(
            place,
            share,
            0.25,
            color=BLUE,
            yerr=[[max(0, share - low)], [max(0, high - share)]],
            error_kw={"linewidth": 1},
        )
        axis.bar(place + 0.27, _right(new, keys), 0.25, color=ORANGE)
    axis.set(title="exact answers: trained (grey), unseen with 95 % interval (blue), shuffled keys (orange)",
             xticks=range(len(names)), ylim=(0, 1.02))  # fmt: skip
    axis.set_xticklabels(names, rotation=30, ha="right")
    return figure


def _right(answers: Sequence[dict[str, Any]], keys: Sequence[str]) -> float:
    return sum(answer["answer"] == key for answer, key in zip(answers, keys, strict=True)) / len(answers)


def serving() -> Figure:
    """Tokens a second by how many answers are written at once."""
    loaded = load(RUNS / "medical")
    engine = Engine(loaded.model, loaded.tokenizer.vocab_size)
    chat = [{"role": "user", "content": "小明去了公园。小明在哪里？"}]
    prompt = render_chat(loaded.tokenizer, chat, add_generation_prompt=True).tokens
    together, speeds = [1, 2, 4, 8, 16, 32, 64], []
    for rows in together:
        engine.generate([prompt] * rows, Sampling(temperature=0), 4)
        started = time.perf_counter()
        engine.generate([prompt] * rows, Sampling(temperature=0), 48)
        speeds.append(rows * 48 / (time.perf_counter() - started))
    figure, axis = plt.subplots(figsize=(6, 3.2))
    axis.loglog(together, speeds, "o-", color=BLUE, label="measured")
    axis.loglog(together, [speeds[0] * rows for rows in together], "--", color=GREY, label="if all were free")
    axis.set(xlabel="answers written at once", ylabel="tokens a second", xticks=together, xticklabels=together)
    axis.minorticks_off()
    axis.legend(frameon=False)
    return figure


FIGURES |= {"lora": lora, "long-context": long_context, "quantisation": quantisation, "preference": preference,
            "evaluation": evaluation, "serving": serving}  # fmt: skip
OWN = ("lora", "long-context", "quantisation", "preference", "evaluation", "serving")

if __name__ == "__main__":
    for chosen in sys.argv[1:] or OWN:
        draw(chosen)
