"""`push` by the hub's own client, against a hub that listens here and speaks its HTTP API."""

from __future__ import annotations

import base64
import json
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
from exported import save, sharp, vocabulary

from babyllama.errors import InputError
from babyllama.export.hub import push


class Hub(ThreadingHTTPServer):
    """Files of the repositories that it was sent; one that `refuses` lets nobody write."""

    def __init__(self, refuses: bool = False):
        super().__init__(("127.0.0.1", 0), Answers)
        self.refuses, self.created, self.commits = refuses, [], []
        self.blobs: dict[str, bytes] = {}
        self.address = f"http://127.0.0.1:{self.server_port}"

    def files(self) -> dict[str, bytes]:
        return {path: content for commit in self.commits for path, content in commit.items()}


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def say(self, answer, status=200):
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self):
        body = self.body()
        if self.server.refuses:
            self.say({"error": "You don't have the rights to create a model under the namespace"}, 403)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.say({"url": f"{self.server.address}/me/x"})
        elif self.path.startswith("/api/models/me/x/preupload/main"):
            files = json.loads(body)["files"]
            self.say({"files": [{"path": file["path"], "shouldIgnore": False, "oid": None,
                                 "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                                for file in files]})  # fmt: skip
        elif self.path == "/me/x.git/info/lfs/objects/batch":
            self.say({"transfer": "basic", "objects": [
                {**told, "actions": {"upload": {"href": f"{self.server.address}/blobs/{told['oid']}"}}}
                for told in json.loads(body)["objects"]]})  # fmt: skip
        elif self.path.startswith("/api/models/me/x/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            commit = {line["value"]["path"]: base64.b64decode(line["value"]["content"])
                      for line in lines if line["key"] == "file"}  # fmt: skip
            commit |= {line["value"]["path"]: self.server.blobs[line["value"]["oid"]]
                       for line in lines if line["key"] == "lfsFile"}  # fmt: skip
            self.server.commits.append(commit)
            self.say({"commitUrl": f"{self.server.address}/me/x/commit/{'a' * 40}", "commitOid": "a" * 40})
        else:
            self.say({}, 200 if self.path == "/api/validate-yaml" else 404)

    def do_GET(self):
        self.say({"id": "me/x", "sha": "b" * 40, "siblings": []})

    def do_PUT(self):
        content = self.body()
        self.server.blobs[sha256(content).hexdigest()] = content
        self.say({})

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(request, monkeypatch):
    server = Hub(getattr(request, "param", False))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)  # as HF_ENDPOINT
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # files as PUT, as without hf_xet
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    tokenizer = vocabulary("own", tmp_path)
    save(sharp(tokenizer.vocab_size), tokenizer, tmp_path / "out")
    return tmp_path / "out"


def test_the_hub_has_the_folder_byte_for_byte_after_one_commit(hub, folder):
    assert push(folder, "me/x", private=True) == f"{hub.address}/me/x"
    (asked,) = hub.created
    assert (asked["organization"], asked["name"]) == ("me", "x")
    assert asked.get("private") is True or asked.get("visibility") == "private"
    sent = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(hub.commits) == 1 and hub.files() == sent
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(sent)


@pytest.mark.parametrize("hub", [True], indirect=True)
def test_a_hub_that_refuses_is_one_line(hub, folder):
    with pytest.raises(InputError, match=r"push: me/x: http://.* refused .*hf auth login") as error:
        push(folder, "me/x", private=True)
    assert "\n" not in str(error.value) and not hub.commits


def test_no_network_is_one_line(hub, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"push: me/x: http://127.0.0.1:9 .*refused.*check the network") as error:
        push(folder, "me/x", private=True)
    assert "\n" not in str(error.value)
