"""generate: continue a text, or answer one question."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from rich.console import Console

from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling, SamplingRecipe
from babyllama.load import load, pick_device, pick_precision
from babyllama.model.laws import RopeConfig
from babyllama.serve.terminal import Conversation, stream_text


class GenerateRecipe(SamplingRecipe):
    """The verb's recipe. Sample i draws with sampling.seed + i."""

    model: Path = Field(description="a run or a Hugging Face LLaMA folder")
    prompt: str = Field(default="", description="empty: the model writes a text of its own")
    chat: bool = Field(default=False, description="put the prompt as a question in the chat template")
    system: str = Field(default="", description="the system message of a chat")
    samples: int = Field(default=1, ge=1)
    max_tokens: int = Field(default=256, ge=1)
    sampling: Sampling = Sampling(temperature=0.8, top_p=0.95, repetition_penalty=1.1)
    rope: RopeConfig | None = Field(default=None, description="another law, for a longer context")
    sinks: int = Field(default=0, ge=0, description="first tokens kept for an endless text, such as 4; 0 is off")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


def main(recipe: GenerateRecipe) -> None:
    """Print every sample as it is made."""
    device = pick_device(recipe.device)
    loaded = load(recipe.model, device, pick_precision(recipe.precision, device), recipe.rope)
    engine, tokenizer = Engine(loaded.model, loaded.tokenizer.vocab_size, recipe.sinks), loaded.tokenizer
    console = Console(highlight=False, markup=False)
    for seed in range(recipe.sampling.seed, recipe.sampling.seed + recipe.samples):
        if recipe.samples > 1:
            console.print(f"── seed {seed}", style="dim")
        if recipe.chat:
            sampling = recipe.sampling.model_copy(update={"seed": seed})
            pieces = Conversation(engine, tokenizer, sampling, recipe.max_tokens, recipe.system).ask(recipe.prompt)
        else:
            console.file.write(recipe.prompt)
            # Every text of the training data stands after an end token.
            end = tokenizer.eos_id
            prompt = [end, *tokenizer.encode(recipe.prompt)]
            pieces = stream_text(engine, tokenizer, prompt, recipe.sampling, recipe.max_tokens, {end}, seed)
        for piece in pieces:
            console.file.write(piece)
            console.file.flush()
        console.file.write("\n")
