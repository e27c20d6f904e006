"""arena: two or more models answer the same prompts, a person votes without knowing who wrote what, votes become ranks.

First a page is written that opens offline and saves the votes as a file; then `votes=` reads such files. Not here: the
model of preferences (evals/ratings.py).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from pydantic import Field, model_validator
from rich.console import Console

from babyllama.atomic import check_writable, read_json, write_atomic
from babyllama.commands.report_words import Language
from babyllama.commands.table import table_of
from babyllama.errors import InputError, cause
from babyllama.evals.ratings import Rating, Vote, ratings
from babyllama.hardware import DeviceChoice
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import AnswerSampling, Drawn, SamplingRecipe
from babyllama.load import load, model_folder, own_sampling, pick_device, pick_precision
from babyllama.tokenizer.chat import render_chat

TEMPLATE = Path(__file__).with_name("arena.html")
WON = {"left": 1.0, "tie": 0.5, "right": 0.0}


class ArenaRecipe(SamplingRecipe):
    """Which models answer what; or, with `votes`, the files of votes to rank them by."""

    runs: tuple[Path, ...] = Field(default=(), description="two or more runs or Hugging Face folders")
    prompts: Path | None = Field(default=None, description="a text file, one prompt a line")
    votes: tuple[Path, ...] = Field(default=(), description="files that the page saved: ranks instead of a page")
    out: Path = Field(default=Path("arena.html"), description="the page to write")
    chat: bool = Field(default=True, description="put prompts as questions in each model's chat template")
    max_tokens: int = Field(default=128, ge=1, description="the longest answer")
    sampling: Drawn = AnswerSampling()
    language: Language = Field(default="en", description="of the page: English or Chinese")
    device: DeviceChoice = "auto"

    @model_validator(mode="after")
    def _one_of_both(self) -> ArenaRecipe:
        if not self.votes and (len(self.runs) < 2 or self.prompts is None):
            raise ValueError("give two or more runs and prompts=FILE to write a page, or votes=[FILE] to rank by")
        return self


def main(recipe: ArenaRecipe) -> None:
    """Write the page, or show the ranks."""
    if recipe.votes:
        Console(highlight=False).print(table([vote for path in recipe.votes for vote in votes_of(path)]))
        return
    assert recipe.prompts is not None
    names = [str(path) for path in recipe.runs]
    if len(set(names)) < len(names):
        raise InputError("runs: one of them is there twice")
    prompts = prompts_of(recipe.prompts)
    check_writable(recipe.out)
    for path in recipe.runs:  # before the first of them answers
        model_folder(path)
    answers = [answers_of(recipe, path, prompts) for path in recipe.runs]
    write_atomic(recipe.out, page(names, prompts, answers, recipe.language))
    print(f"{recipe.out} is ready; open it in a browser, vote, save, then: babyllama arena 'votes=[arena-votes.json]'")


def prompts_of(path: Path) -> list[str]:
    """Raises InputError: no such file, or nothing in it."""
    try:
        found = list(dict.fromkeys(line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompts: {path} cannot be read ({cause(error)}); give a text file, one prompt a line"
                         ) from None  # fmt: skip
    if not found:
        raise InputError(f"prompts: {path} is empty; write one prompt a line")
    return found


def answers_of(recipe: ArenaRecipe, path: Path, prompts: list[str]) -> list[str]:
    """One model's answer to each prompt. Raises InputError: a prompt that leaves no room for an answer."""
    device = pick_device(recipe.device)
    loaded = load(path, device, pick_precision("auto", device))
    tokenizer = loaded.tokenizer
    if recipe.chat:
        asked = [render_chat(tokenizer, [{"role": "user", "content": text}], True).tokens for text in prompts]
    else:
        asked = [[*tokenizer.start_ids, *tokenizer.encode(text)] for text in prompts]
    sampling = recipe.sampling.over(own_sampling(path))
    found = Engine(loaded.model, tokenizer.vocab_size).generate(asked, sampling, recipe.max_tokens, tokenizer.stop_ids)
    texts = map(tokenizer.decode, found) if recipe.chat else map(tokenizer.continuation, asked, found)
    return [text.strip() for text in texts]


def page(names: list[str], prompts: list[str], answers: list[list[str]], language: Language) -> str:
    """The page, with everything in it. What models wrote stands in it as data, and is shown as text."""
    data = json.dumps({"names": names, "prompts": prompts, "answers": answers}, ensure_ascii=False)
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(data=Markup(data), zh=language == "zh")


# ── votes ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def votes_of(path: Path) -> list[Vote]:
    """Raises InputError: not a file of votes."""
    held: Any = read_json(path, "save it from the page that babyllama arena writes").get("votes")
    if not isinstance(held, list) or not held:
        raise InputError(f"{path}: holds no votes; save it from the page after voting")
    found = []
    for number, one in enumerate(held, start=1):
        known = isinstance(one, dict) and all(isinstance(one.get(side), str) for side in ("left", "right"))
        if not known or one.get("winner") not in WON or one["left"] == one["right"]:
            raise InputError(f"{path}: vote {number} must have two names, left and right, and a winner: "
                             "left, right or tie")  # fmt: skip
        found.append(Vote(one["left"], one["right"], WON[one["winner"]]))
    return found


def table(votes: list[Vote]) -> Any:
    """The strongest first, with the chance to be preferred to the strongest."""
    found = ratings(votes)
    shown = table_of(["model"], ["votes", "strength", "95 %", "preferred to\nthe first"],
                     title=f"Bradley–Terry, {len(votes)} votes")  # fmt: skip
    for one in found:
        shown.add_row(one.name, str(one.votes), f"{one.strength:+.2f}", f"{one.low:+.2f} – {one.high:+.2f}",
                      f"{_preferred(one, found[0]):.0%}" if one is not found[0] else "–")  # fmt: skip
    return shown


def _preferred(one: Rating, other: Rating) -> float:
    return 1 / (1 + math.exp(other.strength - one.strength))
