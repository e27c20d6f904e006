"""The course's figures, drawn from a quickstart's runs: docs/images/course-NAME.svg.

    python docs/course/figures.py [NAME …]      in a folder that holds a finished runs/quickstart

Words are English only, so that no font for hanzi is needed. A figure is a function here; without a name all are drawn.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cross_entropy

from babyllama.data.microworld import world
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import IGNORE, DataRecipe, Stream
from babyllama.inside import attention
from babyllama.load import load
from babyllama.model.config import ModelConfig
from babyllama.model.rope import geometric
from babyllama.model.transformer import Transformer, initialise
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


FIGURES: dict[str, Callable[[], Figure]] = {
    "tokens": tokens,
    "embeddings": embeddings,
    "attention": attention_heads,
    "rope": rope,
    "loss": loss,
    "optimisers": optimisers,
    "sft": sft,
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
