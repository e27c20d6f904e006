"""Rows that the model writes itself: answers to prompts, with what each is worth beside the others to its prompt.

A rollout is drawn by the model as it is, read for some steps, and drawn anew. Every rank answers its share of the
prompts and learns of all answers, so that all address the same rows.
Not here: which answers are drawn (groups.py), what is learned from them (losses/policy.py), how they lie in a batch
(batching.py), their file (record.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from babyllama.data.streams.batches import IGNORE, Batch, Stream
from babyllama.data.streams.order import permute
from babyllama.model.attention import attend_sdpa
from babyllama.model.transformer import Transformer, expected
from babyllama.train.engines.worker import Worker
from babyllama.train.losses.logprobs import token_logprobs
from babyllama.train.losses.policy import Method, PolicyLoss, Ppo, gae
from babyllama.train.rl.batching import WIDTH, batch_of, packed_of, rounded
from babyllama.train.rl.groups import Group, Groups
from babyllama.train.rl.record import Pieces, Record, lines_of

SALT = -5  # of the order in a rollout
TAKEN = "old", "reference", "values", "returns"  # what batches take along, by token, where it is there


@dataclass
class Rollout:
    """N answers, the same on every rank. tokens (N, W) int32; first, stop (N,): where each answer begins and ends;
    given (N, W) bool: what tools wrote in between, only where there are any; counted (N,) bool; advantages (N,)
    float32; old, reference (N, W − 1) float32 by target, empty where not needed."""

    number: int
    tensors: dict[str, Tensor]
    figures: dict[str, float]


@dataclass(eq=False)
class RolloutRows:
    """A `Source` (train/source.py) of rollouts.

    Args:
        rows_of_step: answers that a step reads, of all ranks.
        chunk: of which log-probabilities are computed at a time.
        reference: the model of the start, where the method's beta is above 0.
        packs: whether groups share a row with their prompt; by default on a GPU: on a CPU the mask for this costs what
            is gained.
        texts: earlier texts, a row of which stands beside each answer, so that they are not forgotten.
    """

    groups: Groups
    method: Method
    rows_of_step: int
    chunk: int
    record: Record
    reference: Transformer | None = None
    texts: Stream | None = None
    packs: bool | None = None
    rollout: Rollout | None = field(init=False, default=None)
    seconds: float = field(init=False, default=0.0)  # of computing log-probabilities
    _unwritten: tuple[int, int, list[Group], dict[str, Tensor], bool] | None = field(init=False, default=None)
    _packs: bool = field(init=False, default=False)
    _begun: bool = field(init=False, default=False)  # since the start, or since a checkpoint was taken up

    def __post_init__(self) -> None:
        self.recipe, self.pieces = self.groups.recipe, Pieces(self.groups.tokenizer)
        self.answers = self.groups.count * self.recipe.group
        self.steps = self.answers * self.recipe.passes // self.rows_of_step  # of one rollout

    # ── rows ───────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def rows(self) -> int:
        """Until every prompt was answered once."""
        return self.groups.prompts.count * self.recipe.group * self.recipe.passes

    def batch(self, first_row: int, count: int) -> Batch:
        """Rows of the rollout that was prepared, its groups in a new order each pass; of whole ones the prompt once."""
        assert self.rollout is not None
        number, kept = self.rollout.number, self.rollout.tensors
        rows = np.arange(first_row, first_row + count) - number * self.answers * self.recipe.passes
        passes, size = rows // self.answers, self.recipe.group
        picked = [permute(rows[passes == one] % self.answers // size, self.groups.count, self.groups.seed, SALT, number,
                          one) * size + rows[passes == one] % size
                  for one in sorted(set(passes.tolist()))]  # fmt: skip
        index, whole = torch.from_numpy(np.concatenate(picked)), first_row % size == count % size == 0
        batch = packed_of(kept, index, size, TAKEN) if whole and self._packs else batch_of(kept, index, TAKEN)
        if self.texts is None:
            return batch
        read = self.texts.batch(first_row, count)
        return replace(batch, extras={**batch.extras, "texts": read.tokens, "following": read.targets})

    def prepare(self, step: int, worker: Worker) -> None:
        """Draw the rollout that step `step` reads, unless it is there."""
        setting, wanted = worker.setting, worker.device.type == "cuda" if self.packs is None else self.packs
        self._packs = (wanted and isinstance(setting.objective, PolicyLoss) and setting.attend is attend_sdpa
                       and setting.mesh.context == 1 and setting.model.rope.static)  # fmt: skip
        if not self._begun and worker.world.first:
            self.record.cut()
        self._begun = True
        number = step // self.steps
        if self.rollout is None or self.rollout.number != number:
            self.rollout = self._made(number, step, worker)

    # ── a rollout ──────────────────────────────────────────────────────────────────────────────────────────────
    def _made(self, number: int, step: int, worker: Worker) -> Rollout:
        checked = number % self.recipe.check_every == 0
        with worker.policy() as model:
            groups, figures = self.groups(number, checked, model, worker.world, self._write)
            self._remark(number, figures)
            tensors = self._tensors(groups, worker.device.type == "cuda")
            began = time.perf_counter()
            if self.method.beta and self.reference is not None:
                like = model.embed_tokens.weight
                self.reference.to(like.device, like.dtype)
                tensors["reference"] = self._scored(self.reference, tensors, worker, self.recipe.temperature)
            if isinstance(self.method, Ppo):
                tensors |= self._expected(self.method, model, tensors, worker)
            if self.steps > 1:
                tensors["old"] = self._scored(model, tensors, worker, self.recipe.temperature)
            if checked:
                figures["engine_gap"] = self._gap(model, groups, tensors, worker)
            self.seconds = time.perf_counter() - began
        if not checked and self.rollout is not None:
            figures["engine_gap"] = self.rollout.figures["engine_gap"]
        self._unwritten = number, step, groups, tensors, worker.world.first
        return Rollout(number, tensors, figures)

    def _remark(self, number: int, figures: dict[str, float]) -> None:
        """Where nothing can be learned, for the first of several such rollouts."""
        before = self.rollout.figures["flat_groups"] if self.rollout is not None else 0.0
        compares = bool(self.groups.rewards) and not isinstance(self.method, Ppo)
        if compares and figures["flat_groups"] == 1 != before and not figures["bad_rewards"]:
            self.groups.say(f"rollout {number}: to each prompt all answers are worth the same, so nothing is learned "
                            "until that changes; look at rollouts.jsonl, raise rollouts.group or rollouts.temperature, "
                            "or choose harder or easier prompts")  # fmt: skip

    def _tensors(self, groups: list[Group], even: bool) -> dict[str, Tensor]:
        """`even`: rows that are a little longer, for the sake of few shapes."""
        texts = [(group.prompt.tokens, answer.tokens) for group in groups for answer in group.drawn]
        totals = torch.tensor([[mark.total for mark in group.marks] for group in groups], dtype=torch.float64)
        counted = totals.isfinite()
        stop = [len(prompt) + len(answer) for prompt, answer in texts]
        longest, filling = max(stop), [self.groups.tokenizer.eos_id]
        width = min(rounded(longest, WIDTH), max(longest, self.groups.room)) if even else longest
        rows = [prompt + answer + filling * (width - len(prompt) - len(answer)) for prompt, answer in texts]
        tokens = torch.tensor(rows, dtype=torch.int32)
        given = self._given(groups, tokens) if self.recipe.tools is not None else {}
        return {"tokens": tokens, **given, "first": torch.tensor([len(prompt) for prompt, _ in texts]),
                "stop": torch.tensor(stop),
                "counted": counted.flatten(),
                "advantages": self.method.advantages(totals, counted).float().flatten()}  # fmt: skip

    def _given(self, groups: list[Group], tokens: Tensor) -> dict[str, Tensor]:
        given = torch.zeros(tokens.shape, dtype=torch.bool)
        answers = [(len(group.prompt.tokens), answer.own) for group in groups for answer in group.drawn]
        for row, (first, own) in enumerate(answers):
            given[row, first : first + len(own)] = ~torch.tensor(own)
        return {"given": given}

    @torch.no_grad()
    def _scored(self, model: Transformer, tensors: dict[str, Tensor], worker: Worker, temperature: float) -> Tensor:
        """log π of every target (N, W − 1), each rank its share of the rows; by training's own pass."""
        world, device, mine = worker.world, worker.device, []
        every = {**tensors, "counted": torch.ones_like(tensors["counted"])}
        found = torch.zeros(self.answers, tensors["tokens"].shape[1] - 1)
        for rows in torch.arange(self.answers)[world.rank :: world.size].split(self.chunk):
            batch = batch_of(every, rows).to(device)
            mine.append((rows, token_logprobs(model, batch, temperature).logprobs.cpu()))
        for rows, values in (pair for part in world.gather(mine) for pair in part):
            found[rows, : values.shape[1]] = values[:, : found.shape[1]]
        return found

    @torch.no_grad()
    def _expected(
        self, method: Ppo, model: Transformer, tensors: dict[str, Tensor], worker: Worker
    ) -> dict[str, Tensor]:
        """By token (N, W − 1): what the value head expected, what came, and advantages, evened out over the rollout."""
        everything = torch.arange(self.answers)
        values = torch.zeros(self.answers, tensors["tokens"].shape[1] - 1)
        for rows in everything.split(self.chunk):  # each rank all: they are small beside the drawing
            batch = batch_of(tensors, rows).to(worker.device)
            found = expected(model, model.hidden(batch.tokens)).cpu()
            values[rows, : found.shape[1]] = found[:, : values.shape[1]]
        kept = torch.zeros(values.shape, dtype=torch.bool)
        whole = batch_of(tensors, everything).targets != IGNORE
        kept[:, : whole.shape[1]] = whole[:, : kept.shape[1]]
        advantages, returns = gae(tensors["advantages"], values, kept, method.gamma, method.trace)
        own = advantages[kept].double()
        deviation, mean = torch.std_mean(own) if len(own) > 1 else (own.new_zeros(()), own.sum())
        even = ((advantages - mean) / (deviation + 1e-8)).where(kept, 0).float()
        return {"values": values.where(kept, 0), "returns": returns, "advantages": even}

    def _gap(self, model: Transformer, groups: list[Group], tensors: dict[str, Tensor], worker: Worker) -> float:
        """The largest difference between what the engine and training find of any token, in nats."""
        scored = tensors.get("old") if self.recipe.temperature == 1 else None
        found = self._scored(model, tensors, worker, 1.0) if scored is None else scored
        drawn = [answer for group in groups for answer in group.drawn]
        told = torch.tensor([value for answer in drawn for value in answer.logprobs])
        place, stop = torch.arange(found.shape[1]), tensors["stop"][:, None] - 1
        own = (place >= tensors["first"][:, None] - 1) & (place < stop)
        if "given" in tensors:
            own &= ~tensors["given"][:, 1:]
        return (found[own] - told).abs().max().item()

    def meanwhile(self) -> None:
        """As in Source: a rollout of several steps is written while its first one is computed. One of a single step is
        written while the next is drawn: the device has more to do then, and the host less."""
        if self.steps > 1:
            self._write()

    def _write(self) -> None:
        """What is kept of the rollout at hand, once."""
        if self._unwritten is not None:
            self._recorded(*self._unwritten)
            self._unwritten = None

    def _recorded(self, number: int, step: int, groups: list[Group], tensors: dict[str, Tensor],
                  writes: bool) -> None:  # fmt: skip
        """A rollout that is read from step `step` on."""
        tools, worth, size = self.recipe.tools is not None, tensors["advantages"], self.recipe.group
        whole = (worth if worth.ndim == 1 else worth.sum(1)).tolist()
        ends = zip((tensors["first"] - 1).tolist(), (tensors["stop"] - 1).tolist(), strict=True)
        single = None
        if worth.ndim == 2:
            single = [worth[row, first:stop].tolist() for row, (first, stop) in enumerate(ends)]
        lines = list[dict[str, Any]]()
        for n, group in enumerate(groups):
            mine = slice(n * size, (n + 1) * size)
            lines += lines_of(group, self.pieces, tools, whole[mine], None if single is None else single[mine])
        self.record.add([{"step": step + 1, "rollout": number, **line} for line in lines], writes)

    # ── figures and resume ─────────────────────────────────────────────────────────────────────────────────────
    @property
    def figures(self) -> dict[str, float]:
        """Of the rollout at hand: rewards, lengths, how alike its answers are; seconds of this rank on it."""
        if self.rollout is None:
            return {}
        seconds = self.groups.seconds | {"scoring": self.seconds}
        return self.rollout.figures | {f"seconds_{name}": round(took, 3) for name, took in seconds.items()}

    @property
    def state(self) -> dict[str, Tensor]:
        """As in Source; what is kept of the rollout at hand is written first."""
        self._write()
        if self.rollout is None:
            return {}
        numbers = {"number": self.rollout.number, "cursor": self.groups.cursor, "bytes": self.record.bytes}
        figures = {f"figure.{name}": torch.tensor(value, dtype=torch.float64)
                   for name, value in self.rollout.figures.items()}  # fmt: skip
        return {**{name: torch.tensor(value) for name, value in numbers.items()}, **figures, **self.rollout.tensors}

    def restore(self, state: dict[str, Tensor]) -> None:
        """As in Source."""
        self._begun, self._unwritten = False, None
        if "number" not in state:
            return
        state = dict(state)
        number, self.groups.cursor, self.record.bytes = (int(state.pop(name)) for name in ("number", "cursor", "bytes"))
        names = [name for name in state if name.startswith("figure.")]
        figures = {name.removeprefix("figure."): state.pop(name).item() for name in names}
        self.rollout = Rollout(number, state, figures)
