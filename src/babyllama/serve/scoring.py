"""Scores over HTTP: conversations as a reward model's training rendered them → what it finds their answers worth.

Not here: the score itself (train/losses/reward.py), how a chat is rendered (prompts.py).
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Sequence
from typing import Any

from babyllama.serve.faults import Refused
from babyllama.serve.gate import Record
from babyllama.serve.link import Link, Model
from babyllama.serve.prompts import rendered
from babyllama.serve.protocol import ChatMessage, ScoreRequest


async def scored(asked: ScoreRequest, link: Link, record: Record) -> dict[str, Any]:
    """A score for each conversation, in their order. Raises Refused."""
    record.model = asked.model

    async def found(model: Model) -> tuple[list[list[int]], list[float]]:
        texts = await asyncio.to_thread(texts_of, model, asked)
        return texts, await link.call("score", asked.model, model.mark, texts)

    texts, scores = await link.with_model(asked.model, found)
    if not all(map(math.isfinite, scores)):
        raise Refused(500, "a score is not finite: the model's weights are damaged")
    record.tokens_in = sum(map(len, texts))
    data = [{"object": "score", "index": i, "score": score} for i, score in enumerate(scores)]
    return {"id": f"score-{secrets.token_hex(16)}", "object": "list", "created": int(time.time()), "model": asked.model,
            "data": data, "usage": {"prompt_tokens": record.tokens_in, "total_tokens": record.tokens_in}}  # fmt: skip


def texts_of(model: Model, asked: ScoreRequest) -> list[list[int]]:
    """The tokens of each conversation, up to what ends the answer.

    Raises:
        Refused: no reward model; what is no conversation with an answer, or longer than the context.
    """
    if not model.scores:
        raise Refused(400, f"the model {model.name!r} is no reward model and has no scores; train one with "
                      "objective.kind=reward", "model")  # fmt: skip
    given, tools = conversations(asked), [tool.model_dump(exclude_none=True) for tool in asked.tools or ()]
    found = list[list[int]]()
    for number, messages in enumerate(given):
        where = f"conversation {number}: " if len(given) > 1 else ""
        if not messages or messages[-1].role != "assistant":
            raise Refused(400, f"{where}messages: must end with the assistant's answer, which is what is scored",
                          "messages")  # fmt: skip
        try:
            tokens = rendered(model.tokenizer, messages, tools)
        except Refused as fault:
            raise Refused(fault.status, f"{where}{fault.message}", fault.param) from None
        if len(tokens) > model.context:
            raise Refused(400, f"{where}messages: have {len(tokens)} tokens; this model's maximum context length is "
                          f"{model.context}", "messages", "context_length_exceeded")  # fmt: skip
        found.append(tokens)
    return found


def conversations(asked: ScoreRequest) -> Sequence[Sequence[ChatMessage]]:
    """What is asked about. Raises Refused (400) where that is not said in one of the two ways."""
    prompt, completion = asked.prompt, asked.completion
    if asked.messages is not None and prompt is None and completion is None:
        first = asked.messages[0]
        return asked.messages if isinstance(first, list) else [asked.messages]  # type: ignore[list-item,return-value]
    if asked.messages is not None or prompt is None or completion is None:
        raise Refused(400, "messages: give either messages, or prompt and completion", "messages")
    prompts, completions = ([text] if isinstance(text, str) else text for text in (prompt, completion))
    if len(prompts) != len(completions) or not prompts:
        raise Refused(400, f"completion: {len(completions)} answers to {len(prompts)} questions; give as many of each, "
                      "at least one", "completion")  # fmt: skip
    return [[ChatMessage(role="user", content=question), ChatMessage(role="assistant", content=answer)]
            for question, answer in zip(prompts, completions, strict=True)]  # fmt: skip
