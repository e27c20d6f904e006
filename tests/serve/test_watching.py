"""The page of runs beside a training, over HTTP: runs and no models, this machine only, gone with what started it."""

from __future__ import annotations

import subprocess
import sys
import time

import httpx
import pytest

from babyllama.commands.quickstart import QuickstartRecipe, _page
from babyllama.serve.watching import watched

WAIT = httpx.Timeout(60)  # until its process has begun


def gone(url: str) -> bool:
    try:
        httpx.get(url, timeout=1)
    except httpx.HTTPError:
        return True
    return False


def test_runs_are_shown_and_nothing_else(runs):
    with watched(runs) as url, httpx.Client(base_url=url, timeout=WAIT) as client:
        assert client.get("/").text.startswith("<!doctype html>")
        assert client.get("/web/runs.js").status_code == 200
        about = client.get("/api/app").json()
        assert about["models"] == [] and about["runs"] is True
        assert {run["id"] for run in client.get("/api/runs").json()["runs"]} >= {"base", "sft"}
        assert client.get("/api/metrics?id=base").json()["curves"]["train/loss"][0] == list(range(1, 11))
        assert client.get("/api/run?id=../runs").status_code == 404
        assert client.post("/v1/chat/completions", json={}).status_code == 404
        assert client.get("/api/runs", headers={"Host": "elsewhere.org"}).status_code == 400
    assert gone(url)


def test_a_folder_that_is_not_there_yet_has_no_runs(tmp_path):
    with watched(tmp_path / "later") as url:
        assert httpx.get(f"{url}/api/runs", timeout=WAIT).json() == {"runs": []}


def test_it_ends_when_its_maker_is_killed(tmp_path):
    code = ("import sys, time\nfrom pathlib import Path\nfrom babyllama.serve.watching import watched\n"
            "with watched(Path('.')) as url:\n    print(url, flush=True)\n    time.sleep(600)\n")  # fmt: skip
    maker = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        url = maker.stdout.readline().strip()
        assert httpx.get(f"{url}/api/runs", timeout=WAIT).status_code == 200
    finally:
        maker.kill()
        maker.communicate()
    until = time.monotonic() + 30
    while not gone(url):
        assert time.monotonic() < until
        time.sleep(0.1)


class Said:
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, line: str, **_: object) -> None:
        self.lines.append(line)


def test_the_quickstart_goes_on_without_the_page(tmp_path, monkeypatch):
    def nobody(folder):
        raise OSError(1, "not permitted")

    said = Said()
    with _page(QuickstartRecipe(out=tmp_path, live=False), said):
        assert said.lines == []
    monkeypatch.setattr("babyllama.serve.watching.watched", nobody)
    with _page(QuickstartRecipe(out=tmp_path), said):
        assert said.lines == ["There is no page to watch it: this machine lets nobody listen (not permitted)"]
    monkeypatch.setattr("babyllama.commands.quickstart._can_serve", lambda: False)
    with _page(QuickstartRecipe(out=tmp_path), said), pytest.raises(IndexError):
        assert said.lines[1].startswith("To watch it train in a browser: this needs the package fastapi; ")
        raise IndexError  # what goes wrong inside comes out
