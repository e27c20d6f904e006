"""verify: whether other programs give the same answers as this one, from the files that they would load."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator
from rich.console import Console

from babyllama.amounts import amount
from babyllama.atomic import check_writable, write_json
from babyllama.commands.table import table_of
from babyllama.errors import InputError, at_home, needs_extra
from babyllama.export.compare import Compared, compared
from babyllama.export.peers import Chat, Peer, in_llamacpp, in_transformers, on_a_server, ours
from babyllama.export.prompts import prompts
from babyllama.load import Loaded, load, model_folder
from babyllama.model.adapters import is_adapter
from babyllama.recipe import Changeable, Recipe
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.tokenizer import Tokenizer

KEY = "OPENAI_API_KEY"


class VerifyRecipe(Recipe):
    """The verb's recipe. Ours computes in float32 on the CPU."""

    model: Path = Field(description="a run or a Hugging Face LLaMA folder")
    against: tuple[str, ...] = Field(
        default=("transformers",), min_length=1,
        description="transformers, llama.cpp (from an F32 file made for it), a folder or a .gguf file of yours, or the "
        "address of a server of OpenAI's protocol, up to /v1 (of several models …/v1#NAME)",
    )  # fmt: skip
    prompts: int = Field(default=200, ge=1, le=2000, description="questions: Chinese, English, code and mixed")
    max_tokens: int = Field(default=32, ge=1, description="the longest answer")
    tolerance: float = Field(default=1e-3, ge=0, description="of the first token's log-probabilities, nats")
    least: float = Field(default=1.0, ge=0, le=1, description="share of answers, and of their ends, that must be equal")
    api_key: str = Field(default="", description=f"of a server; empty: from ${KEY}")
    out: Changeable[Path | None] = Field(default=None, description="also write the figures here, as JSON")

    @field_validator("against", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        """A single word needs no brackets."""
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def main(recipe: VerifyRecipe) -> None:
    """Show one line for each program, and where it first differs; exit code 1 where one is beyond tolerance."""
    console = Console(highlight=False)
    if recipe.out:
        check_writable(recipe.out)
    loaded = load(recipe.model, torch.device("cpu"), "fp32")
    chats, cut = fitting(loaded, recipe.prompts, recipe.max_tokens)
    if cut:
        console.print(f"{amount(cut, 'question')} shortened, to fit the model's context with an answer")
    tokenizer, found = loaded.tokenizer, dict[str, Compared]()
    with ExitStack() as opened:
        peers = {name: _peer(name, recipe, loaded, opened) for name in recipe.against}  # all, before the first answers
        mine = ours(loaded.model, tokenizer)(chats, recipe.max_tokens)
        for name, peer in peers.items():
            theirs = peer(chats, recipe.max_tokens)
            found[name] = compared(mine, theirs, lambda i: tokenizer.decode([i], skip_special=False), recipe.tolerance)
    _show(found, recipe, console)
    if recipe.out:
        write_json(recipe.out, {**recipe.model_dump(mode="json", exclude={"api_key"}),
                                "found": {name: result._asdict() for name, result in found.items()}})  # fmt: skip
    if not all(result.holds(recipe.tolerance, recipe.least) for result in found.values()):
        raise SystemExit(1)


def fitting(loaded: Loaded, count: int, longest: int) -> tuple[list[Chat], int]:
    """One chat a question, and how many questions were shortened so that an answer fits behind them.

    Raises:
        InputError: the context is too short for answers of this length.
    """
    room, cut = loaded.model.config.max_position_embeddings - longest, 0

    def length(text: str, tokenizer: Tokenizer = loaded.tokenizer) -> int:
        return len(render_chat(tokenizer, [{"role": "user", "content": text}], True).tokens)

    if length("?") > room:
        raise InputError(f"max_tokens: {longest} leaves no room for a question in a context of "
                         f"{loaded.model.config.max_position_embeddings} tokens; choose less")  # fmt: skip
    chats: list[Chat] = []
    for text in prompts(count):
        short = text
        while length(short) > room:
            short = short[: len(short) // 2] or "?"
        cut += short != text
        chats.append([{"role": "user", "content": short}])
    return chats, cut


def _peer(name: str, recipe: VerifyRecipe, loaded: Loaded, opened: ExitStack) -> Peer:
    """Who is meant by a word of `against`."""
    if name.startswith(("http://", "https://")):
        return on_a_server(name, recipe.api_key or os.environ.get(KEY, ""))
    if name == "transformers":
        folder = model_folder(recipe.model)
        if is_adapter(folder):
            raise InputError(f"{folder}: an adapter alone is no model in transformers; export it with to=hf, and give "
                             "that folder in against")  # fmt: skip
        return in_transformers(folder)
    if name == "llama.cpp":
        try:
            from babyllama.export.gguf_file import write_gguf
        except ImportError as error:
            raise needs_extra(error.name or "gguf", "export") from None
        file = Path(opened.enter_context(tempfile.TemporaryDirectory())) / "model.gguf"
        write_gguf(loaded.model, loaded.tokenizer, file, "F32", "model")
        return in_llamacpp(file)
    path = at_home(name)
    if path.is_file():
        return in_llamacpp(path)
    if path.is_dir():
        return in_transformers(model_folder(path))
    raise InputError(f"against: {name} is no file, folder or address; transformers and llama.cpp need none")


def _show(found: dict[str, Compared], recipe: VerifyRecipe, console: Console) -> None:
    table = table_of(["against"], ["prompts'\nids equal", "log-prob.\ndiffers by", "answers\nequal", "ends\nequal", ""])
    for name, result in found.items():
        ids = "not told" if result.prompts is None else f"{result.prompts} of {result.asked}"
        gap = "not told" if result.first is None else f"{result.first:.1e}"
        verdict = "same" if result.holds(recipe.tolerance, recipe.least) else "differs"
        table.add_row(
            name, ids, gap, f"{result.answers} of {result.asked}", f"{result.ends} of {result.asked}", verdict
        )
    console.print(table)
    for name, result in found.items():
        for remark in result.remarks:
            console.print(f"{name}: {remark}", markup=False, soft_wrap=True)
