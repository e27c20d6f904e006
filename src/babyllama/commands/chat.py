"""chat: talk to a model in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from babyllama.amounts import amount
from babyllama.commands.serving import ServingRecipe
from babyllama.data.shards.shards import Prepared, usual_turns
from babyllama.data.toolworld.tools import TOOLS, call
from babyllama.errors import InputError
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import AnswerSampling, Drawn
from babyllama.load import own_sampling
from babyllama.moved import leads
from babyllama.run import Run
from babyllama.serve.conversation import Conversation, Tools
from babyllama.serve.keyboard import history_file
from babyllama.serve.terminal import talk
from babyllama.tokenizer.chat import TEMPLATES
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.rl.agents import ToolUse


class ChatRecipe(ServingRecipe):
    """The verb's recipe. The same seed and the same questions give the same chat."""

    memory: int | None = Field(
        default=None,
        ge=0,
        description="earlier turns that the model sees; default: as many as its training chats had",
    )
    thinking: bool | None = Field(default=None, description="whether answers think first; default: as the model likes")
    tools: ToolUse | None = Field(
        default=None,
        description="tools that answers may call; each call is shown with its result",
    )
    turns: bool = Field(default=False, description="piped lines are turns of one chat; default: each stands alone")
    history: bool = Field(default=True, description="what is typed comes back with the key ↑, also in later chats")
    sampling: Drawn = AnswerSampling()


class Lessons(NamedTuple):
    """What a model learned of chats, as far as its run says: None is not known.

    turns: as many answers as its chats usually had; 0: none, it was trained on texts.
    question: one that it was trained on.
    """

    turns: int | None = None
    question: str | None = None


def main(recipe: ChatRecipe) -> None:
    """Load the model and talk until the input ends."""
    engine, tokenizer = recipe.open()
    lessons = learned(recipe.model, tokenizer)
    memory = max(0, lessons.turns - 1) if recipe.memory is None and lessons.turns else recipe.memory
    tools = None if recipe.tools is None else tools_of(recipe.tools)
    sampling = recipe.sampling.over(own_sampling(recipe.model))
    chat = Conversation(engine, tokenizer, sampling, recipe.max_tokens, recipe.system, memory, recipe.thinking,
                        tools)  # fmt: skip
    said = remarks(recipe.model, tokenizer, lessons, memory)
    if tools is not None:
        said += (f"it may call: {', '.join(TOOLS)}",)

    def another(path: Path) -> tuple[Engine, Tokenizer]:
        return recipe.model_copy(update={"model": path}).open()

    talk(chat, another, said, recipe.turns, history_file() if recipe.history else None)


def tools_of(use: ToolUse) -> Tools:
    """The tools of the made-up world, all of them."""
    specs = [tool.spec for tool in TOOLS.values()]
    return Tools(specs, lambda name, arguments: call(name, arguments, TOOLS.keys()).text, use.rounds)


def learned(model: Path, tokenizer: Tokenizer) -> Lessons:
    """From the training run behind `model`: its record, and its data where they are still at hand."""
    path = _training_run(model)
    if path is None:
        return Lessons()
    turns = _recorded(path)
    try:
        data = Run(path).plain_recipe["data"]
        prepared = Prepared.open(leads(path, data["path"]))
        weights: dict[str, float] = data.get("weights") or dict.fromkeys(prepared.corpora, 1.0)
        labels = sorted(weights, key=lambda label: -weights[label])
        stores = [prepared.store(label, "train") for label in labels]
    except (OSError, KeyError, TypeError, InputError):
        return Lessons(turns)
    chats = [store for store in stores if store.kind != "text" and store.documents]
    question = _question(chats[0].tokens(0, int(chats[0].document_offsets[1])), tokenizer) if chats else None
    return Lessons(turns or usual_turns(chats), question)


def _training_run(model: Path) -> Path | None:
    """The training run that holds `model`, or that a quantised or merged run was made of."""
    path = model if (model / "run.json").is_file() or (model / "recipe.yaml").is_file() else model.resolve().parent
    for _ in range(8):
        info = _info(path)
        if info.get("verb", "train") == "train":
            return path if (path / "recipe.yaml").is_file() else None
        if not info.get("parent"):
            return None
        path = leads(path, info["parent"])
    return None


def turns_of(model: Path) -> int | None:
    """As many answers as its training's chats usually had, as the run wrote it down; None: not known."""
    path = _training_run(model)
    return None if path is None else _recorded(path)


def questions_of(model: Path) -> tuple[str, ...]:
    """The chat prompts that its training's recipe had it answer from time to time."""
    path = _training_run(model)
    if path is None:
        return ()
    try:
        samples = Run(path).plain_recipe["samples"]
        return tuple(samples["prompts"]) if samples["chat"] else ()
    except (OSError, KeyError, TypeError, InputError):
        return ()


def _info(path: Path) -> dict[str, Any]:
    try:
        return Run.open(path).info
    except InputError:
        return {}


def _recorded(path: Path) -> int | None:
    return _info(path).get("summary", {}).get("turns")


def _question(tokens: Any, tokenizer: Tokenizer) -> str | None:
    """The first question of a chat's tokens; None where only a foreign template knows which words are the user's."""
    if tokenizer.chat_template not in TEMPLATES:
        return None
    ids, roles = [int(token) for token in tokens], tokenizer.role_ids
    if tokenizer.chat_template == "bos":
        return tokenizer.decode(ids[: ids.index(tokenizer.bos_id)]) if tokenizer.bos_id in ids else None
    if roles["user"] not in ids or roles["assistant"] not in ids:
        return None
    return tokenizer.decode(ids[ids.index(roles["user"]) : ids.index(roles["assistant"])])


def remarks(model: Path, tokenizer: Tokenizer, lessons: Lessons, memory: int | None) -> tuple[str, ...]:
    """What is said before the first question: which model, what it sees of the conversation, what to ask."""
    if lessons.turns == 0:
        return (f"{model} was trained on texts, not on chats: it goes on from what you write rather than answer; "
                "fine-tune it on chats first, or continue a text with: babyllama generate",)  # fmt: skip
    own = tokenizer.chat_template not in TEMPLATES
    told = f"{model}, asked in its own chat template" if own else f"{model}"
    if memory is not None:
        why = "" if lessons.turns is None else f" (its training chats had up to {amount(lessons.turns, 'turn')})"
        told += f"; sees the last {amount(memory, 'turn')} beside your question{why}" if memory else (
            f"; each question is asked by itself{', as it was trained' if lessons.turns == 1 else ''}")  # fmt: skip
    return (f"{told}; try: {lessons.question}" if lessons.question else told,)
