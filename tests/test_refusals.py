"""How a refused value reads: where, what, and what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from babyllama.errors import InputError
from babyllama.recipe import Recipe, load_recipe


class Wsd(Recipe):
    kind: Literal["wsd"] = "wsd"


class Cosine(Recipe):
    kind: Literal["cosine"] = "cosine"
    cycles: float = 0.5


class Corpus(Recipe):
    path: Path


class Example(Recipe):
    schedule: Annotated[Wsd | Cosine, Field(discriminator="kind")] = Wsd()
    guess: Annotated[Wsd | Cosine, Field(discriminator="kind")] | None = None
    corpora: tuple[Corpus, ...] = Field((), examples=["corpora=[{path: my.txt}]"])
    prompts: tuple[str, ...] = ()
    models: tuple[Path | Corpus, ...] = ()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("schedule=3", ["schedule: has keys of its own, got 3; write schedule.kind=…"]),
        ("schedule=cosin", ["schedule: there is no 'cosin'; did you mean cosine? there are wsd, cosine"]),
        ("schedule.kind=x", ["schedule.kind: there is no 'x'; there are wsd, cosine"]),
        ("guess={cycles: 2}", ["guess.kind: this key must be given; there are wsd, cosine"]),
        ("corpora=a.txt", ['corpora: must be a list in brackets, got "a.txt"; write corpora=[{path: my.txt}]']),
        ("corpora=[a.txt]", ['corpora.0: has keys of its own, got "a.txt"; write corpora=[{path: my.txt}]']),
        ("prompts=春", ['prompts: must be a list in brackets, got "春"; write prompts=[春]']),
        ("prompts=5", ["prompts: must be a list in brackets, got 5; write prompts=[…, …]"]),
        ("models=[5]", ["models.0: input should be a valid string, got 5",
                        "models.0: has keys of its own, got 5; write models.0.path=…"]),
    ],
)  # fmt: skip
def test_another_shape_is_said_in_words(override, said):
    """Without pydantic's own names of types in the path."""
    with pytest.raises(InputError) as error:
        load_recipe(Example, None, [override])
    assert str(error.value).splitlines() == said
