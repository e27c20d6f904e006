"""One completion over HTTP: ask the engine, send what comes, whole or as a stream of events, and stop when nobody
listens any more. Not here: which requests (prompts.py), what a token looks like (choices.py)."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from babyllama.errors import InputError
from babyllama.infer.request import Event, Request
from babyllama.infer.sampling import Unsaid
from babyllama.serve.choices import Choice, Fed, Json
from babyllama.serve.faults import SERVER_FAULT, Refused, json_bytes
from babyllama.serve.gate import Record
from babyllama.serve.link import Answers, Batch, Link, Model
from babyllama.serve.prompts import Prompt, form_of, prompts_of, requests_of, stops_of, tool_form_of
from babyllama.serve.protocol import ChatRequest, CompletionRequest, Sampled

PACE, LONGEST = 0.002, 0.25  # seconds between two events of a stream: for each open answer, and at most
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
           (b"x-accel-buffering", b"no")]  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What one request may ask of the server.

    Args:
        tokens: the longest answer; None: the model's context.
        wait: seconds until the first token.
        time: seconds for the whole answer, which ends there as at max_tokens.
    """

    tokens: int | None
    wait: float
    time: float


class WhileThere(Response):
    """Does its work while the client is there, and cancels it when the client has gone."""

    def __init__(self, work: Callable[[Send], Awaitable[None]]) -> None:
        super().__init__()
        self.work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        own, gone = asyncio.current_task(), asyncio.ensure_future(_gone(receive))
        assert own is not None

        def stop(_: asyncio.Future[None]) -> None:
            own.cancel()

        gone.add_done_callback(stop)
        try:
            await self.work(send)
        except asyncio.CancelledError:
            if not gone.done():  # it is somebody else who wants the end
                raise
            own.uncancel()
        finally:
            gone.remove_done_callback(stop)
            gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Completion:
    """One request for a chat or text completion."""

    def __init__(self, asked: Sampled, link: Link, limits: Limits, defaults: Mapping[str, Unsaid], record: Record,
                 long: bool = True) -> None:  # fmt: skip
        self.asked, self.link, self.limits, self.defaults = asked, link, limits, defaults
        self.record, self.long = record, long
        self.began = time.monotonic()
        self.chat = isinstance(asked, ChatRequest)
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(16)}"
        self.created = int(time.time())
        self.prompts: list[Prompt] = []
        self.choices: list[Choice] = []

    async def __call__(self, send: Send) -> None:
        """Answer it. Raises Refused before anything was sent; a later fault is told in the stream."""
        self.record.model = self.asked.model
        await self.link.with_model(self.asked.model, lambda model: self._answer(model, send))

    async def _answer(self, model: Model, send: Send) -> None:
        if model.scores:
            raise Refused(400, f"the model {model.name!r} is a reward model: it says what answers are worth and writes "
                          "none; ask for scores at /v1/score", "model")  # fmt: skip
        tools = tool_form_of(model, self.asked)
        requests = await asyncio.to_thread(self._requests, model) if self.long else self._requests(model)
        stops, n = stops_of(self.asked), self.asked.n or 1
        self.choices = [Choice(model.tokenizer, prompt, stops, tools) for prompt in self.prompts for _ in range(n)]
        answers = self.link.ask(model, requests, form_of(self.asked, tools, self.prompts))
        try:
            first = await self._first(answers)
            self.record.first = time.monotonic() - self.began
            self.record.tokens_in = sum(len(prompt.tokens) for prompt in self.prompts)
            batches = self._batches(answers, first)
            await (self._stream(send, batches) if self.asked.stream else self._whole(send, batches))
        finally:
            self.link.leave(answers)
            self.record.tokens_out = sum(choice.tokens for choice in self.choices)

    def _requests(self, model: Model) -> list[Request]:
        """On another thread where texts are long, since that takes time."""
        self.prompts = prompts_of(model, self.asked)
        return requests_of(model, self.asked, self.prompts, self.defaults[model.name], self.limits.tokens)

    async def _first(self, answers: Answers) -> Batch:
        answers.until = time.monotonic() + self.limits.wait
        try:
            found = await answers.batch()
        except InputError as error:
            raise Refused(400, str(error)) from None
        except RuntimeError:
            raise Refused(500, SERVER_FAULT) from None
        if not found:
            raise Refused(429, f"the server is busy: no token came within its limit of {self.limits.wait:g} seconds "
                          "(wait); try again", code="rate_limit_exceeded", wait=5)  # fmt: skip
        answers.until = self.began + self.limits.time
        return found

    async def _batches(self, answers: Answers, first: Batch) -> AsyncIterator[Batch]:
        """Events by choice, until every choice has ended; {} when the time is over.

        Raises:
            Refused: the engine ended one of the answers with an error.
        """
        batch = first
        while True:
            yield batch
            if self._ended or not batch:
                return
            try:
                batch = await answers.batch(self._patience())
            except RuntimeError:
                raise Refused(500, SERVER_FAULT) from None

    def _patience(self) -> float:
        """For how many seconds tokens may gather. Stop strings are looked for at once: they end what is computed."""
        if self.asked.stop:
            return 0
        return min(PACE * (self.link.asked - 1), LONGEST) if self.asked.stream else self.limits.time

    # ── whole ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def _whole(self, send: Send, batches: AsyncIterator[Batch]) -> None:
        texts, counted = [""] * len(self.choices), [list[Event]() for _ in self.choices]
        thoughts = [""] * len(self.choices)
        calls = [list[Json]() for _ in self.choices]
        async for batch in batches:
            for which, fed in self._fed(batch):
                texts[which] += fed.text
                thoughts[which] += fed.thought
                counted[which] += fed.events
                calls[which] += fed.calls
        choices = []
        for which, choice in enumerate(self.choices):
            said = {"message": _message(texts[which], calls[which], thoughts[which])} if self.chat else {
                "text": self._echoed(which) + texts[which]}  # fmt: skip
            choices.append({"index": which, **said, "logprobs": self._logprobs(choice, counted[which]),
                            "finish_reason": choice.finish})  # fmt: skip
        await _send(send, json_bytes({**self._head("chat.completion"), "choices": choices, "usage": self._usage()}))

    # ── as a stream ────────────────────────────────────────────────────────────────────────────────────────────
    async def _stream(self, send: Send, batches: AsyncIterator[Batch]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        options = self.asked.stream_options
        usage = {"usage": None} if options is not None and options.include_usage else {}
        head = json_bytes({**self._head("chat.completion.chunk"), **usage})[:-1] + b',"choices":['
        opened, end = set[int](), list[bytes]()
        try:
            async for batch in batches:
                chunks = []
                for which, fed in self._fed(batch):
                    first = which not in opened
                    opened.add(which)
                    if first or any(fed) or self.choices[which].finish is not None:
                        chunks.append(head + json_bytes(self._delta(which, fed, first)) + b"]}")
                if self._ended:
                    end += chunks
                elif chunks:
                    await _events(send, chunks, more=True)
            if usage:
                told = {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}
                end.append(json_bytes(told))
        except Refused as fault:
            end.append(json_bytes(fault.body))
        await _events(send, [*end, b"[DONE]"], more=False)

    def _delta(self, which: int, fed: Fed, first: bool) -> Json:
        choice = self.choices[which]
        if self.chat:
            delta: Json = {"role": "assistant", "content": fed.text} if first else {"content": fed.text}
            said: Json = {"delta": delta if first or fed.text else {}}
            if fed.thought:
                said["delta"]["reasoning_content"] = fed.thought
            if fed.calls:
                said["delta"]["tool_calls"] = fed.calls
        else:
            said = {"text": (self._echoed(which) if first else "") + fed.text}
        return {"index": which, **said, "logprobs": self._logprobs(choice, fed.events), "finish_reason": choice.finish}

    # ── what both say ──────────────────────────────────────────────────────────────────────────────────────────
    @property
    def _ended(self) -> bool:
        """Whether all choices have."""
        return all(choice.finish is not None for choice in self.choices)

    def _fed(self, batch: Batch) -> list[tuple[int, Fed]]:
        """What is new of the choices that had not ended; nothing came: the time is over."""
        if not batch:
            return [(i, choice.cut()) for i, choice in enumerate(self.choices) if choice.finish is None]
        going = [(which, events) for which, events in batch.items() if self.choices[which].finish is None]
        return [(which, self.choices[which].feed(events)) for which, events in going]

    def _head(self, kind: str) -> Json:
        kind = kind if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.asked.model,
                "system_fingerprint": None}  # fmt: skip

    def _usage(self) -> Json:
        given, made = self.record.tokens_in, sum(choice.tokens for choice in self.choices)
        return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}

    def _echoed(self, which: int) -> str:
        wanted = isinstance(self.asked, CompletionRequest) and self.asked.echo
        return self.prompts[which // (self.asked.n or 1)].text if wanted else ""

    def _logprobs(self, choice: Choice, events: list[Event]) -> Json | None:
        if isinstance(self.asked, ChatRequest):
            return choice.chat_logprobs(events) if self.asked.logprobs else None
        wanted = isinstance(self.asked, CompletionRequest) and self.asked.logprobs is not None
        return choice.text_logprobs(events) if wanted else None


def _message(text: str, calls: list[Json], thought: str) -> Json:
    """Of a whole answer; one that calls says what it says beside that, often nothing."""
    found: Json = {"role": "assistant", "content": text, "refusal": None}
    if thought:
        found["reasoning_content"] = thought
    if calls:
        plain = [{key: value for key, value in call.items() if key != "index"} for call in calls]
        found |= {"content": text.strip() or None, "tool_calls": plain}
    return found


async def _send(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _events(send: Send, data: list[bytes], more: bool) -> None:
    """Server-sent events, in one piece: what a client and the system do for each piece costs more than what is in it.
    `more`: the stream goes on."""
    body = b"".join(b"data: " + one + b"\n\n" for one in data)
    await send({"type": "http.response.body", "body": body, "more_body": more})
