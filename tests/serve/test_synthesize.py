"""synthesize: against our own server, and against one that fails as it is told to."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from small_run import CHATS

from babyllama.commands.asking import Teacher
from babyllama.commands.synthesize import SynthesizeRecipe, main
from babyllama.data.sources.chats import Notes, read_chat
from babyllama.errors import InputError

from .conftest import KEY


def recipe(folder, url, **more) -> SynthesizeRecipe:
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(question for question, _ in CHATS) + "\n\n", "utf-8")
    given = {"out": folder / "out", "prompts": prompts, "url": url, "model": "taught", "max_tokens": 60,
             "temperature": 0.0, "api_key": KEY, **more}  # fmt: skip
    return SynthesizeRecipe(**given)


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_taught_model_teaches_what_it_knows(server, tmp_path, capsys):
    main(recipe(tmp_path, f"{server.url}/v1", price=(1.0, 2.0)))
    chats, calls = lines(tmp_path / "out" / "chats.jsonl"), lines(tmp_path / "out" / "calls.jsonl")
    found = [read_chat(chat, Notes()).messages for chat in chats]
    assert [(asked["content"], answer["content"]) for asked, answer in found] == CHATS
    read, written = (sum(call[name] for call in calls) for name in ("read", "written"))
    assert f"4 of 4 answers, {read} tokens read and {written} written, cost {(read + 2 * written) / 1e6:.4f}" in (
        capsys.readouterr().out)  # fmt: skip
    path = tmp_path / "out" / "calls.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # killed in the middle of a line
    main(recipe(tmp_path, f"{server.url}/v1", max_characters=12, leave_out=("二",)))
    assert len(lines(path)) == 4 and "1 that match" in capsys.readouterr().out
    assert [chat["messages"][1]["content"] for chat in lines(tmp_path / "out" / "chats.jsonl")] == [
        CHATS[0][1], CHATS[3][1]]  # fmt: skip
    with pytest.raises(InputError, match=r"refuses the question \(HTTP 404"):
        main(recipe(tmp_path / "..", f"{server.url}/v1", out=tmp_path / "b", model="nobody"))


@pytest.fixture
def moody():
    """A server that says what its list of moods tells it to, then answers."""
    moods, asked = list[int | str](), list[dict]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            mood = moods.pop(0) if moods else 200
            self.send_response(mood if isinstance(mood, int) else 200)
            self.send_header("Retry-After", "0")
            self.end_headers()
            message = {"content": "好", "reasoning_content": "想"}
            whole = {"choices": [{"message": message, "finish_reason": "stop"}],
                     "usage": {"prompt_tokens": 3, "completion_tokens": 4}}  # fmt: skip
            self.wfile.write(mood.encode() if isinstance(mood, str) else json.dumps(whole).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}/v1", moods, asked
        found.shutdown()
        thread.join()


def test_what_fails_is_asked_again_and_limits_hold(moody, tmp_path, capsys):
    url, moods, asked = moody
    moods += [429, 503, 500]
    main(recipe(tmp_path, url, parallel=1, system="短", answers=2, most_tokens=14))
    calls = lines(tmp_path / "out" / "calls.jsonl")
    assert len(asked) == 5 and len(calls) == 2 and [one["seed"] for one in asked] == [1, 1, 1, 1, 2]
    assert asked[0]["messages"][0] == {"role": "system", "content": "短"}
    said = capsys.readouterr().out
    assert "2 of 8 answers" in said and "most_tokens=14" in said and "1 said before" in said
    (chat,) = lines(tmp_path / "out" / "chats.jsonl")
    assert chat["messages"][1] == {"role": "assistant", "content": "好", "reasoning_content": "想"}
    moods += [500] * 9
    main(recipe(tmp_path, url, parallel=1, system="短", answers=2, retries=0))
    assert "6 questions without an answer, the last: HTTP 500" in capsys.readouterr().out
    moods.clear()
    main(recipe(tmp_path, url, system="短", answers=2))
    assert len(lines(tmp_path / "out" / "calls.jsonl")) == 8 and len(asked) == 5 + 6 + 6


def test_a_refused_question_is_passed_over_and_a_dead_server_given_up(moody, tmp_path, capsys):
    url, moods, asked = moody
    moods += [400, 200, 200]  # a prompt beyond the teacher's context, say
    main(recipe(tmp_path, url, parallel=1))
    said = capsys.readouterr().out
    assert "3 of 4 answers" in said and "1 question without an answer, the last: HTTP 400" in said and len(asked) == 4
    moods += [500] * 30
    with pytest.raises(InputError, match=r"^url=http.*: no question was answered"):  # not an exit code of 0
        main(recipe(tmp_path, url, parallel=1, answers=10, retries=0, out=tmp_path / "b"))
    assert "20 in a row" in capsys.readouterr().out and len(asked) == 24


def test_a_server_that_is_not_there_is_told_at_once(moody, tmp_path, monkeypatch):
    monkeypatch.setattr(Teacher, "__call__", lambda *_: pytest.fail("asked"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with pytest.raises(InputError, match=rf"nobody answers at {url} \(.*refused\); start the teacher's server"):
            main(recipe(tmp_path, url))
    assert not (tmp_path / "out").exists()


def test_bad_prompts_are_one_line(tmp_path):
    (tmp_path / "gbk.txt").write_bytes("你好".encode("gbk"))
    with pytest.raises(InputError, match=r"gbk.txt cannot be read \(byte 0 is not UTF-8: save it in that encoding\)"):
        main(recipe(tmp_path, "http://127.0.0.1:9/v1", prompts=tmp_path / "gbk.txt"))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n{"a": 1}\n')
    for path, said in ((tmp_path / "bad.jsonl", r"bad.jsonl:2: no prompt"), (tmp_path / "no", "cannot be read")):
        with pytest.raises(InputError, match=said):
            main(recipe(tmp_path, "http://127.0.0.1:9/v1", prompts=path))
    with pytest.raises(ValueError, match="no regular expression"):
        recipe(tmp_path, "http://127.0.0.1:9/v1", leave_out=("(",))
