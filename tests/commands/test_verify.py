"""verify at the command line: transformers says the same; a changed weight, end or server is found, exit code 1."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from small_run import save_taught

from babyllama import cli
from babyllama.errors import InputError
from babyllama.export.peers import in_transformers
from babyllama.load import read_model, read_tokenizer
from babyllama.model.checkpoint import save_model
from conftest import one_clear_line


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    return save_taught(tmp_path_factory.mktemp("taught"))


@pytest.fixture
def verified(monkeypatch, capsys, taught):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["babyllama", "verify", str(taught), "max_tokens=12", *words])
        try:
            code = cli._run()
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        assert "Loading" not in said.err  # transformers' own bar
        return code, said.out

    return run


def test_transformers_says_the_same_of_all_200(verified, tmp_path):
    code, said = verified(f"out={tmp_path / 'v.json'}")
    found = json.loads((tmp_path / "v.json").read_text())["found"]["transformers"]
    assert (found["asked"], found["prompts"], found["answers"], found["ends"]) == (200, 200, 200, 200), said
    assert code == 0 and found["first"] < 1e-4 and "same" in said
    assert "8 questions shortened" in verified("prompts=8", "max_tokens=85")[1]


def test_a_changed_weight_is_found(verified, taught, tmp_path):
    model, tokenizer = read_model(taught), read_tokenizer(taught)
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[3] += 0.3
    save_model(model, tmp_path, **tokenizer.config_ids)
    tokenizer.save(tmp_path)
    code, said = verified(f"against={tmp_path}", "prompts=8")
    assert code == 1 and "differs" in said and "log-probabilities of the first token differ by" in said


@pytest.fixture
def server():
    """One that always says 好 and goes on."""

    class Server(BaseHTTPRequestHandler):
        def answer(self, body):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_GET(self):
            self.answer({"data": [{"id": "other"}, {"id": "m"}]})

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert asked["model"] == "m" and asked["temperature"] == 0 and asked["max_tokens"] == 12
            self.answer({"choices": [{"message": {"content": "好"}, "finish_reason": "length", "logprobs": None}]})

        def log_message(self, *_):
            pass

    found = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}/v1"
    found.shutdown()
    thread.join()


def test_a_server(verified, server):
    code, said = verified(f"against={server}#m", "prompts=4")
    assert code == 1 and "not told" in said and "answers differ at position" in said


@pytest.mark.parametrize("named", ["", "#none"])
def test_a_server_of_several_models_is_told_which(server, taught, named, monkeypatch, capsys):
    words = ["verify", str(taught), f"against={server}{named}"]
    one_clear_line(words, f"has the models other, m; name one: against={server}#NAME", monkeypatch, capsys)


def test_faults(taught, monkeypatch, capsys):
    for words, said in (
        ("against=nowhere", "against: nowhere is no file, folder or address"),
        ("max_tokens=96", "leaves no room"),
        ("against=http://127.0.0.1:9/v1", "give the server's address up to /v1"),
    ):
        one_clear_line(["verify", str(taught), words], said, monkeypatch, capsys)
    monkeypatch.setattr("babyllama.commands.verify.ours", lambda *_: pytest.fail("asked before all are there"))
    one_clear_line(
        ["verify", str(taught), "against=[transformers, nowhere]"], "nowhere is no file", monkeypatch, capsys
    )


def test_folders_that_transformers_cannot_ask(taught, tmp_path):
    folder = shutil.copytree(taught, tmp_path / "packed")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for more, said in (({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r" \(.*requires"),
                       ({"model_type": "babyllama"}, ", for only babyllama reads its weights")):  # fmt: skip
        (folder / "config.json").write_text(json.dumps({**config, **more}))
        with pytest.raises(InputError, match=f"packed: transformers does not open it{said}"):
            in_transformers(folder)
    (folder / "config.json").write_text(json.dumps(config))
    told = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, "chat_template": None}))
    with pytest.raises(InputError, match="packed: has no chat template"):
        in_transformers(folder)
