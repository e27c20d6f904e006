"""Every answer goes on from its question with an idiom that is known."""

from __future__ import annotations

import re

from babyllama.data.sources.idiom_chain import WORDINGS, idiom_chain
from babyllama.data.sources.knowledge import idiom_words


def test_answers_go_on_and_some_questions_are_held_out():
    known, found = set(idiom_words()), list(idiom_chain())
    forms = re.compile("|".join(re.escape(form).replace(r"\{\}", "(....)") for form in WORDINGS))
    for record in found:
        question, answer = (turn["content"] for turn in record["messages"])
        match = forms.fullmatch(question)
        assert match is not None
        asked = next(group for group in match.groups() if group)
        assert {asked, answer} <= known and answer != asked and answer[0] == asked[-1]
    held = sum(record["held_out"] for record in found)
    assert len(found) > 5_000 and 0.03 < held / len(found) < 0.07
