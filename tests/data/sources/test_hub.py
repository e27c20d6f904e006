"""The one way to the hub: what is asked of its client, and that other content is refused."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from babyllama.data.sources.hub import HubFile, fetch
from babyllama.errors import InputError

CONTENT = b"content"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A cache laid out as the client's, and what it was asked for."""
    calls: dict[str, Any] = {}
    blob, link = tmp_path / "blobs" / SHA256, tmp_path / "snapshots" / COMMIT / "a.json"
    for path in (blob, link):
        path.parent.mkdir(parents=True)
    blob.write_bytes(CONTENT)
    link.symlink_to(blob)

    def download(repo: str, name: str, **more: Any) -> str:
        calls.update(repo=repo, name=name, **more)
        return str(link)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(link))
    return {"calls": calls, "blob": blob}


def test_pinned(asked: dict[str, Any]) -> None:
    found = fetch(HubFile("o/r", "a.json", "model", COMMIT, SHA256), "x")
    assert asked["calls"] == {"repo": "o/r", "name": "a.json", "repo_type": "model", "revision": COMMIT}
    assert (found.revision, found.sha256, found.path.read_bytes()) == (COMMIT, SHA256, CONTENT)
    assert fetch(HubFile("o/r", "a.json"), "x").revision == COMMIT  # the cache tells what the newest was
    with pytest.raises(InputError, match=f"sha256 is {SHA256}, not abc; another version, or damaged"):
        fetch(HubFile("o/r", "a.json", sha256="abc"), "x")


def test_a_damaged_cache_is_named(asked: dict[str, Any]) -> None:
    asked["blob"].write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match=r"damaged .* remove it, and it is fetched again"):
        fetch(HubFile("o/r", "a.json"), "x")


def test_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("Cannot find the file\nlong explanation")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "/kept")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    with pytest.raises(InputError, match=r"a\.json cannot be fetched from https://mirror\.example .*or do this$"):
        fetch(HubFile("o/r", "a.json"), "do this")


def test_a_hub_that_is_out_of_reach_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client itself knocks six times and sleeps 23 seconds between."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("knocked"))
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(InputError, match=rf"cannot be fetched from {endpoint} \(.*refused\); .* or do this$"):
            fetch(HubFile("nobody/nothing", "a.json"), "do this")
