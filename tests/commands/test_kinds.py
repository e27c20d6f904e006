"""Every kind of data from its record to what is learned: shards, rows of a training, and what ``data show`` says.

What is expected is written out by hand: [[ ]] holds what the loss covers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_data import recipe, save_tokenizer, write_lines

from babyllama import verbs
from babyllama.commands.prepare import main as prepare
from babyllama.data.shards.samples import pieces
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import DataRecipe, Stream
from babyllama.data.streams.prompts import Prompts
from babyllama.data.streams.reading import stretches
from babyllama.tokenizer.tokenizer import Tokenizer

U, A, S, T = "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>"
FUNCTION = {"name": "time", "description": "几点", "parameters": {"type": "object", "properties": {}}}
TOOLS = f"<tools>\n{json.dumps(FUNCTION, ensure_ascii=False)}\n</tools>"
CALL = '<tool_call>\n{"name": "time", "arguments": {"zone": "东八"}}\n</tool_call>'
CALLED = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "1", "type": "function", "function": {"name": "time", "arguments": '{"zone": "东八"}'}}]}  # fmt: skip


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


KINDS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "pair": ({"prompt": "问", "chosen": "好", "rejected": "坏"}, [f"{U}问{A}[[好</s>]]", f"{U}问{A}[[坏</s>]]"]),
    "pair of chats, system and tools on top": (
        {"system": "短", "tools": [{"type": "function", "function": FUNCTION}], "chosen": [CALLED],
         "prompt": [user("一"), said("二"), user("三")], "rejected": [said("不知")]},
        [f"{S}短\n\n{TOOLS}{U}一{A}二</s>{U}三{A}[[{answer}</s>]]" for answer in (CALL, "不知")]),
    "good": ({"prompt": "问", "completion": "好", "label": True}, [f"{U}问{A}[[好</s>]]"]),
    "bad": ({"messages": [user("一"), said("二"), user("三"), said("坏")], "label": False},
            [f"{U}一{A}二</s>{U}三{A}[[坏</s>]]"]),
    "a question with its answer": ({"question": "一加一", "answer": "2"}, [f"{U}一加一{A}[[2</s>]]"]),
    "turns and a reference": ({"prompt": [{"role": "system", "content": "算"}, user("一加二")], "answer": "3"},
                              [f"{S}算{U}一加二{A}[[3</s>]]"]),
    "prompt and completion": ({"prompt": [user("一")], "completion": [said("二")]}, [f"{U}一{A}[[二</s>]]"]),
    "tools, calls and thoughts": (
        {"tools": json.dumps([FUNCTION]), "messages": [user("几点"), {**CALLED, "reasoning_content": "要查"},
         {"role": "tool", "content": "九点"}, said("九点了。")]},
        [f"{S}{TOOLS}{U}几点{A}[[<think>\n要查\n</think>\n\n{CALL}</s>]]{T}九点{A}[[九点了。</s>]]"]),
    "weight 0": ({"messages": [user("一"), said("错", weight=0), user("再"), said("对")]},
                 [f"{U}一{A}错</s>{U}再{A}[[对</s>]]"]),
    "system on top": ({"system": "短", "conversations": [{"from": "human", "value": "一"},
                                                        {"from": "gpt", "value": "二"}]}, [f"{S}短{U}一{A}[[二</s>]]"]),
}  # fmt: skip


def marked(found: list[Any]) -> str:
    return "".join(f"[[{piece.text}]]" if piece.learned else piece.text for piece in found)


@pytest.mark.parametrize("name", KINDS)
def test_from_its_record_to_what_is_learned(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, expected = KINDS[name]
    file, tokens = write_lines(tmp_path / "data.jsonl", [record]), save_tokenizer(tmp_path / "tok")
    prepare(recipe(tmp_path / "out", tokens, [{"path": str(file)}], "workers=1", "validation=0"))
    capsys.readouterr()
    assert verbs.call(["data", "show", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert all(f"{text}\n" in shown for text in expected)
    folder, tokenizer = Prepared.open(tmp_path / "out"), Tokenizer.load(tokens)
    stream = Stream(folder, "train", DataRecipe(path=folder.path), 2048, 0)
    row = [part for part in stretches(stream.batch(0, 1), 0, folder.eos) if not part.padding]
    read = [marked(pieces(part.tokens.tolist(), part.learned.tolist(), tokenizer)) for part in row]
    assert (stream.rows, read) == (1, expected)
    labels = {"pair": [1, -1], "good": [1], "bad": [-1]}.get(name.split(" ")[0], [0])
    assert [part.label for part in row] == labels


def test_a_question_with_its_answer_is_a_prompt_with_a_reference(tmp_path: Path) -> None:
    """What learns by rewards reads the same shards."""
    record, _ = KINDS["a question with its answer"]
    file, tokens = write_lines(tmp_path / "data.jsonl", [record]), save_tokenizer(tmp_path / "tok")
    prepare(recipe(tmp_path / "out", tokens, [{"path": str(file)}], "workers=1", "validation=0"))
    tokenizer = Tokenizer.load(tokens)
    (prompt,) = Prompts(Prepared.open(tmp_path / "out"), "train", DataRecipe(path=tmp_path / "out"), 64, 0).taken(0, 1)
    assert tokenizer.decode(prompt.tokens, skip_special=False) == f"{U}一加一{A}"
    assert tokenizer.decode(prompt.answer, skip_special=False) == "2</s>"
