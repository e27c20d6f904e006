"""The server over HTTP: OpenAI's own client, answers equal to the engine's, faults, keys, limits, clients that go."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import socket
import subprocess
import time

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_run import CHATS, CONTEXT, small_tokenizer, taught_model

from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.serve.gate import Gate
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.special import SPECIAL_TOKENS

from .conftest import KEY, LONG, POISON, on_and_on

QUESTION, ANSWER = CHATS[1]
ASKED = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def official(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as found:
        yield found


def prompt_of(question: str) -> list[int]:
    return render_chat(small_tokenizer(), [{"role": "user", "content": question}], add_generation_prompt=True).tokens


# ── answers ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_official_client_whole_and_streaming(official):
    assert [model.id for model in official.models.list()] == ["taught", "endless"]
    for question, answer in CHATS:
        messages = [{"role": "user", "content": question}]
        whole = official.chat.completions.create(model="taught", messages=messages, temperature=0)
        assert whole.choices[0].message.content == answer and whole.choices[0].finish_reason == "stop"
        prompt = len(prompt_of(question))
        assert whole.usage.prompt_tokens == prompt
        assert whole.usage.completion_tokens == len(small_tokenizer().encode(answer)) + 1  # and the end token
        stream = official.chat.completions.create(
            model="taught", messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        *chunks, last = stream
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
        assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == "stop"
        assert last.usage == whole.usage and last.choices == []


def test_choices_are_those_of_the_engine_with_these_seeds(official):
    asked = [{"role": "user", "content": "等于再见的二小模型？"}]  # not one of the CHATS: the model is not sure
    sampling = {"temperature": 2, "top_p": 0.99, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    engine = Engine(taught_model(), small_tokenizer().vocab_size)
    alone = engine.generate(
        [prompt_of(asked[0]["content"])] * 3,
        Sampling(**sampling, top_k=30),
        30,
        small_tokenizer().stop_ids,
        seeds=[41, 42, 43],
    )
    expected = [small_tokenizer().decode(tokens) for tokens in alone]
    assert len(set(expected)) > 1
    for _ in range(2):
        found = official.chat.completions.create(
            model="taught", messages=asked, n=3, seed=41, max_tokens=30, extra_body={"top_k": 30}, **sampling
        )
        assert [choice.message.content for choice in found.choices] == expected
    stream = official.chat.completions.create(
        model="taught", messages=asked, n=3, seed=41, max_tokens=30, stream=True, extra_body={"top_k": 30}, **sampling
    )
    texts = ["", "", ""]
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == expected


def test_log_probabilities_are_the_models(official):
    import torch

    prompt = prompt_of(QUESTION)
    found = official.chat.completions.create(
        model="taught", messages=ASKED, temperature=0, logprobs=True, top_logprobs=3, max_tokens=5
    ).choices[0]
    tokens = small_tokenizer().encode(ANSWER)[:5]
    logits = taught_model()(torch.tensor([[*prompt, *tokens]]))[0, len(prompt) - 1 : -1].double()
    expected = logits.log_softmax(-1)
    assert b"".join(bytes(entry.bytes) for entry in found.logprobs.content).decode("utf-8", "ignore") in ANSWER
    for entry, row, token in zip(found.logprobs.content, expected, tokens, strict=True):
        assert entry.logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    text = official.completions.create(model="taught", prompt=prompt, temperature=0, logprobs=2, max_tokens=5).choices[
        0
    ]
    assert text.logprobs.token_logprobs == pytest.approx([e.logprob for e in found.logprobs.content], abs=1e-6)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(official, stream):
    made = official.chat.completions.create(
        model="taught", messages=ASKED, temperature=0, stop=["语言", "羊驼，一"], stream=stream
    )
    chunks = list(made) if stream else [made]
    text = "".join((c.choices[0].delta if stream else c.choices[0].message).content or "" for c in chunks)
    assert text == ANSWER[: ANSWER.index("羊驼，一")] and chunks[-1].choices[0].finish_reason == "stop"


def test_texts_are_continued_several_at_once_and_echoed(official):
    found = official.completions.create(
        model="taught", prompt=["小小的", "你好"], temperature=0, max_tokens=4, echo=True
    )
    tokenizer = small_tokenizer()
    engine = Engine(taught_model(), tokenizer.vocab_size)
    prompts = [[*tokenizer.start_ids, *tokenizer.encode(text)] for text in ("小小的", "你好")]
    alone = engine.generate(prompts, Sampling(temperature=0), 4, tokenizer.stop_ids)
    expected = [t + tokenizer.decode(a).rstrip("\ufffd") for t, a in zip(("小小的", "你好"), alone, strict=True)]
    assert [choice.text for choice in found.choices] == expected
    assert found.usage.completion_tokens == sum(map(len, alone))


def test_answers_of_a_given_form(official):
    schema = {"type": "object", "properties": {"animal": {"enum": ["小羊驼", "llama"]}, "legs": {"enum": [2, 4]}},
              "required": ["animal", "legs"], "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema}}
    found = official.chat.completions.create(model="taught", messages=ASKED, n=2, seed=1, response_format=form)
    for choice in found.choices:
        told = json.loads(choice.message.content)
        assert told["animal"] in ("小羊驼", "llama") and told["legs"] in (2, 4) and choice.finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="response_format"):
        official.chat.completions.create(
            model="taught", messages=ASKED, response_format={"type": "json_schema", "json_schema": {"name": "x"}}
        )


def test_an_answer_that_has_begun_goes_on(official):
    """The rest alone comes, whole and as a stream; of JSON too. An answer with nothing in it has not begun."""
    for cut, more in ((5, {}), (8, {"continue_final_message": True, "add_generation_prompt": False}), (0, {})):
        asked = {"model": "taught", "messages": begun(ANSWER[:cut]), "temperature": 0, "extra_body": more}
        whole, stream = (
            official.chat.completions.create(**asked),
            official.chat.completions.create(**asked, stream=True),
        )
        assert whole.choices[0].message.content == ANSWER[cut:] and whole.choices[0].finish_reason == "stop"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ANSWER[cut:]
    schema = {"type": "object", "properties": {"legs": {"enum": [2, 4]}}, "required": ["legs"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    asked = {"model": "taught", "response_format": form, "temperature": 0}
    found = official.chat.completions.create(**asked, messages=begun('{"le')).choices[0].message.content
    assert json.loads('{"le' + found)["legs"] in (2, 4)
    with pytest.raises(openai.BadRequestError, match="no beginning of such JSON"):
        official.chat.completions.create(**asked, messages=begun("好的："))


def test_the_end_of_a_stream_is_one_piece(server):
    """The last text, the usage, the end of the events and of the answer: each piece costs more than what is in it."""
    body = json.dumps({"model": "taught", "messages": ASKED, "temperature": 0, "stream": True,
                       "stream_options": {"include_usage": True}}).encode()  # fmt: skip
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n")  # fmt: skip
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port), 60) as there:
        there.sendall(head.encode() + body)
        answer = there.makefile("rb").read()
    chunks, rest = [], answer.split(b"\r\n\r\n", 1)[1]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    *_, last, empty = chunks
    told = [line.removeprefix("data: ") for line in last.decode().split("\n\n")]
    assert empty == b"" and told[-2:] == ["[DONE]", ""]
    finish, usage = map(json.loads, told[-4:-2])
    assert finish["choices"][0]["finish_reason"] == "stop" and usage["usage"]["completion_tokens"] > 0


def test_curl(server):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = json.dumps({"model": "taught", "messages": ASKED, "temperature": 0, "stream": True})
    words = ["curl", "-sN", f"{server.url}/v1/chat/completions", "-H", f"Authorization: Bearer {KEY}", "-H",
             "Content-Type: application/json", "-d", body]  # fmt: skip
    lines = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""] and all(line.startswith("data: {") for line in lines[:-2])
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines[:-2]]
    assert "".join(delta.get("content", "") for delta in deltas) == ANSWER


# ── text stays text ────────────────────────────────────────────────────────────────────────────────────────────────
def test_what_looks_like_a_special_token_stays_text(client):
    tokenizer = small_tokenizer()
    text = "".join(SPECIAL_TOKENS)
    told = client.post("/v1/tokenize", json={"model": "taught", "prompt": text}).json()
    assert told["tokens"] == tokenizer.encode(text) and not set(told["tokens"]) & tokenizer.special_ids
    assert client.post("/v1/detokenize", json={"model": "taught", "tokens": told["tokens"]}).json()["prompt"] == text
    chat = {"model": "taught", "messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]}
    found = client.post("/v1/tokenize", json=chat).json()["tokens"]
    assert found == prompt_of(text) and len([t for t in found if t in tokenizer.special_ids]) == 2


# ── faults ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def begun(answer: str) -> list[dict[str, str]]:
    return [*ASKED, {"role": "assistant", "content": answer}]


def chat(**more) -> str:
    return json.dumps({"model": "taught", "messages": ASKED, "max_tokens": 2, **more})


FAULTS = {
    "not JSON": ("{", 400, "not valid JSON"),
    "no object": ("[]", 400, "object"),
    "GBK, as Windows' console sends it": ('{"model": "你好"}'.encode("gb18030"), 400, "it is not UTF-8, as JSON"),
    "half a surrogate pair": (chat(messages=[{"role": "user", "content": "\ud800"}]), 400, "not valid JSON"),
    "no model": (chat(model="nobody"), 404, "'nobody' does not exist; there are: taught, endless"),
    "a wrong type": (chat(temperature="hot"), 400, "temperature: input should be a valid number"),
    "a message's type": (chat(messages=[{"role": "user", "content": 5}]), 400, "messages[0].content"),
    "an unknown role": (chat(messages=[{"role": "robot", "content": "a"}]), 400, "'robot' is unknown"),
    "after an answer": (
        chat(messages=begun("a"), continue_final_message=False),
        400,
        "messages[1]: the last message is",
    ),
    "no answer to go on with": (chat(continue_final_message=True), 400, "messages[0]: is no answer"),
    "a picture": (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "text alone"),
    "out of range": (chat(top_p=1.5), 400, "top_p: input should be less than or equal to 1"),
    "five stops": (chat(stop=list("abcde")), 400, "stop: list should have at most 4"),
    "a bias beyond the words": (chat(logit_bias={"99999": 1}), 400, "logit_bias: 99999 is no token"),
    "no schema": (
        chat(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "nix"}}}),
        400,
        "response_format: json_schema",
    ),
    "a call whose arguments nest for ever": (
        chat(
            messages=[
                *ASKED,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {"id": "1", "function": {"name": "x", "arguments": '{"a":' + "[" * 20_000 + "]" * 20_000 + "}"}}
                    ],
                },
            ]
        ),
        400,
        "messages[1].tool_calls: the arguments must be a JSON object",
    ),
    "tools": (chat(tools=[{"type": "function"}]), 400, "tools"),
    "too long": (chat(messages=[{"role": "user", "content": "长" * 300}]), 400, f"context length is {CONTEXT} tokens"),
    "a big body": (chat(messages=[{"role": "user", "content": "a" * 200_000}]), 413, "limit of 100000 bytes"),
    "too many": (chat(n=1000), 400, "n: input should be less than or equal to 128"),
}


@pytest.mark.parametrize(("body", "status", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_faults_in_the_shape_of_openai(client, body, status, message):
    found = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert found.status_code == status and message in found.json()["error"]["message"]
    assert found.json()["error"].keys() == {"message", "type", "param", "code"}


def test_neighbours_of_one_role_are_read_as_one_message(client):
    """As clients send them: two system messages, a question again; a greeting first is left out, as in training. A
    fault further on names the message as sent."""

    def tokens(*messages):
        asked = [{"role": role, "content": text} for role, text in messages]
        return client.post("/v1/tokenize", json={"model": "taught", "messages": asked}).json()

    apart = tokens(("developer", "简短"), ("system", "有礼貌"), ("user", "你好"), ("user", "你是谁？"))
    assert apart["count"] and apart == tokens(("system", "简短\n有礼貌"), ("user", "你好\n你是谁？"))
    assert apart == tokens(
        ("assistant", "您好！"), ("system", "简短\n有礼貌"), ("assistant", "在"), ("user", "你好\n你是谁？")
    )
    many = [("user", "甲"), ("user", "乙"), ("assistant", "丙"), ("assistant", "丁"), ("user", "戊"), ("system", "己")]
    assert tokens(*many)["error"]["message"].startswith("messages[5].role: system cannot stand after user")
    assert tokens(*many[:5]) == tokens(("user", "甲\n乙"), ("assistant", "丙\n丁"), ("user", "戊"))


def test_other_faults(client, server):
    assert client.post("/v1/chat/completions", content=chat()).status_code == 415
    assert client.get("/nowhere").json()["error"]["message"].startswith("GET /nowhere: there is no such route")
    for path, meant in (("/chat/completions", "/v1/chat/completions"), ("/v1/v1/models/", "/v1/models")):
        assert f"did you mean {meant}? clients' base URL" in client.get(path).json()["error"]["message"]
    wrong = client.get("/v1/completions")
    assert wrong.status_code == 405 and wrong.headers["Allow"] == "POST"
    assert wrong.json()["error"]["message"] == "GET /v1/completions: this route takes POST"
    for header in ({}, {"Authorization": "Bearer sk-wrong"}, {"Authorization": KEY}):
        found = httpx.get(f"{server.url}/v1/models", headers=header)
        assert found.status_code == 401 and found.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "ill": []}
    for nothing in ([], [[]], [[9], []]):  # no prompt, an empty one, an empty one among others
        found = client.post("/v1/completions", json={"model": "taught", "prompt": nothing})
        assert found.status_code == 400 and "prompt: is empty" in found.json()["error"]["message"]
    over = client.post("/v1/completions", json={"model": "taught", "prompt": [9] * CONTEXT}).json()["error"]
    assert over["code"] == "context_length_exceeded" and f"at most {CONTEXT - 1}" in over["message"]


def test_a_file_with_a_byte_order_mark_is_read(client):
    """As Windows' editor saves what curl then sends."""
    body = chat(temperature=0, max_tokens=90).encode("utf-8-sig")
    found = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert found.json()["choices"][0]["message"]["content"] == ANSWER


def test_a_client_that_goes_in_the_middle_of_its_request_is_no_fault(server):
    before = len(server.log.read_text("utf-8").splitlines())
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port), 60) as there:
        there.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {KEY}\r\n"
                      "Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{".encode())  # fmt: skip
    assert [line["status"] for line in server.answered(before)] == [499]


def test_a_log_that_cannot_be_written_stops_no_answer(capsys):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    class Full(io.StringIO):
        def flush(self):
            raise OSError(28, "No space left on device")

    sent, noted = [], []
    gate = Gate(app, (), 100, Full(), noted.append, {})

    async def send(message):
        sent.append(message["status"])

    for _ in range(2):
        asyncio.run(gate({"type": "http", "method": "GET", "path": "/", "headers": []}, None, send))
    assert sent == [200, 200] and len(noted) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "cannot be written any more (No space left on device)" in said


def test_head_is_get_without_a_body(client):
    """As watchdogs and proxies ask."""
    for path, status in (("/", 200), ("/health", 200), ("/v1/models", 200), ("/v1/completions", 405)):
        found, whole = client.head(path), client.get(path)
        assert (found.status_code, found.content) == (status, b"") and whole.content
        assert found.headers["Content-Length"] == whole.headers["Content-Length"]


def test_the_openapi_page_describes_every_request(client):
    found = client.get("/openapi.json").json()
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/tokenize", "/v1/detokenize"):
        reference = found["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert reference.removeprefix("#/components/schemas/") in found["components"]["schemas"]
    assert client.get("/docs").status_code == 200


def test_broken_logits_end_one_request(client):
    for stream in (False, True):
        asked = {"model": "endless", "prompt": [20, POISON], "max_tokens": 3, "stream": stream}
        found = client.post("/v1/completions", json=asked)
        assert found.status_code == 500 and "not finite" in found.json()["error"]["message"]
    assert client.post("/v1/completions", json=on_and_on(max_tokens=3)).status_code == 200


ROUTES = st.sampled_from(["chat/completions", "completions", "tokenize", "detokenize"])
SCALARS = st.none() | st.booleans() | st.integers(-3, 200) | st.floats(-3, 3) | st.text(max_size=4) | st.just([])
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "x"]),
                                           "content": st.text(max_size=8) | SCALARS}), max_size=3)  # fmt: skip
FIELDS = {
    "messages": MESSAGES, "prompt": st.text(max_size=9) | st.lists(st.integers(-1, 400), max_size=5), "n": SCALARS,
    **dict.fromkeys(["temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens", "logprobs", "echo",
                     "top_logprobs", "presence_penalty", "repetition_penalty", "stream", "stream_options", "tools",
                     "response_format", "logit_bias", "max_completion_tokens",
                     "continue_final_message", "nonsense"], SCALARS),
}  # fmt: skip


FORMS = st.fixed_dictionaries({"model": st.sampled_from(["taught", "x"])}, optional=FIELDS)


def answers_or_refuses(client: httpx.Client, route: str, body: dict) -> None:
    found = client.post(f"/v1/{route}", json=body)
    assert found.status_code in (200, 400, 404), found.text
    if found.status_code != 200:
        assert found.json()["error"]["message"]


@settings(max_examples=80, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(ROUTES, FORMS)
def test_no_request_makes_the_server_fail(client, route, body):
    answers_or_refuses(client, route, body)


# ── clients that go, metrics, the log ──────────────────────────────────────────────────────────────────────────────
def metric(client, name: str) -> float:
    line = next(line for line in client.get("/metrics").text.splitlines() if line.startswith(name))
    return float(line.split()[-1])


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_frees_its_rows(server, client, stream):
    running = 'babyllama_requests_running{model="endless"}'
    before = len(server.log.read_text().splitlines())
    with server.client() as other, pytest.raises(httpx.ReadTimeout):
        asked = other.stream("POST", "/v1/completions", json=on_and_on(n=8, stream=stream), timeout=1)
        with asked as answer:
            next(answer.iter_lines())
            raise httpx.ReadTimeout("enough")
    until = time.monotonic() + 30
    while metric(client, running) and time.monotonic() < until:
        time.sleep(0.02)
    assert metric(client, running) == 0
    (gone,) = server.answered(before)
    assert gone["status"] == (200 if stream else 499) and gone["tokens_out"] < 8 * (LONG - 2)


def test_log_and_metrics_count_tokens_and_keep_texts_secret(server, client):
    name = 'babyllama_tokens_total{model="taught",side="out"}'
    before, lines = metric(client, name), len(server.log.read_text("utf-8").splitlines())
    found = client.post(
        "/v1/chat/completions", content=chat(temperature=0), headers={"Content-Type": "application/json"}
    )
    (line,) = server.answered(lines)  # what is counted and written comes just after the answer has ended
    assert metric(client, name) - before == found.json()["usage"]["completion_tokens"] == 2
    assert (line["model"], line["status"], line["tokens_out"]) == ("taught", 200, 2) and line["ms"] > 0
    assert line.keys() == {"time", "method", "route", "model", "status", "tokens_in", "tokens_out", "ms"}
