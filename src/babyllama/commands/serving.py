"""What chat, generate and serve have in common: the model that a recipe names, in an engine, ready to answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from babyllama.errors import InputError
from babyllama.hardware import DeviceChoice
from babyllama.infer.engine import Engine
from babyllama.infer.request import Proposer, Request
from babyllama.infer.sampling import SamplingRecipe
from babyllama.infer.speculate import Draft, NGrams
from babyllama.load import Loaded, load, pick_device, pick_precision
from babyllama.model.laws import RopeConfig
from babyllama.recipe import Recipe
from babyllama.tokenizer.tokenizer import Tokenizer


class NGramGuesses(Recipe):
    """What followed when the text's last tokens came before: for answers that repeat their prompt, such as edits."""

    kind: Literal["ngram"] = "ngram"
    size: int = Field(default=3, ge=1, le=16, description="last tokens that are looked for, or fewer")
    most: int = Field(default=7, ge=1, le=64, description="tokens guessed at a time")

    def __call__(self, loaded: Loaded) -> Callable[[Request], Proposer]:
        return lambda _: NGrams(self.size, self.most)


class DraftGuesses(Recipe):
    """What a smaller model of the same vocabulary says."""

    kind: Literal["draft"]
    model: Path = Field(description="a run or folder with the same tokenizer", examples=["runs/small"])
    most: int = Field(default=4, ge=1, le=64, description="tokens guessed at a time")

    def __call__(self, loaded: Loaded) -> Callable[[Request], Proposer]:
        smaller = load(self.model, loaded.model.norm.weight.device)
        if smaller.tokenizer.hash != loaded.tokenizer.hash:
            raise InputError(f"speculate.model: {self.model} has another tokenizer than the model; give a smaller "
                             "model of the same one")  # fmt: skip
        return Draft.of(smaller.model, loaded.tokenizer.vocab_size, self.most)


Speculation = Annotated[NGramGuesses | DraftGuesses, Field(discriminator="kind")]


def engine_of(loaded: Loaded, speculate: Speculation | None, sinks: int = 0, slots: int = 256) -> Engine:
    """The model in an engine.

    Raises:
        InputError: guesses where they cannot be read; a draft of another vocabulary; as `Engine`.
    """
    if speculate is not None and (sinks or not loaded.model.rope.static):
        why = "sinks" if sinks else "a RoPE scaling that goes by the length of the text"
        raise InputError(f"speculate: guesses cannot be read with {why}; leave one of the two out")
    propose = None if speculate is None else speculate(loaded)
    return Engine(loaded.model, loaded.tokenizer.vocab_size, sinks, slots, propose=propose)


class ServingRecipe(SamplingRecipe):
    """Which model answers, and how."""

    model: Path = Field(description="a run or a Hugging Face LLaMA folder", examples=["model=runs/NAME"])
    system: str = Field(default="", description="the system message of a chat")
    max_tokens: int = Field(default=512, ge=1, description="the longest answer")
    rope: RopeConfig | None = Field(default=None, description="another RoPE scaling, for a longer context")
    sinks: int = Field(default=0, ge=0, description="first tokens to keep for text without end, such as 4; 0 is off")
    speculate: Speculation | None = Field(
        default=None, description="guess the next tokens and read them at once: the same answer, sooner")  # fmt: skip
    device: DeviceChoice = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="of the model; auto: what suits the machine"
    )

    def open(self) -> tuple[Engine, Tokenizer]:
        """The model in an engine, and its tokenizer. Raises InputError as `load` and `engine_of`."""
        device = pick_device(self.device)
        precision = None if self.precision == "auto" else pick_precision(self.precision, device)
        loaded = load(self.model, device, precision, self.rope)
        return engine_of(loaded, self.speculate, self.sinks), loaded.tokenizer
