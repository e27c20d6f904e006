"""bench-serve against a server, and against nobody."""

from __future__ import annotations

import json

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
