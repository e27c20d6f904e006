"""JSON on one line, for every client's idea of a line."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from babyllama.serve.faults import json_bytes


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\x85\u2028\u2029\x07\\")))
def test_any_text_is_one_line(text):
    line = json_bytes({"text": text}).decode()
    assert len(line.splitlines()) == 1 and json.loads(line) == {"text": text}
