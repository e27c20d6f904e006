"""bench-serve against a server, and against nobody."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from babyllama.commands.asking import Teacher
from babyllama.commands.bench_serve import BenchServeRecipe, main, measure
from babyllama.errors import InputError
from babyllama.export.peers import on_a_server
from babyllama.recipe import load_recipe

from .conftest import KEY


@pytest.mark.parametrize("chat", ["true", "false"])
def test_figures_are_those_of_the_server(server, tmp_path, capsys, chat):
    before = len(server.log.read_text("utf-8").splitlines())
    words = [f"url={server.url}/v1", "clients=3", "requests=7", "max_tokens=5", f"api_key={KEY}", f"chat={chat}"]
    main(load_recipe(BenchServeRecipe, None, [*words, f"out={tmp_path / 'figures.json'}"]))
    found = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    answers = server.answered(before, 7)
    assert (found["model"], found["answers"], found["errors"], found["refused (429)"]) == ("taught", 7, 0, 0)
    assert len(answers) == 7 and found["tokens"] == sum(line["tokens_out"] for line in answers)
    assert 0 < found["first token, ms, p50"] <= found["first token, ms, p99"]
    assert "tokens a second" in capsys.readouterr().out and KEY not in (tmp_path / "figures.json").read_text("utf-8")


def test_the_seconds_decide_where_no_number_of_requests_is_given(server):
    recipe = BenchServeRecipe(url=f"{server.url}/v1", clients=1, seconds=0.5, max_tokens=1, api_key=KEY)
    found = measure(recipe)
    assert found["answers"] > 1 and 0.5 <= found["seconds"] < 30
    refused = recipe.model_copy(update={"max_tokens": 10**9, "clients": 2, "temperature": 9.0})
    with pytest.raises(InputError, match="no request succeeded; the first fault: 400"):
        measure(refused)


@contextmanager
def streaming(*bodies: str) -> Iterator[str]:
    """The URL of a server of somebody else's that answers with these, one after the other."""
    left = iter(bodies)

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.say('{"data": [{"id": "theirs"}]}')

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.say(next(left))

        def say(self, body: str):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()


def event(**more) -> str:
    return f"data: {json.dumps({'choices': [{'text': 'a', 'finish_reason': None}], **more})}\n\n"


DONE = "data: [DONE]\n\n"


def test_servers_that_count_otherwise():
    """With each event, with the last one alone, or not at all; without blanks, without a last event."""
    bodies = [event(usage={"completion_tokens": n}) for n in (2, 4)], [event(), event(usage={"completion_tokens": 5})]
    with streaming(*("".join(body) + DONE for body in bodies)) as url:
        found = measure(BenchServeRecipe(url=url, clients=1, requests=2))
    assert (found["tokens"], found["answers"], found["errors"]) == (9, 2, 0) and "tokens are events" not in found
    finished = 'data:{"choices":[{"text":"a","finish_reason":"length"}]}\n\n'
    with streaming(event() + finished, event() * 2 + DONE) as url:
        found = measure(BenchServeRecipe(url=url, clients=1, requests=2))
    assert (found["tokens"], found["answers"]) == (4, 2) and "does not count" in found["tokens are events"]


@pytest.mark.parametrize(("broken", "fault"), [
    (event(), "ended before the answer"), ('data: {"error": "the engine died"}\n\n' + DONE, "the engine died"),
    ('data: {"error": {"message": "out of memory"}}\n\n', "out of memory"), (event(choices=["a"]), "AttributeError"),
    ("data: {nonsense\n\n" + DONE, "JSONDecodeError"), ("", "ended before the answer")])  # fmt: skip
def test_a_server_that_fails_halfway(monkeypatch, broken, fault):
    async def at_once(_):
        pass

    monkeypatch.setattr(asyncio, "sleep", at_once)
    good = event(usage={"completion_tokens": 3}) + DONE
    with streaming(good, broken, good) as url:
        found = measure(BenchServeRecipe(url=url, clients=1, requests=3))
    assert (found["answers"], found["errors"], found["tokens"]) == (2, 1, 6) and fault in found["first error"]


def test_nobody_answers():
    with pytest.raises(InputError, match="no server with models answers there"):
        main(load_recipe(BenchServeRecipe, None, ["url=http://127.0.0.1:9/v1"]))


def test_a_key_that_is_missing_is_asked_for(server, monkeypatch):
    """By every verb that asks a server."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    url = f"{server.url}/v1"
    with pytest.raises(InputError, match=r"HTTP 401.*; give its key: api_key="):
        main(load_recipe(BenchServeRecipe, None, [f"url={url}"]))
    with pytest.raises(InputError, match=r"HTTP 401.*; give its key: api_key="):
        Teacher(url, "", {"model": "m"})([], 0)
    with pytest.raises(InputError, match=r"/models: .*; give its key: api_key="):
        on_a_server(url, "")
