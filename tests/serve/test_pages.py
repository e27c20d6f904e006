"""The web app's routes over HTTP: its files, the key before data, figures equal to the Python API's."""

from __future__ import annotations

import httpx
import pytest
import torch
from small_run import CHATS, small_tokenizer, taught_model

from babyllama import inside
from babyllama.infer.sampling import Sampling
from babyllama.model.rope import geometric
from babyllama.serve.pages import WEB
from babyllama.tokenizer.chat import render_chat

QUESTION, ANSWER = CHATS[0]
CHAT = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
DATA = ("/api/app", "/api/runs", "/api/run?id=base", "/api/metrics?id=base", "/api/source?view=text")


def look(client, view, **asked):
    found = client.post(f"/api/inside/{view}", json={"model": "taught", **asked})
    assert found.status_code == 200, found.text
    return found.json()


def ids_of_chat():
    return render_chat(small_tokenizer(), CHAT).tokens


# ── files ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_page_needs_no_key_and_loads_nothing_from_elsewhere(server):
    with httpx.Client(base_url=server.url) as anyone:
        page = anyone.get("/")
        assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
        for path in sorted(path for path in WEB.rglob("*") if path.is_file()):
            found = anyone.get(f"/web/{path.relative_to(WEB).as_posix()}")
            assert found.content == path.read_bytes()
            policy = found.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
            again = anyone.get(found.url.path, headers={"If-None-Match": found.headers["etag"]})
            assert again.status_code == 304 and not again.content
        assert "://" not in page.text.replace("http://www.w3.org", "")


def test_data_needs_the_key(server):
    with httpx.Client(base_url=server.url) as anyone:
        for path in DATA:
            assert anyone.get(path).status_code == 401
        assert anyone.post("/api/inside/text", json={"model": "taught", "text": "x"}).status_code == 401
        for path in ("/web/../api/runs", "/web/%2e%2e/api/runs", "/web//api/runs", "//api/runs"):
            assert anyone.get(path).status_code in (401, 404)
    with server.client() as client:
        assert all(client.get(path).status_code == 200 for path in DATA)


@pytest.mark.parametrize("name", ["../pages.py", "%2e%2e/pages.py", "..%2fpages.py", "/etc/passwd", "vendor", ""])
def test_no_other_file_is_served(client, name):
    assert client.get(f"/web/{name}").status_code == 404


def test_what_the_page_asks_first(client):
    found = client.get("/api/app").json()
    assert found["models"] == ["taught", "endless"] and found["runs"] and found["context"]["taught"] == 96
    assert found["sampling"]["taught"]["temperature"] == 0.7
    assert found["memory"] == {}  # nobody wrote down how long their training's chats were
    assert found["questions"] == {"taught": [], "endless": []}


def test_runs(client):
    assert [run["id"] for run in client.get("/api/runs").json()["runs"]] == ["sft", "base", "small/corpus", "small/tok"]
    assert client.get("/api/run", params={"id": "small/tok"}).json()["verb"] == "tokenizer"
    assert client.get("/api/metrics", params={"id": "base"}).json()["curves"]["train/lr"][0][-1] == 10
    for id in ("../taught", "nowhere", "/etc"):
        assert client.get("/api/run", params={"id": id}).status_code == 404


# ── looks ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_text_with_what_was_expected(client):
    found = look(client, "text", messages=CHAT, top=5)
    ids, tokenizer = ids_of_chat(), small_tokenizer()
    assert [token["id"] for token in found["tokens"]] == ids
    expected = inside.expectations(taught_model(), ids, tokenizer.vocab_size, 5)
    served = [token["logprob"] for token in found["tokens"][1:]]
    torch.testing.assert_close(torch.tensor(served), expected.logprobs[1:], atol=1e-4, rtol=1e-4)
    assert found["tokens"][0]["logprob"] is None and found["tokens"][0]["top"] == []
    assert [[c["id"] for c in token["top"]] for token in found["tokens"][1:]] == expected.top[1:-1].tolist()
    assert [c["id"] for c in found["next"]["top"]] == expected.top[-1].tolist()
    pieces = b"".join(bytes.fromhex(token["bytes"]) for token in found["tokens"] if not token["special"])
    assert QUESTION.encode() in pieces and ANSWER.encode() in pieces
    alone = look(client, "text", text=QUESTION)
    assert [t["id"] for t in alone["tokens"]] == [*tokenizer.start_ids, *tokenizer.encode(QUESTION)]


def test_attention_and_lens(client):
    ids, model = ids_of_chat(), taught_model()
    found = look(client, "attention", messages=CHAT, layer=1)
    assert found["layers"] == 2
    expected = inside.attention(model, ids, 1)
    for head, rows in enumerate(found["weights"]):
        for t, row in enumerate(rows):
            torch.testing.assert_close(torch.tensor(row), expected[head, t, : t + 1], atol=6e-5, rtol=0)
    found = look(client, "lens", messages=CHAT, top=3)
    lens = inside.logit_lens(model, ids, small_tokenizer().vocab_size, 3)
    assert [[[c["id"] for c in cell["top"]] for cell in row] for row in found["depths"]] == lens.top.tolist()
    assert found["depths"][0][-1]["came"] is None


def test_sampling_rope_and_neighbours(client):
    model, tokenizer = taught_model(), small_tokenizer()
    found = look(client, "sampling", messages=CHAT[:1], temperature=0.7, top_p=0.9, top=6)
    ids = render_chat(tokenizer, CHAT[:1], add_generation_prompt=True).tokens
    logits = inside.next_logits(model, ids, tokenizer.vocab_size)
    after = inside.reshaped(logits, Sampling(temperature=0.7, top_p=0.9), ids)
    for candidate in found["candidates"]:
        assert candidate["before"] == pytest.approx(logits.softmax(-1)[candidate["id"]].item(), abs=1e-5)
        assert candidate["after"] == pytest.approx(after[candidate["id"]].item(), abs=1e-5)
    assert found["kept"] == int((after > 0).sum())
    found = look(client, "rope", factor=4)
    plain = geometric(10_000, model.config.head_dim)
    torch.testing.assert_close(torch.tensor(found["frequencies"]["linear"]), plain / 4)
    torch.testing.assert_close(torch.tensor(found["frequencies"]["none"]), plain)
    assert found["trained"] == 96 and found["length"] == 384 and found["own"] == "none"
    found = look(client, "neighbours", token="你", count=7)
    near, cosines = inside.neighbours(model.embed_tokens.weight, tokenizer.encode("你")[0], 7)
    assert [n["id"] for n in found["near"]["embedding"]] == near.tolist()
    assert [n["cosine"] for n in found["near"]["embedding"]] == pytest.approx(cosines.tolist())


def test_the_source_of_a_view_is_the_function_there(client):
    found = client.get("/api/source", params={"view": "attention"}).json()
    assert found["file"] == "src/babyllama/model/attention.py"
    assert found["text"].splitlines()[found["line"] - 1].startswith("def attend_eager(")


@pytest.mark.parametrize(
    "view, asked, status, said",
    [
        ("text", {}, 400, "either text or messages"),
        ("text", {"text": "x", "model": "nobody"}, 404, "nobody"),
        ("text", {"text": "一" * 500}, 400, "this view takes 1 to 96"),
        ("attention", {"text": "你好", "layer": 7}, 400, "layers 0 … 1"),
        ("neighbours", {"token": 10**6}, 400, "ids are 0 …"),
        ("neighbours", {"token": ""}, 400, "ids are 0 …"),
        ("sampling", {"text": "x", "temperature": -1}, 400, "temperature"),
        ("nothing", {}, 404, "there is no view"),
    ],
)
def test_what_cannot_be_looked_at_is_said(client, view, asked, status, said):
    found = client.post(f"/api/inside/{view}", json={"model": "taught", **asked})
    assert found.status_code == status and said in found.json()["error"]["message"]


def test_a_page_of_another_origin_cannot_ask(client):
    found = client.post(
        "/api/inside/text", content='{"model": "taught", "text": "x"}', headers={"Content-Type": "text/plain"}
    )
    assert found.status_code == 415
