"""chat: talk to a model in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from babyllama.data.shards.shards import Prepared
from babyllama.errors import InputError
from babyllama.hardware import DeviceChoice
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling, SamplingRecipe
from babyllama.load import load, pick_device, pick_precision
from babyllama.model.laws import RopeConfig
from babyllama.serve.terminal import Conversation, talk


class ChatRecipe(SamplingRecipe):
    """The verb's recipe. The same seed and the same questions give the same chat."""

    model: Path = Field(description="a run or a Hugging Face LLaMA folder")
    system: str = Field(default="", description="the system message")
    max_tokens: int = Field(default=512, ge=1, description="the longest answer")
    sampling: Sampling = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.1)
    rope: RopeConfig | None = Field(default=None, description="another law, for a longer context")
    sinks: int = Field(default=0, ge=0, description="first tokens kept for an endless text, such as 4; 0 is off")
    device: DeviceChoice = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


def main(recipe: ChatRecipe) -> None:
    """Load the model and talk until the input ends."""
    device = pick_device(recipe.device)
    loaded = load(recipe.model, device, pick_precision(recipe.precision, device), recipe.rope)
    engine = Engine(loaded.model, loaded.tokenizer.vocab_size, recipe.sinks)
    chat = Conversation(engine, loaded.tokenizer, recipe.sampling, recipe.max_tokens, recipe.system)
    talk(chat, remarks(recipe.model))


def remarks(model: Path) -> tuple[str, ...]:
    """A warning for a run that was trained on texts only; nothing where its recipe or its data are not at hand."""
    try:
        recipe = yaml.safe_load((model / "recipe.yaml").read_text("utf-8"))
        corpora = Prepared.open(recipe["data"]["path"]).manifest["corpora"].values()
    except (OSError, KeyError, TypeError, yaml.YAMLError, InputError):
        return ()
    if any(corpus["kind"] == "chat" for corpus in corpora):
        return ()
    return (f"{model} was trained on texts, not on chats: it goes on from what you write rather than answer; "
            "fine-tune it on chats first, or continue a text with: babyllama generate",)  # fmt: skip
