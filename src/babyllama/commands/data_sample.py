"""data sample: some documents of a corpus at random, as text, with what the loss covers."""

from __future__ import annotations

from pydantic import Field
from rich.console import Console

from babyllama.amounts import amount
from babyllama.commands.looking import Chosen, coloured, legend, looking_at, say
from babyllama.recipe import Seed


class DataSampleRecipe(Chosen):
    """Which documents, and how many."""

    count: int = Field(5, ge=1, description="how many documents")
    seed: Seed = Field(0, description="of the draw; the same one shows the same documents")
    tokens: int = Field(400, ge=1, description="of each document, at most so many tokens are shown")


def main(recipe: DataSampleRecipe) -> None:
    """Draw and show."""
    console = Console(highlight=False)
    with looking_at(recipe) as looking:
        drawn = recipe.selection(looking).drawn(recipe.count, recipe.seed)
        legend(console)
        for shown in drawn:
            say(console, f"\n── {shown.corpus}, {shown.split}, document {shown.document:,}: "
                         f"{amount(shown.tokens, 'token')}")  # fmt: skip
            for part in shown.parts:
                if part.title:
                    say(console, f"{part.title}:")
                console.print(coloured(part.pieces(looking.tokenizer, recipe.tokens), console), soft_wrap=True)
                if len(part.tokens) > recipe.tokens:
                    say(console, f"… {len(part.tokens) - recipe.tokens:,} more tokens")
