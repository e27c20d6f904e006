"""What a vocabulary learns from chats with tools: also what the template writes of these."""

import json

from babyllama.data.sources.corpora import CorpusChoice, read_texts
from babyllama.recipe import validate


def test_the_tools_of_a_chat_are_text_where_that_is_asked(tmp_path):
    tool = {
        "type": "function",
        "function": {"name": "weather", "description": "天气", "parameters": {"type": "object"}},
    }
    chat = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": chat, "tools": [tool]}) + "\n" + json.dumps({"messages": chat}))
    choice = validate(CorpusChoice, {"path": str(path)}, "corpora.0")
    assert list(read_texts([choice])) == ["问\n答"] * 2
    told, *rest = read_texts([choice], tools=True)
    assert json.loads(told) == tool["function"] and "天气" in told and rest == ["问\n答"] * 2
