"""How the next token is chosen, as a value: what a request, a recipe or a chat asks for.

Nothing here needs PyTorch until logits come: processes without a model read and pass on what clients ask for.
Not here: what the rules do (choosing.py), where those of running requests lie (rows.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from babyllama.atomic import read_json
from babyllama.recipe import Recipe, Seed, validate

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from babyllama.infer.choosing import Uses

Token = Annotated[int, Field(ge=0)]
Bias = Annotated[float, Field(ge=-100, le=100)]


Temperature = Annotated[float, Field(ge=0, le=100, description="0 is greedy: always the likeliest token")]
TopP = Annotated[float, Field(gt=0, le=1, description="only the likeliest that together reach p; 1 is off")]


class Sampling(Recipe):
    """How the next token is chosen. The defaults draw from the model's own distribution."""

    temperature: Temperature = 1.0
    top_k: int = Field(default=0, ge=0, description="only the k likeliest tokens; 0 is off")
    top_p: TopP = 1.0
    min_p: float = Field(default=0.0, ge=0, le=1, description="only those min_p times as likely as the likeliest")
    repetition_penalty: float = Field(
        default=1.0, gt=0, le=10, description="above 1 makes tokens that came before less likely; 1 is off"
    )
    presence_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="subtracted from the logits of tokens already in the answer"
    )
    frequency_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="subtracted for each time the token is in the answer"
    )
    logit_bias: dict[Token, Bias] = Field(default={}, description="by token id, added to its logit")
    seed: Seed = Field(default=0, description="the same seed draws the same tokens")

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        """Keys of JSON are texts."""
        return {int(k) if str(k).isdecimal() else k: v for k, v in value.items()} if isinstance(value, dict) else value

    def __call__(self, logits: Tensor, draws: Tensor, seen: Tensor | None = None) -> Tensor:
        """The next token of every row, (B,) int64; NOT_FINITE where the logits are broken.

        Args:
            logits: (B, V), any float dtype; V must leave out padded vocabulary rows.
            draws: (B,) float64, uniform on [0, 1) (see `choosing.uniforms`); not looked at when greedy.
            seen: (B, V) bool, the tokens of prompt and answer so far; needed for the repetition penalty only.
        """
        from babyllama.infer.choosing import choose

        return choose(logits, self.rules(logits.device), draws, used_by([self]), seen=seen)

    def scores(self, logits: Tensor, seen: Tensor | None = None) -> Tensor:
        """`choosing.scores` for rows that all go by this."""
        from babyllama.infer.choosing import scores

        return scores(logits, self.rules(logits.device), used_by([self]), seen=seen)

    def rules(self, device: torch.device | str = "cpu") -> Tensor:
        """(1, 7) float32: one row of what `choosing.scores` goes by."""
        import torch

        return torch.tensor([self.rule], device=device, dtype=torch.float32)

    @property
    def rule(self) -> tuple[float, ...]:
        """The same as numbers."""
        floor = math.log(self.min_p) if self.min_p else -math.inf
        return (self.temperature, self.top_k, self.top_p, floor, self.repetition_penalty, self.presence_penalty,
                self.frequency_penalty)  # fmt: skip


class Unsaid(NamedTuple):
    """What a server goes by where a request leaves sampling out.

    all: it says nothing of it, and is answered as in a chat.  rest: it says a part, such as temperature=0, and knows
    what it wants: nothing of `ANSWERS` is mixed in.
    """

    all: Sampling
    rest: Sampling

    def of(self, given: Mapping[str, Any]) -> Sampling:
        """For a request that says what is `given`."""
        return self.rest if any(key in given for key in CARRIED) else self.all


def used_by(samplings: Iterable[Sampling], mask: bool = False, logprobs: int | None = None) -> Uses:
    """What has to be computed for rows that go by these."""
    from babyllama.infer.choosing import Uses

    all_ = list({id(s): s for s in samplings}.values())  # of many rows that go by the same one, once
    drawn = [s for s in all_ if s.temperature > 0]  # cuts change no greedy choice
    top_k = max((s.top_k for s in drawn), default=0)
    penalties = any((s.repetition_penalty, s.presence_penalty, s.frequency_penalty) != (1, 0, 0) for s in all_)
    return Uses(
        drawn=bool(drawn), top_k=1 << (top_k - 1).bit_length() if top_k else 0,
        top_p=any(s.top_p < 1 for s in drawn),
        min_p=any(s.min_p > 0 for s in drawn), penalties=penalties, bias=any(s.logit_bias for s in all_),
        mask=mask, logprobs=logprobs)  # fmt: skip


class AnswerSampling(Sampling):
    """How a verb that answers draws. What is said comes first, then the model's folder, and then these defaults: the
    same in `chat`, `generate`, `arena` and `serve`.

    They have no repetition penalty: sums and lists repeat what was said, and 1.1 cost 5 to 7 points of right answers
    (docs/log.md). Only what was said is written down, so that a recipe that is read again still leaves the rest open.
    """

    temperature: Temperature = 0.7
    top_p: TopP = 0.9

    @model_serializer(mode="wrap")
    def _said(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in whole(self).items() if key in self.model_fields_set}

    def over(self, own: Mapping[str, float], rest: Sampling | None = None) -> Sampling:
        """What is said here, then what is `own` to the model, then the `rest`; None: these defaults."""
        return (rest or ANSWERS).model_copy(update={**own, **self.model_dump()})


ANSWERS = Sampling(**dict(AnswerSampling()))
"""How answers are drawn where neither the user nor the model's folder says."""

Drawn = Annotated[
    AnswerSampling,
    Field(description="how tokens are drawn; a key left out: as the model's generation_config.json says, else "
                      "temperature 0.7, top_p 0.9"),
]  # fmt: skip
"""The type of a recipe's field `sampling`."""


GENERATION = "generation_config.json"
CARRIED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def carried_sampling(folder: Path) -> dict[str, float]:
    """What the generation_config.json of a model's folder says of these, which other programs go by too.

    Raises:
        InputError: it is no JSON, or a value is out of range.
    """
    file = folder / GENERATION
    said = read_json(file, "repair it") if file.is_file() else {}
    found = {key: said[key] for key in CARRIED if said.get(key) is not None}
    validate(Sampling, found, str(file))
    return found


class SamplingRecipe(Recipe):
    """A recipe with a field `sampling` whose keys may also be written without the prefix: ``temperature=0.7``."""

    @classmethod
    def spelt_out(cls, data: dict[str, Any]) -> dict[str, Any]:
        short = {key: data[key] for key in data if key in Sampling.model_fields}
        nested = data.get("sampling", {})
        if not short or not isinstance(nested, dict):
            return data
        rest = {key: value for key, value in data.items() if key not in short}
        return {**rest, "sampling": {**nested, **short}}
