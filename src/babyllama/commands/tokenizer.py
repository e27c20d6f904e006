"""tokenizer: learn a vocabulary from text, or take ChatGLM2's or a Hugging Face folder's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from babyllama.data.sources.corpora import CorpusChoice, read_texts
from babyllama.data.sources.hub import HubFile, fetch
from babyllama.recipe import Changeable, Recipe
from babyllama.run import Run
from babyllama.tokenizer.cuts import Digits
from babyllama.tokenizer.token_bytes import visible
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import train_bpe

EXAMPLES = (
    "今天天气很好，我们一起去公园散步吧。",
    "床前明月光，疑是地上霜。",
    "感冒发烧应该多喝水、多休息。",
    "大语言模型 LLaMA 于 2023 年发布。",
)
SAMPLE_CHARACTERS = 500_000
FETCHED = "THUDM/chatglm2-6b"
CHATGLM2 = HubFile(FETCHED, "tokenizer.model", "model",
                   sha256="e7dc4c393423b76e4373e5157ddc34803a0189ba96b21ddbb40269d31468a6f2")  # fmt: skip


class TrainSource(Recipe):
    """Learn a byte-level BPE from corpora; characters come first, then what joins them."""

    kind: Literal["train"] = "train"
    corpora: tuple[CorpusChoice, ...] = Field(min_length=1, description="the texts to learn from",
                                             examples=["'source.corpora=[{path: my.jsonl}]'"])  # fmt: skip
    vocab_size: int = Field(8192, ge=262, le=1 << 24, description="tokens in all, special ones included")
    min_frequency: int = Field(2, ge=1, description="a pair of tokens that occurs less often is not joined")
    max_alphabet: int | None = Field(
        None, ge=1, description="the most characters that get a token of their own; default: all"
    )
    digits: Digits = Field(3, description="the most digits in one token; 1 lets a small model learn to reckon")


class ChatGlm2Source(Recipe):
    """ChatGLM2's 64,793 tokens."""

    kind: Literal["chatglm2"] = "chatglm2"
    path: Path | None = Field(None, description=f"its tokenizer.model; default: downloaded from {FETCHED} and checked "
                              "by its sha256")  # fmt: skip


class FolderSource(Recipe):
    """The vocabulary of a run or of a Hugging Face folder."""

    kind: Literal["folder"] = "folder"
    path: Path = Field(description="a run or a Hugging Face folder with a tokenizer")


class TokenizerRecipe(Recipe):
    """The verb's recipe; every key can be overridden on the command line."""

    out: Changeable[Path] = Field(description="the folder of the tokenizer")
    source: Annotated[TrainSource | ChatGlm2Source | FolderSource, Field(discriminator="kind")] = Field(
        description="a vocabulary learned from texts, or one that is there"
    )
    chat_template: Literal["roles", "bos"] | None = Field(None, description="default: the vocabulary's own")


def main(recipe: TokenizerRecipe) -> None:
    """Make the tokenizer run at ``recipe.out`` and show how it splits."""
    console = Console(highlight=False)
    # A folder that exists is checked before the work; a new one is made after it, so that a fault leaves none behind.
    run = Run.create(recipe.out, "tokenizer", recipe) if recipe.out.exists() else None
    if run and run.finished:
        console.print(f"{recipe.out} is finished; remove it or choose another out=…", markup=False, soft_wrap=True)
        return
    started, sample = time.perf_counter(), list[str]()
    tokenizer = _make(recipe.source, sample, console)
    if recipe.chat_template is not None:
        tokenizer = tokenizer.with_template(recipe.chat_template)
    run = run or Run.create(recipe.out, "tokenizer", recipe)
    tokenizer.save(run.path)
    figures: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash}
    texts = sample or list(EXAMPLES)
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    figures["characters_per_token"] = round(sum(map(len, texts)) / max(1, tokens), 3)
    run.finish(seconds=round(time.perf_counter() - started, 1), **figures)
    asked = recipe.source.vocab_size if isinstance(recipe.source, TrainSource) else 0
    if tokenizer.vocab_size < asked:
        console.print(
            f"{tokenizer.vocab_size:,} tokens instead of the {asked:,} asked for: no other pair occurs often "
            "enough in the text (source.min_frequency); give more text", markup=False, soft_wrap=True)  # fmt: skip
    _show(tokenizer, figures, "the text it was trained on" if sample else "the examples below", console)
    console.print(f"{recipe.out} is ready", markup=False, soft_wrap=True)


def _make(source: TrainSource | ChatGlm2Source | FolderSource, sample: list[str], console: Console) -> Tokenizer:
    if isinstance(source, FolderSource):
        return Tokenizer.load(source.path)
    if isinstance(source, ChatGlm2Source):
        return Tokenizer.load(source.path or _fetch_chatglm2())
    columns = (SpinnerColumn(), TextColumn("{task.completed:,} characters read"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("read", total=None)
        texts = _sampled(read_texts(source.corpora, tools=True), sample)
        return train_bpe(
            texts, source.vocab_size, source.min_frequency, source.max_alphabet, source.digits,
            lambda count: bar.advance(task, count),
        )  # fmt: skip


def _sampled(texts: Iterator[str], sample: list[str]) -> Iterator[str]:
    """The texts unchanged; the first `SAMPLE_CHARACTERS` of them are also put in `sample`."""
    left = SAMPLE_CHARACTERS
    for text in texts:
        if left > 0:
            sample.append(text[:left])
            left -= len(text)
        yield text


def _fetch_chatglm2() -> Path:
    return fetch(CHATGLM2, "download its tokenizer.model elsewhere and give source.path=…").path


def _show(tokenizer: Tokenizer, figures: dict[str, Any], measured_on: str, console: Console) -> None:
    console.print(
        f"{figures['vocab_size']:,} tokens, {figures['characters_per_token']:.2f} characters a token on {measured_on}"
    )
    for text in EXAMPLES:
        tokens = tokenizer.encode(text)
        pieces = "│".join(visible(tokenizer, token) for token in tokens)
        console.print(f"  {len(tokens):3d}  {pieces}", markup=False, soft_wrap=True)
