"""成语接龙 as chats: to each idiom one that begins with its last character.

A twentieth of the questions is held out, by the idiom that is asked. Not here:
the idioms (knowledge.py), whether an answer is a right one (train/rl/rewards.py).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from babyllama.data.sources.knowledge import idiom_words

WORDINGS = ("成语接龙：{}", "我们来成语接龙，我说“{}”，你接。", "请接一个成语：{}")
HELD_OUT = 0.05


def idiom_chain() -> Iterator[dict[str, Any]]:
    """A question for each idiom that can be gone on from, in one of three wordings, and one of its right answers."""
    draw, following = random.Random(0), defaultdict(list)
    words = sorted(set(idiom_words()))
    for word in words:
        following[word[0]].append(word)
    for word in words:
        right = [other for other in following[word[-1]] if other != word]
        if right:
            question, answer = draw.choice(WORDINGS).format(word), draw.choice(right)
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            yield {"messages": turns, "held_out": draw.random() < HELD_OUT}
