"""generate: continue a text, or answer one question."""

from __future__ import annotations

from pydantic import Field
from rich.console import Console

from babyllama.commands.serving import ServingRecipe
from babyllama.infer.sampling import Sampling
from babyllama.serve.terminal import Conversation, stream_text


class GenerateRecipe(ServingRecipe):
    """The verb's recipe. Sample i draws with sampling.seed + i."""

    prompt: str = Field(default="", description="empty: the model writes a text of its own")
    chat: bool = Field(default=False, description="put the prompt as a question in the chat template")
    samples: int = Field(default=1, ge=1)
    max_tokens: int = Field(default=256, ge=1, description="the longest text")
    sampling: Sampling = Sampling(temperature=0.8, top_p=0.95, repetition_penalty=1.1)


def main(recipe: GenerateRecipe) -> None:
    """Print every sample as it is made."""
    engine, tokenizer = recipe.open()
    console = Console(highlight=False, markup=False)
    for seed in range(recipe.sampling.seed, recipe.sampling.seed + recipe.samples):
        if recipe.samples > 1:
            console.print(f"── seed {seed}", style="dim")
        if recipe.chat:
            sampling = recipe.sampling.model_copy(update={"seed": seed})
            pieces = Conversation(engine, tokenizer, sampling, recipe.max_tokens, recipe.system).ask(recipe.prompt)
        else:
            console.file.write(recipe.prompt)
            text = tokenizer.encode(recipe.prompt)
            pieces = stream_text(engine, tokenizer, [*tokenizer.start_ids, *text], recipe.sampling,
                                 recipe.max_tokens, seed, after=text)  # fmt: skip
        for piece in pieces:
            console.file.write(piece)
            console.file.flush()
        console.file.write("\n")
