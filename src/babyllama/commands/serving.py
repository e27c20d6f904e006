"""The recipe fields that chat and generate share, and the model that they name, ready to answer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from babyllama.hardware import DeviceChoice
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import SamplingRecipe
from babyllama.load import load, pick_device, pick_precision
from babyllama.model.laws import RopeConfig
from babyllama.tokenizer.tokenizer import Tokenizer


class ServingRecipe(SamplingRecipe):
    """Which model answers, and how."""

    model: Path = Field(description="a run or a Hugging Face LLaMA folder", examples=["model=runs/NAME"])
    system: str = Field(default="", description="the system message of a chat")
    max_tokens: int = Field(default=512, ge=1, description="the longest answer")
    rope: RopeConfig | None = Field(default=None, description="another RoPE scaling, for a longer context")
    sinks: int = Field(default=0, ge=0, description="first tokens kept for an endless text, such as 4; 0 is off")
    device: DeviceChoice = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"

    def open(self) -> tuple[Engine, Tokenizer]:
        """The model in an engine, and its tokenizer. Raises InputError as `load`."""
        device = pick_device(self.device)
        precision = None if self.precision == "auto" else pick_precision(self.precision, device)
        loaded = load(self.model, device, precision, self.rope)
        return Engine(loaded.model, loaded.tokenizer.vocab_size, self.sinks), loaded.tokenizer
