"""arena: two or more models answer the same prompts, a person votes without knowing who wrote what, votes become ranks.

First a page is written that opens offline and saves the votes as a file; then `votes=` reads such files, and those that
the web app saves, and can write them as preference pairs. Not here: the model of preferences (evals/ratings.py).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup
from pydantic import Field, model_validator
from rich.console import Console

from babyllama.atomic import check_writable, parse_json, read_json, write_atomic
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
    votes: tuple[Path, ...] = Field(default=(), description="files that it or the web app saved: ranks, no page")
    pairs: Path | None = Field(default=None, description="with votes: a .jsonl to write them to as preference pairs")
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
        if self.pairs and not self.votes:
            raise ValueError("pairs: are made of votes=[FILE], which are missing")
        return self


def main(recipe: ArenaRecipe) -> None:
    """Write the page, or show the ranks."""
    if recipe.votes:
        cast = [one for path in recipe.votes for one in votes_of(path)]
        if recipe.pairs:
            save_pairs(recipe.pairs, cast)
        Console(highlight=False).print(table([one.vote for one in cast]))
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
    lines = read_text(path, "prompts", "give a text file, one prompt a line").splitlines()
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise InputError(f"prompts: {path} is empty; write one prompt a line")
    return found


def read_text(path: Path, key: str, remedy: str) -> str:
    """Raises InputError: no such file, or no text."""
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{key}: {path} cannot be read ({cause(error)}); {remedy}") from None


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
class Ballot(NamedTuple):
    """A vote, and its preference pair, as the web app's votes.jsonl has them; None where neither answer was better or
    the file does not hold the answers."""

    vote: Vote
    pair: dict[str, Any] | None


def votes_of(path: Path) -> list[Ballot]:
    """Raises InputError: not a file of votes."""
    if path.suffix == ".jsonl":
        return _of_app(path)
    held: Any = read_json(path, "save it from the page that babyllama arena writes").get("votes")
    if not isinstance(held, list) or not held:
        raise InputError(f"{path}: holds no votes; save it from the page after voting")
    found = []
    for number, one in enumerate(held, start=1):
        known = isinstance(one, dict) and all(isinstance(one.get(side), str) for side in ("left", "right"))
        if not known or one.get("winner") not in WON or one["left"] == one["right"]:
            raise InputError(f"{path}: vote {number} must have two names, left and right, and a winner: "
                             "left, right or tie")  # fmt: skip
        found.append(Ballot(Vote(one["left"], one["right"], WON[one["winner"]]), _pair(one)))
    return found


def _of_app(path: Path) -> list[Ballot]:
    found = []
    for number, line in enumerate(read_text(path, "votes", "give files that a page saved").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            one = parse_json(line)
            better, worse = one["chosen_model"], one["rejected_model"]
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{path}: line {number} is no vote as the web app saves it, for want of "
                             "chosen_model or rejected_model") from None  # fmt: skip
        if better != worse:  # a model beside itself says nothing of models
            found.append(Ballot(Vote(str(better), str(worse), WON["left"]), one))
    if not found:
        raise InputError(f"{path}: holds no votes; save it from the web app's page Compare after voting")
    return found


def _pair(one: dict[str, Any]) -> dict[str, Any] | None:
    match one:
        case {"winner": "left" | "right" as winner, "prompt": str(prompt), "answers": [str(left), str(right)]}:
            sides = [(left, one["left"]), (right, one["right"])]
            (better, its_model), (worse, other) = sides if winner == "left" else reversed(sides)
            return None if better == worse else {
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": better}],
                "rejected": [{"role": "assistant", "content": worse}],
                "chosen_model": its_model,
                "rejected_model": other,
            }  # fmt: skip
        case _:
            return None


def save_pairs(path: Path, cast: list[Ballot]) -> None:
    """Raises InputError: no vote has a better answer, or the files do not hold answers."""
    pairs = [one.pair for one in cast if one.pair]
    if not pairs:
        raise InputError("pairs: none of these votes says which answer is better and holds both; pages of older "
                         "versions did not save the answers")  # fmt: skip
    check_writable(path)
    write_atomic(path, "".join(f"{json.dumps(pair, ensure_ascii=False)}\n" for pair in pairs))
    print(f"{path}: {len(pairs)} preference pairs of {len(cast)} votes; in the others neither answer was better")


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
