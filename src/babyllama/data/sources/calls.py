"""Tools, calls of tools and thoughts in the records of chats → OpenAI's form, in which templates write them.

    tools | functions                     a list, or JSON of one: of the record, or of its system message
    tool_calls: [{function: {name, arguments}}] or [{name, arguments}], or JSON of a list; function_call: one
    a turn of the role function_call      its text is JSON of one call, or of a list of them (ShareGPT)
    reasoning_content | reasoning

Not here: turns and their order (chats.py), the text that a template makes of them (tokenizer/answers.py).
"""

from __future__ import annotations

from typing import Any

from babyllama.atomic import parse_json

Record = dict[str, Any]
_TOOLS = ("tools", "functions")
_LISTS = ("messages", "conversations", "conversation")
_THOUGHTS = ("reasoning_content", "reasoning")


class BadRecord(ValueError):
    """Why one record is no document; `parse` adds file and line."""


def tools_in(record: Record, used: set[str]) -> tuple[dict[str, Any], ...]:
    """The tools of a record. Raises BadRecord for one without a name."""
    used.update(_TOOLS)
    given = next((record[key] for key in _TOOLS if record.get(key)), None)
    if given is None:
        turns = next((record[key] for key in _LISTS if isinstance(record.get(key), list)), [])
        given = next((turn["tools"] for turn in turns if isinstance(turn, dict) and turn.get("tools")), None)
    return tuple(map(_tool, _listed(given, "tools")))


def calls_of(turn: Record, text: str | None) -> list[dict[str, Any]]:
    """The calls of an answer. `text`: where its words are the call. Raises BadRecord."""
    if text is not None:
        try:
            return [_call(call) for call in _listed(text, "a call")]
        except BadRecord:  # it stays the text that it is
            return []
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    return [_call(call) for call in _listed(calls, "tool_calls")]


def thought_of(turn: Record) -> str | None:
    """What an answer thought before; None where the record says nothing of it. Raises BadRecord."""
    thought = next((turn[key] for key in _THOUGHTS if turn.get(key) is not None), None)
    if thought is not None and not isinstance(thought, str):
        raise BadRecord(f"reasoning_content must be text, got {thought!r:.40}")
    return thought


def _listed(given: Any, what: str) -> list[Any]:
    """A list, one object, or JSON of either."""
    if isinstance(given, str):
        try:
            given = parse_json(given) if given.strip() else []
        except ValueError:
            raise BadRecord(f"{what} is no JSON: {given!r:.60}") from None
    if given is None:
        return []
    return given if isinstance(given, list) else [given]


def _tool(tool: Any) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRecord(f"a tool must be an object with a name, got {tool!r:.60}")
    kept = {key: function[key] for key in ("name", "description", "parameters") if function.get(key) is not None}
    return {"type": "function", "function": kept}


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRecord(f"a tool call must be an object with name and arguments, got {call!r:.60}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments) if arguments.strip() else {}
        except ValueError:
            raise BadRecord(f"the arguments of a tool call are no JSON: {arguments!r:.60}") from None
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
