"""Rollouts of the small model: prompts that are a formula, tokens whose text is a letter each."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from small_training import CONTEXT, VOCAB

from babyllama.data.streams.batches import Batch
from babyllama.data.streams.prompts import Prompt
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.train.losses.policy import Grpo, Method
from babyllama.train.rl.agents import Agents, Results, ToolUse
from babyllama.train.rl.groups import Groups, Rollouts
from babyllama.train.rl.record import Record
from babyllama.train.rl.rewards import Answer, Reward, ValidCalls
from babyllama.train.rl.rollouts import RolloutRows

LETTERS = "abcdefghijklmnopqrstuvwxyzαβγδεζηθικλ"  # one for each token
LONGEST = 5  # tokens of an answer


class Early(Reward):
    """The share of the answer's letters that come early in the alphabet."""

    kind: str = "early"

    def __call__(self, answer: Answer) -> float:
        return sum(letter < "m" for letter in answer.text) / max(1, len(answer.text))


class Unwritten(Record):
    """Counts, writes nothing."""

    def add(self, lines: Any, writes: bool) -> None:
        super().add(lines, False)


def tokenizer() -> Any:
    """What rollouts ask of one; token 0 ends answers."""

    def decode(tokens: list[int], skip_special: bool = True) -> str:
        return "".join(LETTERS[token] if token else "" if skip_special else "·" for token in tokens)

    stream = SimpleNamespace(push=lambda token: decode([token]), flush=lambda: "")
    return SimpleNamespace(vocab_size=VOCAB, stop_ids=frozenset({0}), eos_id=0, special_ids=frozenset({0}),
                           decode_all=lambda texts: list(map(decode, texts)),
                           decode=decode, stream=lambda after=(): stream)  # fmt: skip


def prompts() -> Any:
    """Number n's prompt: two to five tokens, by n alone."""

    def taken(first: int, count: int) -> list[Prompt]:
        return [Prompt([1 + (n * k) % (VOCAB - 1) for k in range(2, 4 + n % 4)], [n % VOCAB, 0])
                for n in range(first, first + count)]  # fmt: skip

    return SimpleNamespace(taken=taken, count=100, longest=CONTEXT - LONGEST, room=CONTEXT - LONGEST, passed_over=0)


def reference() -> Transformer:
    """Another model of the same shape."""
    model = Transformer(ModelConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=True))  # fmt: skip
    initialise(model, 3)
    return model.eval().requires_grad_(False)


def _texts(first: int, count: int) -> Batch:
    """Row number n's text: seven tokens, by n alone."""
    rows = torch.tensor([[1 + (n * k + k) % (VOCAB - 1) for k in range(2, 9)] for n in range(first, first + count)])
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())


TEXTS = SimpleNamespace(batch=_texts)
METHOD = Grpo(beta=0.1)
OBJECTIVE = METHOD.of(1.0, LONGEST)


def practised(folder: Path | None = None, method: Method = METHOD, rewards: tuple[Reward, ...] = (Early(),),
              rows: int = 16, chunk: int = 4, texts: Any = None, **recipe: Any) -> RolloutRows:  # fmt: skip
    """Rows of rollouts of 32 answers, each read twice: four steps of 16 rows."""
    given = {"prompts": 8, "group": 4, "max_tokens": LONGEST, "passes": 2, "check_every": 1, **recipe}
    record = Unwritten(Path()) if folder is None else Record(folder)
    groups = Groups(Rollouts(**given), rewards, prompts(), tokenizer(), Rollouts(**given).count(rows), 1)
    start = reference() if method.beta else None
    return RolloutRows(groups, method, rows, chunk, record, start, texts, packs=True)


class Callers(Agents):
    """A turn that ends with an odd token has called something that writes a token by it, and answers two calls in
    three."""

    def _results(self, last: tuple[int, ...], tools: frozenset[str]) -> Results | None:
        return None if last[-1] % 2 == 0 else Results([last[-1] // 2 + 1], 1, int(last[-1] % 3 != 0))


def calling(folder: Path | None = None, method: Method = METHOD, chunk: int = 4) -> RolloutRows:
    """As `practised`, with answers of several turns."""
    use = ToolUse(rounds=2)
    rows = practised(folder, method, (Early(), ValidCalls(weight=0.3)), chunk=chunk, max_tokens=2, tools=use)
    rows.groups.agents = Callers(rows.groups.tokenizer, 2, use, CONTEXT)
    return rows


def hidden_twins(model: Transformer) -> Transformer:
    """A copy that shares nothing."""
    twin = Transformer(model.config)
    with torch.no_grad():
        for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            mine.copy_(theirs)
    return twin
