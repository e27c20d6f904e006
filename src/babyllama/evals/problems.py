"""Word problems of arithmetic in Chinese, drawn from a seed: a story, and the number that answers it.

The form of GSM8K's, for small models: one or two steps, numbers below 1,000. Written here, in the public domain.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from babyllama.evals.items import Item

_NAMES = ["小明", "小红", "小华", "小丽", "小刚", "小芳", "小军", "小燕"]
_THINGS = [("个", "苹果"), ("本", "书"), ("支", "铅笔"), ("颗", "糖"), ("张", "邮票"), ("朵", "花"), ("个", "气球")]
# a story with a, b, c for its numbers, and the number that answers it
_STORIES: list[tuple[str, str, Callable[[int, int, int], int]]] = [
    ("加法", "{who}有{a}{m}{t}，又得到{b}{m}，现在有多少{m}{t}？", lambda a, b, c: a + b),
    ("加法", "{who}有{a}{m}{t}，{other}有{b}{m}{t}，他们一共有多少{m}{t}？", lambda a, b, c: a + b),
    ("减法", "{who}有{a}{m}{t}，送给{other}{b}{m}，还剩多少{m}{t}？", lambda a, b, c: a - b),
    ("减法", "{who}有{a}{m}{t}，{other}有{b}{m}{t}，{who}比{other}多多少{m}？", lambda a, b, c: a - b),
    ("乘法", "每{m}{t}{b}元，{who}买了{c}{m}，一共要付多少元？", lambda a, b, c: b * c),
    ("乘法", "一盒有{b}{m}{t}，{c}盒一共有多少{m}{t}？", lambda a, b, c: b * c),
    ("除法", "把{bc}{m}{t}平均分给{c}个人，每人分到多少{m}？", lambda a, b, c: b),
    ("除法", "{bc}{m}{t}，每{b}{m}装一盒，可以装多少盒？", lambda a, b, c: c),
    ("两步", "{who}有{a}{m}{t}，又买了{b}{m}，送给{other}{c}{m}，现在有多少{m}{t}？", lambda a, b, c: a + b - c),
    ("两步", "{who}买了{c}盒{t}，每盒{b}{m}，用掉{a}{m}，还剩多少{m}{t}？", lambda a, b, c: b * c - a),
    ("两步", "{who}有{a}元，买了{c}{m}{t}，每{m}{b}元，还剩多少元？", lambda a, b, c: a - b * c),
    ("两步", "{who}每天看{b}页书，看了{c}天，又看了{a}页，一共看了多少页？", lambda a, b, c: b * c + a),
]


def word_problems(draw: Random) -> list[Item]:
    """20 of each story; no answer is below 1, no problem is there twice."""
    items: list[Item] = []
    seen: set[str] = set()
    for number, (group, story, answer) in enumerate(_STORIES):
        found = 0
        while found < 20:
            a, b, c = draw.randint(5, 99), draw.randint(2, 20), draw.randint(2, 9)
            who, other = draw.sample(_NAMES, 2)
            measure, thing = draw.choice(_THINGS)
            text = story.format(who=who, other=other, m=measure, t=thing, a=a, b=b, c=c, bc=b * c)
            if answer(a, b, c) > 0 and text not in seen:
                seen.add(text)
                items.append(Item(f"应用题-{number}-{found}", text, (str(answer(a, b, c)),), 0, group))
                found += 1
    return items
