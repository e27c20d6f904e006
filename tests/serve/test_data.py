"""The data of a run over HTTP: the figures and documents of the folder, found through a training that reads it."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx
import pytest
from small_data import CHATS, TEXTS, prepared

from babyllama.data.shards.shards import Prepared
from babyllama.data.shards.statistics import statistics
from babyllama.serve import data as module
from babyllama.serve.data import documents, figures
from babyllama.serve.faults import Refused
from babyllama.serve.runs import Runs
from babyllama.serve.watching import watched
from babyllama.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """runs/out is prepared; runs/sft reads it; runs/far reads what lies outside; runs/tok reads nothing."""
    root = tmp_path_factory.mktemp("work") / "runs"
    root.mkdir()
    prepared(root)
    reads = {"sft": {"data": {"path": "runs/out"}}, "far": {"data": {"path": "/elsewhere"}}, "tokens": {}}
    for name, recipe in reads.items():
        (root / name).mkdir()
        (root / name / "run.json").write_text(json.dumps({"verb": "train"}))
        (root / name / "recipe.yaml").write_text(json.dumps(recipe))
    return root


def test_a_training_shows_the_figures_of_its_data(root):
    folder = Prepared.open(root / "out")
    expected = statistics(folder, Tokenizer.load(root / "out"))
    with watched(root) as url, httpx.Client(base_url=url, timeout=60) as client:
        found = client.get("/api/data?id=sft").json()
        assert found.pop("run") == "out"
        assert found == json.loads(json.dumps({key: value for key, value in expected.items() if key != "path"}))
        (shown,) = client.get("/api/documents?id=sft&corpus=chat&count=1&seed=4").json()["documents"]
        assert shown == documents(Runs(root), "out", "chat", "", 0, 0, 1, 4)[0]
        pieces = [piece for part in shown["parts"] for piece in part["pieces"]]
        said = {
            f"<|user|>{c['messages'][0]['content']}<|assistant|>": f"{c['messages'][1]['content']}</s>" for c in CHATS
        }
        assert [learned for _, learned in pieces] == [False, True] and said[pieces[0][0]] == pieces[1][0]
        assert client.get("/api/documents?id=sft&least=x").status_code == 422
        assert client.get("/api/data?id=nowhere").status_code == 404


def test_what_is_chosen(root):
    found = documents(Runs(root), "sft", "text", "val", 0, 0, 1000, 0)
    assert {shown["split"] for shown in found} == {"val"} and len(found) <= len(TEXTS)
    some = documents(Runs(root), "sft", "", "", 10, 20, 1000, 0)
    assert len(some) == module.COUNT and all(10 <= shown["tokens"] <= 20 for shown in some)


@pytest.mark.parametrize("id,fault", [("far", "there is no run"), ("tokens", "there is no run"), ("x", "'x'")])
def test_data_that_are_not_there(root, id, fault):
    with pytest.raises(Refused, match=fault):
        figures(Runs(root), id)


def test_nothing_that_fits(root):
    assert documents(Runs(root), "out", "", "", 100_000, 0, 5, 0) == []
    with pytest.raises(Refused, match="sft has no 'y'; it has text, chat"):
        documents(Runs(root), "sft", "y", "", 0, 0, 5, 0)


def test_no_pytorch_is_loaded():
    code = "import sys; import babyllama.serve.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
