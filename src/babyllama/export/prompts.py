"""Questions that two programs are compared on: Chinese, English, code and all mixed, the same ones every time."""

from __future__ import annotations

import random

_CHINESE = (
    ["请问", "你知道", "说说", "解释一下", "为什么人们谈论"],
    ["春天", "北京", "画蛇添足", "感冒", "语言模型", "李白的诗", "二十四节气", "一元二次方程"],
    ["是什么？", "有什么特点？", "，用一句话。", "吗？谢谢！", "——越短越好……"],
)
_ENGLISH = (
    ["What is", "Tell me about", "Why do people like", "In one sentence:", "Don't forget"],
    ["the sea", "a language model", "tea", "arithmetic", "Newton's law", "naïve Bayes", "spring", "HTTP"],
    ["?", " in 1990?", ", please.", " and 3.14?", " (briefly)!"],
)
_CODE = (
    ["def f(x):\n    return ", "for i in range(10):\n\tprint(", "SELECT * FROM t WHERE ", "int main() { return "],
    ["x + 1", "i ** 2", "a == 'b'", "0x1F", "len(xs[1:])", "not_a_name"],
    ["\n", ")", ";", "; }", "  # TODO"],
)
_MIXED = (
    ["用 Python 写", "今天是2024年，", "Hello，世界！", "  两个空格 ", "第一行\n第二行 "],
    ["quick sort", "3.14159", "ＡＢＣ", "😀🐑", "e=mc²", "C++ 的 vector"],
    ["怎么办？", " 好吗", "…", "\n\n", " (100%)", "「真的」"],
)
KINDS = {"Chinese": _CHINESE, "English": _ENGLISH, "code": _CODE, "mixed": _MIXED}


def prompts(count: int) -> list[str]:
    """`count` different questions, of each kind as many."""
    draw, found = random.Random(0), dict[str, None]()
    kinds = list(KINDS.values())
    while len(found) < count:
        found["".join(map(draw.choice, kinds[len(found) % len(kinds)]))] = None
    return list(found)
