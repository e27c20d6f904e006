"""The arena: answers are the models', the page is blind, offline and safe, votes become ranks."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from babyllama.commands.arena import ArenaRecipe, main, page, votes_of
from babyllama.data.sources.preferences import read_preference
from babyllama.errors import InputError
from babyllama.recipe import load_recipe

from .small_run import CHATS, save_taught

EVIL = "</script><script>alert(1)</script>"


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_the_page_holds_every_answer(tmp_path, capsys):
    save_taught(tmp_path / "a" / "model")
    save_taught(tmp_path / "b" / "model")
    (tmp_path / "asked.txt").write_text("\n".join([CHATS[0][0], "", CHATS[1][0], CHATS[0][0]]), "utf-8")
    main(
        load_recipe(
            ArenaRecipe,
            None,
            [
                f"runs=[{tmp_path}/a, {tmp_path}/b]",
                f"prompts={tmp_path}/asked.txt",
                f"out={tmp_path}/arena.html",
                "temperature=0",
                "device=cpu",
            ],
        )
    )
    found = data_of((tmp_path / "arena.html").read_text("utf-8"))
    assert found["names"] == [f"{tmp_path}/a", f"{tmp_path}/b"] and found["prompts"] == [CHATS[0][0], CHATS[1][0]]
    assert found["answers"] == [[CHATS[0][1], CHATS[1][1]]] * 2
    assert "babyllama arena 'votes=[arena-votes.json]'" in capsys.readouterr().out


def test_each_model_draws_as_its_own_folder_says(tmp_path):
    for name, heat in (("cold", 0), ("hot", 100)):
        file = save_taught(tmp_path / name / "model") / "generation_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "temperature": heat}))
    (tmp_path / "asked.txt").write_text(CHATS[0][0], "utf-8")
    main(load_recipe(ArenaRecipe, None, [f"runs=[{tmp_path}/cold, {tmp_path}/hot]", f"prompts={tmp_path}/asked.txt",
                                         f"out={tmp_path}/arena.html", "device=cpu"]))  # fmt: skip
    cold, hot = data_of((tmp_path / "arena.html").read_text("utf-8"))["answers"]
    assert cold == [CHATS[0][1]] != hot


def test_a_run_that_is_not_there_shows_before_the_first_answers(tmp_path, monkeypatch):
    save_taught(tmp_path / "a" / "model")
    (tmp_path / "asked.txt").write_text("问", "utf-8")
    monkeypatch.setattr("babyllama.commands.arena.answers_of", lambda *_: pytest.fail("asked"))
    with pytest.raises(InputError, match="nowhere: does not exist"):
        main(ArenaRecipe(runs=(tmp_path / "a", tmp_path / "nowhere"), prompts=tmp_path / "asked.txt"))


def test_what_models_wrote_is_data_and_nothing_comes_from_elsewhere():
    html = page(["a", "b"], ["问" + EVIL], [[EVIL], ["答"]], "zh")
    assert html.count("<script") == html.count("</script>") == 2 and data_of(html)["answers"][0] == [EVIL]
    assert "http" not in html and "第一个更好" in html and "src=" not in html


def test_votes_become_ranks(tmp_path, capsys):
    votes = [
        {"prompt": "问", "left": "a", "right": "b", "winner": winner} for winner in ("left", "left", "tie", "right")
    ]
    (tmp_path / "votes.json").write_text(json.dumps({"votes": votes * 5}), "utf-8")
    main(ArenaRecipe(votes=(tmp_path / "votes.json",)))
    shown = " ".join(capsys.readouterr().out.split())
    assert "20 votes" in shown and shown.index(" a ") < shown.index(" b ") and "38%" in shown  # (7.5 + ½) / 21


def test_votes_of_both_pages_become_ranks_and_pairs_that_prepare_reads(tmp_path, capsys):
    """The better answer of each; none where both are alike or equal. The web app's votes, saved as pairs, count too."""
    won = [("left", ["好", "坏"]), ("right", ["差", "佳"]), ("tie", ["甲", "乙"]), ("left", ["同", "同"])]
    votes = [{"prompt": "问", "left": "a", "right": "b", "winner": side, "answers": both} for side, both in won]
    (tmp_path / "arena.json").write_text(json.dumps({"votes": votes}), "utf-8")
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in "是否")
    app = {"prompt": [{"role": "user", "content": "再问"}], "chosen": chosen, "rejected": rejected,
           "chosen_model": "a", "rejected_model": "b"}  # fmt: skip
    (tmp_path / "votes.jsonl").write_text(json.dumps(app) + "\n", "utf-8")
    files = (tmp_path / "arena.json", tmp_path / "votes.jsonl")
    main(ArenaRecipe(votes=files, pairs=tmp_path / "pairs.jsonl"))
    shown = capsys.readouterr().out
    assert "3 preference pairs of 5 votes" in shown and "Bradley–Terry, 5 votes" in shown
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text("utf-8").splitlines()]
    found = [read_preference(pair, Counter()) for pair in pairs]
    assert [(one.chosen[0]["content"], one.rejected[0]["content"]) for one in found] == [
        ("好", "坏"), ("佳", "差"), ("是", "否")]  # fmt: skip
    assert pairs[1]["chosen_model"] == "b" and pairs[2] == app
    (tmp_path / "older.json").write_text(json.dumps({"votes": [{**votes[0], "answers": None}]}), "utf-8")
    with pytest.raises(InputError, match="pairs: none of these votes"):
        main(ArenaRecipe(votes=(tmp_path / "older.json",), pairs=tmp_path / "none.jsonl"))
    (tmp_path / "votes.jsonl").write_text("{}\n", "utf-8")
    with pytest.raises(InputError, match="line 1 is no vote as"):
        votes_of(tmp_path / "votes.jsonl")


@pytest.mark.parametrize(("text", "fault"), [
    ('{"votes": []}', "holds no votes"), ('{"votes": [{"left": "a", "right": "a", "winner": "left"}]}', "vote 1 must"),
    ('{"votes": [{"left": "a", "right": "b", "winner": "both"}]}', "vote 1 must have two names"), ("[1]", "votes.json"),
])  # fmt: skip
def test_faults_of_votes(tmp_path, text, fault):
    (tmp_path / "votes.json").write_text(text, "utf-8")
    with pytest.raises(InputError, match=fault):
        votes_of(tmp_path / "votes.json")


def test_faults(tmp_path):
    with pytest.raises(InputError, match="give two or more runs and prompts=FILE to write a page"):
        load_recipe(ArenaRecipe, None, ["runs=[a]", "prompts=x"])
    with pytest.raises(InputError, match=r"prompts: .*gone\.txt cannot be read"):
        main(load_recipe(ArenaRecipe, None, ["runs=[a, b]", f"prompts={tmp_path}/gone.txt"]))
    with pytest.raises(InputError, match="runs: one of them is there twice"):
        main(load_recipe(ArenaRecipe, None, ["runs=[a, a]", f"prompts={tmp_path}/gone.txt"]))
