"""What the verb serve finds out before it loads a model."""

from __future__ import annotations

import json
import socket

import pytest
from small_run import save_taught

from babyllama import verbs
from babyllama.atomic import read_json
from babyllama.commands.arena import prompts_of
from babyllama.commands.chat import ChatRecipe
from babyllama.commands.serve import ServeRecipe, _hints, _keys, _listen, _named, _samplings, _say
from babyllama.errors import InputError
from babyllama.infer.sampling import Sampling
from babyllama.load import own_sampling
from babyllama.recipe import load_recipe


def test_a_byte_order_mark_is_no_part_of_what_people_write(tmp_path, monkeypatch):
    """Windows' editor begins files with one."""
    monkeypatch.delenv("BABYLLAMA_API_KEYS", raising=False)
    file = tmp_path / "file"
    file.write_text("sk-a\n", "utf-8-sig")
    assert _keys(load_recipe(ServeRecipe, None, ["models=[x]", f"api_keys={file}"])) == prompts_of(file) == ["sk-a"]
    file.write_text('{"type": "object"}', "utf-8-sig")
    assert read_json(file) == {"type": "object"}


def test_keys_that_are_none_leave_no_server_open(tmp_path, monkeypatch):
    (tmp_path / "keys").write_text("\n # sk-old\n")
    for variable, words in ((" , ", []), ("", [f"api_keys={tmp_path / 'keys'}"])):
        monkeypatch.setenv("BABYLLAMA_API_KEYS", variable)
        with pytest.raises(InputError, match="holds no key; write"):
            _keys(load_recipe(ServeRecipe, None, ["models=[x]", *words]))
    assert _keys(load_recipe(ServeRecipe, None, ["models=[x]"])) == []


def test_where_it_cannot_listen_it_says_what_is_wrong():
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port={taken}: cannot listen there .* another port"):
            _listen(load_recipe(ServeRecipe, None, ["models=[x]", f"port={taken}"]), 1)
    with pytest.raises(InputError, match=r"host=192\.0\.2\.199: this machine has no such address; .* or 0\.0\.0\.0"):
        _listen(load_recipe(ServeRecipe, None, ["models=[x]", "host=192.0.2.199", "port=0"]), 1)


@pytest.mark.parametrize(("turns", "seen"), [(1, {"run": 0}), (3, {"run": 2}), (0, {}), (None, {})])
def test_the_web_app_shows_a_model_as_many_turns_as_its_training_had(tmp_path, turns, seen):
    run = tmp_path / "run"
    save_taught(run / "model")
    save_taught(tmp_path / "folder")
    (run / "recipe.yaml").write_text("{}", "utf-8")
    (run / "run.json").write_text(json.dumps({"verb": "train", "summary": {} if turns is None else {"turns": turns}}))
    named = _named(load_recipe(ServeRecipe, None, [f"models=[{run}, {tmp_path / 'folder'}]"]))
    known = {name: hints.memory for name, hints in _hints(named).items() if hints.memory is not None}
    assert list(named) == ["run", "folder"] and known == seen


def test_one_model_is_drawn_from_alike_in_a_chat_and_over_http(tmp_path):
    """Said here, then the model's own, then the program's: and a folder made of it keeps its own."""
    for name in ("own", "plain"):
        save_taught(tmp_path / name)
    file = tmp_path / "own" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "temperature": 0.3, "top_k": 20}))
    verbs.call(["export", str(tmp_path / "own"), "to=hf", f"out={tmp_path / 'kept'}"])
    words = [f"models=[{', '.join(str(tmp_path / name) for name in ('own', 'plain', 'kept'))}]", "sampling.top_p=1"]
    recipe = load_recipe(ServeRecipe, None, words)
    found = _samplings(_named(recipe), recipe.sampling)
    own = Sampling(temperature=0.3, top_k=20, top_p=1)
    plain = Sampling(temperature=0.7, top_p=1)
    assert {name: one.all for name, one in found.items()} == {"own": own, "plain": plain, "kept": own}
    # A request that says a part of it gets nothing that it did not ask for.
    assert found["plain"].of({"temperature": 0}) == Sampling()
    assert found["plain"].of({"presence_penalty": 1}) == plain
    assert found["own"].of({"temperature": 0}) == Sampling(temperature=0.3, top_k=20)
    chat = load_recipe(ChatRecipe, None, [f"model={tmp_path / 'kept'}", "top_p=1"])
    assert chat.sampling.over(own_sampling(tmp_path / "kept")) == own
    said = json.loads((tmp_path / "kept" / "generation_config.json").read_text())
    assert said["do_sample"] and "top_p" not in said  # transformers draws from it, too


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "http://127.0.0.1:8000"), ("::", "http://[::1]:8000"), ("0.0.0.0", "http://127.0.0.1:8000"),
     ("box", "http://box:8000")],
)  # fmt: skip
def test_the_printed_address_can_be_opened(capsys, host, address):
    _say(load_recipe(ServeRecipe, None, ["models=[m]", f"host={host}"]), 8000, ["m"], ["key"])
    said = capsys.readouterr().err
    assert f"at {address}/v1 (" in said and f"in a browser: {address}" in said
    assert ("other machines" in said) == (host in ("0.0.0.0", "::"))
