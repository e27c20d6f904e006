"""generate: continue a text, or answer one question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from rich.console import Console

from babyllama.atomic import read_json
from babyllama.commands.serving import ServingRecipe
from babyllama.infer.request import Request, TokenMask
from babyllama.infer.sampling import AnswerSampling, Drawn
from babyllama.infer.text import Text, pieces
from babyllama.load import own_sampling
from babyllama.serve.conversation import Conversation, printable
from babyllama.tokenizer.tokenizer import Tokenizer


class GenerateRecipe(ServingRecipe):
    """The verb's recipe. Sample i draws with sampling.seed + i."""

    prompt: str = Field(default="", description="empty: the model writes a text of its own")
    chat: bool = Field(default=False, description="put the prompt as a question in the chat template")
    samples: int = Field(default=1, ge=1, description="texts, each drawn anew")
    max_tokens: int = Field(default=256, ge=1, description="the longest text")
    json_schema: dict[str, Any] | Path | None = Field(
        default=None, description="what follows is JSON of this schema: a file, or the schema itself")  # fmt: skip
    regex: str = Field(default="", description="what follows matches this regular expression as a whole")
    sampling: Drawn = AnswerSampling()

    @model_validator(mode="after")
    def _one_form(self) -> GenerateRecipe:
        if self.json_schema is not None and self.regex:
            raise ValueError("json_schema and regex exclude each other; give one of them")
        return self


def main(recipe: GenerateRecipe) -> None:
    """Print every sample as it is made.

    Raises:
        InputError: as `load`; a schema or a regular expression that is wrong, a prompt that fills the context.
    """
    engine, tokenizer = recipe.open()
    sampling = recipe.sampling.over(own_sampling(recipe.model))
    console = Console(highlight=False, markup=False)
    before = [] if recipe.chat else tokenizer.encode(recipe.prompt)
    prompt = [*tokenizer.start_ids, *before]
    if recipe.chat:
        prompt = Conversation(engine, tokenizer, sampling, system=recipe.system).prompt(recipe.prompt)
    forms = Forms(recipe, tokenizer)
    for seed in range(sampling.seed, sampling.seed + recipe.samples):
        request = Request(prompt, sampling, recipe.max_tokens, tokenizer.stop_ids, seed, mask=forms.mask())
        if recipe.samples > 1:
            console.print(f"── seed {seed}", style="dim")
        console.file.write("" if recipe.chat else recipe.prompt)
        for piece in map(printable, pieces(engine, request, Text(tokenizer, after=before))):
            console.file.write(piece)
            console.file.flush()
        console.file.write("\n")


class Forms:
    """The form that a recipe asks of its texts.

    Raises:
        InputError: a schema that cannot be read.
    """

    def __init__(self, recipe: GenerateRecipe, tokenizer: Tokenizer) -> None:
        given = recipe.json_schema
        self.regex = recipe.regex
        self.schema = read_json(given, "give a file with a JSON Schema") if isinstance(given, Path) else given
        if self.regex or self.schema is not None:
            from babyllama.infer.grammar import Grammars

            self.grammars = Grammars(tokenizer)

    def mask(self) -> TokenMask | None:
        """For one text. Raises InputError for a schema or a regular expression that is wrong."""
        if self.schema is not None:
            return self.grammars.json_schema(self.schema)
        return self.grammars.regex(self.regex) if self.regex else None
