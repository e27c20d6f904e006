"""The course's figures, drawn from a quickstart's runs: docs/images/course-NAME.svg.

    python docs/course/figures.py [NAME …]      in a folder that holds a finished runs/quickstart

Words are English only, so that no font for hanzi is needed. A figure is a function here, in the order of the lessons;
without a name all are drawn. The file is long because there is a figure for every lesson.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from babyllama.data.microworld import world
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import IGNORE, DataRecipe, Stream
from babyllama.evals.statistics import wilson
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.inside import attention
from babyllama.load import load
from babyllama.model.config import ModelConfig
from babyllama.model.laws import LinearRope, NtkRope, PlainRope, RopeConfig, YarnRope
from babyllama.model.rope import FREQUENCIES, geometric
from babyllama.model.transformer import Transformer, initialise
from babyllama.quant.rtn import Rtn
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import train_bpe
from babyllama.train.losses.objectives import NextToken
from babyllama.train.optimizers.optim import AdamW, Muon

RUNS = Path("runs/quickstart")
IMAGES = Path(__file__).parents[1] / "images"
BLUE, ORANGE, GREEN, RED, GREY = "#3366aa", "#dd8833", "#339966", "#bb4444", "#999999"


def corpus_texts(documents: int) -> list[str]:
    """The first texts of the micro-world in the prepared corpus."""
    store, tokenizer = Prepared.open(RUNS / "corpus").store("microworld", "train"), Tokenizer.load(RUNS / "tokenizer")
    ends = store.document_offsets[: documents + 1].tolist()
    return [tokenizer.decode(store.tokens(start, stop).tolist()) for start, stop in itertools.pairwise(ends)]


def tokens() -> Figure:
    """What the vocabulary holds; characters per token by the size of a vocabulary."""
    tokenizer = Tokenizer.load(RUNS / "tokenizer")
    texts = [tokenizer.decode([token]) for token in sorted(tokenizer.text_ids)]
    parts = {"special": len(tokenizer.special_ids), "bytes and pieces": sum("\ufffd" in text for text in texts),
             "one character": sum(len(text) == 1 and text != "\ufffd" for text in texts),
             "two characters": sum(len(text) == 2 for text in texts),
             "three or more": sum(len(text) > 2 and "\ufffd" not in text for text in texts)}  # fmt: skip
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    bars = left.barh(list(parts), list(parts.values()), color=BLUE)
    left.bar_label(bars, padding=3)
    left.invert_yaxis()
    left.set(title="the 3,072 tokens", xlim=(0, max(parts.values()) * 1.15))
    sample = corpus_texts(3000)
    sizes = [600, 800, 1000, 1500, 2000, 3000, 4000, 6000]
    found = [train_bpe(sample, size, digits=1) for size in sizes]
    packed = [sum(map(len, sample)) / sum(map(len, made.encode_batch(sample))) for made in found]
    right.plot([made.vocab_size for made in found], packed, "o-", color=ORANGE)
    right.set(title="texts of the micro-world", xlabel="tokens in the vocabulary", ylabel="characters a token")
    return figure


def embeddings() -> Figure:
    """Rows of the embedding of some classes of words, on their two main directions, before and after training."""
    loaded = load(RUNS / "base")
    fresh = Transformer(loaded.model.config)
    initialise(fresh, 1)
    classes = {"children": world.CHILDREN, "family": world.COMPANIONS, "rooms": world.ROOMS, "things": world.THINGS,
               "digits": "0123456789"}  # fmt: skip
    ids = {name: _single(loaded.tokenizer, words) for name, words in classes.items()}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8))
    for axis, model, title in zip(axes, (fresh, loaded.model), ("before training", "after pretraining"), strict=True):
        rows = model.embed_tokens.weight[[i for found in ids.values() for i in found]].detach()
        rows = torch.nn.functional.normalize(rows, dim=-1)
        places = (rows - rows.mean(0)) @ torch.pca_lowrank(rows, 2, niter=20)[2]
        for name, part in zip(ids, places.split([len(found) for found in ids.values()]), strict=True):
            axis.scatter(*part.T, s=18, label=name)
        axis.set(title=title, xticks=[], yticks=[])
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _single(tokenizer: Tokenizer, words: Any) -> list[int]:
    """The words that are one token."""
    return [found[0] for found in map(tokenizer.encode, words) if len(found) == 1]


def attention_heads() -> Figure:
    """Where each head of each layer looks in the chapter's sentence."""
    loaded = load(RUNS / "base")
    ids = loaded.tokenizer.start_ids + loaded.tokenizer.encode("小红去了公园。小明去了厨房。小红在")
    layers = len(loaded.model.layers)
    heads = loaded.model.config.num_attention_heads
    figure, axes = plt.subplots(layers, heads, figsize=(9, 1.6 * layers))
    for layer in range(layers):
        for head, weights in enumerate(attention(loaded.model, ids, layer)):
            axes[layer, head].imshow(weights, cmap="Blues", vmin=0, vmax=1)
            axes[layer, head].set(xticks=[], yticks=[], title=f"head {head}" if layer == 0 else "")
        axes[layer, 0].set_ylabel(f"layer {layer}")
    return figure


def rope() -> Figure:
    """The loss of texts whose positions are stretched; turns of each pair within the trained context."""
    loaded = load(RUNS / "base")
    texts = [loaded.tokenizer.start_ids + loaded.tokenizer.encode(text) for text in corpus_texts(200)]
    factors = [1, 2, 3, 4, 6, 8, 12, 16]
    losses = [sum(_stretched(loaded.model, ids, by) for ids in texts) / sum(len(ids) - 1 for ids in texts)
              for by in factors]  # fmt: skip
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    left.plot(factors, losses, "o-", color=RED)
    left.axhline(losses[0], color=GREY, linestyle="--")
    left.set(xscale="log", xticks=factors, xticklabels=factors, xlabel="distance between neighbouring tokens",
             ylabel="loss, nats a token", title="distances that were never seen")  # fmt: skip
    left.minorticks_off()
    dim = loaded.model.config.head_dim
    turns = 64 * geometric(loaded.model.config.rope.base, dim) / (2 * math.pi)
    right.bar(range(dim // 2), turns, color=[BLUE if turn >= 1 else ORANGE for turn in turns.tolist()])
    right.axhline(1, color=GREY, linestyle="--")
    right.set(yscale="log", xlabel="pair", title="turns within 64 tokens (orange: less than one)")
    return figure


@torch.inference_mode()
def _stretched(model: Transformer, ids: list[int], by: int) -> float:
    row = torch.tensor([ids])
    logits = model(row[:, :-1], torch.arange(len(ids) - 1)[None] * by)[0]
    return cross_entropy(logits, row[0, 1:], reduction="sum").item()


def loss() -> Figure:
    """The pretraining's curve."""
    lines = [json.loads(line) for line in (RUNS / "base" / "metrics.jsonl").read_text("utf-8").splitlines()]
    figure, axis = plt.subplots(figsize=(7, 3.4))
    axis.axhline(math.log(3072), color=GREY, linestyle="--", label="knows nothing: ln 3072")
    for kind, style, name in (("train", "-", "training"), ("validation", "o", "texts that were never seen")):
        found = [(line["step"], line["loss"]) for line in lines if line.get("kind", "train") == kind and "loss" in line]
        axis.plot(*zip(*found, strict=True), style, color=BLUE if kind == "train" else ORANGE, label=name)
    axis.set(xlabel="step", ylabel="loss, nats a token", ylim=(0, 8.6))
    axis.legend()
    return figure


RACE_STEPS = 150


def optimisers() -> Figure:
    """The chapter's race, longer and with more learning rates."""
    found = {"AdamW": {lr: _race(AdamW(lr=lr)) for lr in (0.001, 0.003, 0.01, 0.03)},
             "Muon": {lr: _race(Muon(lr=lr, adam_lr=0.005)) for lr in (0.003, 0.01, 0.03, 0.1)}}  # fmt: skip
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for (name, runs), colour in zip(found.items(), (ORANGE, BLUE), strict=True):
        ends = {lr: sum(losses[-15:]) / 15 for lr, losses in runs.items()}
        best = min(ends, key=lambda lr: ends[lr])
        smooth = torch.tensor(runs[best]).unfold(0, 5, 1).mean(-1)
        left.plot(smooth, color=colour, label=f"{name}, lr {best:g}")
        right.plot(list(ends), list(ends.values()), "o-", color=colour, label=name)
    left.set(xlabel="step", ylabel="loss, nats a token", title="each at its best learning rate")
    right.set(xscale="log", xlabel="learning rate", title=f"loss at the end ({RACE_STEPS} steps)")
    left.legend()
    right.legend()
    return figure


def _race(recipe: AdamW | Muon) -> list[float]:
    path, objective = RUNS / "corpus", NextToken()
    stream = Stream(Prepared.open(path), "train", DataRecipe(path=path), context=64, seed=1)
    model = Transformer(ModelConfig(
        vocab_size=3072, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True))  # fmt: skip
    initialise(model, seed=1)
    optimizers, losses = recipe.build(model.named_parameters()), []
    for step in range(RACE_STEPS):
        batch = stream.batch(step * 8, 8)
        mean = objective(model, batch)[0] / objective.weight(batch)
        mean.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(mean.item())
    return losses


def sft() -> Figure:
    """Which places of some rows of chats count towards the loss."""
    path = RUNS / "general-chats"
    batch = Stream(Prepared.open(path), "train", DataRecipe(path=path), context=128, seed=1).batch(0, 12)
    assert batch.segments is not None
    counts = batch.targets != IGNORE
    kinds = torch.where(counts, 2.0, torch.where(_padding(batch.segments, counts), 0.0, 1.0))
    figure, axis = plt.subplots(figsize=(9, 2.6))
    axis.imshow(kinds, cmap=plt.matplotlib.colors.ListedColormap(["#dddddd", "#aaccee", BLUE]), aspect="auto",
                vmin=0, vmax=2, interpolation="nearest")  # fmt: skip
    for edge in (batch.segments.diff(dim=1) != 0).nonzero().tolist():
        axis.plot([edge[1] + 0.5] * 2, [edge[0] - 0.5, edge[0] + 0.5], color="white", linewidth=1.5)
    axis.set(xlabel="place in the row (dark: counts; light: question; grey: padding)", yticks=[], ylabel="rows")
    return figure


def _padding(segments: Tensor, counts: Tensor) -> Tensor:
    """Places of a last segment in which nothing counts."""
    last = segments == segments.amax(1, keepdim=True)
    return last & ~(last & counts).any(1, keepdim=True)


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


FIGURES: dict[str, Callable[[], Figure]] = {
    "tokens": tokens,
    "embeddings": embeddings,
    "attention": attention_heads,
    "rope": rope,
    "loss": loss,
    "optimisers": optimisers,
    "sft": sft,
    "lora": lora,
    "long-context": long_context,
    "quantisation": quantisation,
    "preference": preference,
    "evaluation": evaluation,
    "serving": serving,
}


def draw(name: str) -> None:
    """Write docs/images/course-NAME.svg; the same runs give the same file."""
    plt.rcParams.update({"svg.hashsalt": "course", "svg.fonttype": "none", "axes.spines.top": False,
                         "axes.spines.right": False})  # fmt: skip
    figure = FIGURES[name]()
    figure.tight_layout()
    figure.savefig(IMAGES / f"course-{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or FIGURES:
        draw(chosen)
