"""The verb tokenizer: what it says of the vocabulary that it makes."""

import json

from babyllama.commands.tokenizer import TokenizerRecipe, main
from babyllama.recipe import load_recipe


def made(tmp_path, capsys, size: int) -> str:
    """What is shown while a tokenizer of `size` tokens is asked of one short text."""
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "好好学习，天天向上。" * 20}, ensure_ascii=False), "utf-8")
    words = (f"out={tmp_path / f'tok-{size}'}", "source.kind=train", f"source.vocab_size={size}",
             f"source.corpora=[{{path: {text}}}]")  # fmt: skip
    main(load_recipe(TokenizerRecipe, None, words))
    return capsys.readouterr().out


def test_a_vocabulary_that_is_smaller_than_asked_says_so(tmp_path, capsys):
    said = made(tmp_path, capsys, 5000)
    size = json.loads((tmp_path / "tok-5000" / "run.json").read_text())["summary"]["vocab_size"]
    assert 262 < size < 400
    (line,) = [line for line in said.splitlines() if "asked for" in line]
    assert line.startswith(f"{size} tokens instead of the 5,000 asked for: ") and line.endswith("give more text")


def test_a_part_of_a_character_is_shown_by_its_bytes(tmp_path, capsys):
    said = made(tmp_path, capsys, 265)
    assert "\ufffd" not in said and "<e4>│<bb>│<8a>│天天│" in said


def test_one_that_is_as_large_says_nothing(tmp_path, capsys):
    assert "asked for" not in made(tmp_path, capsys, 265)
