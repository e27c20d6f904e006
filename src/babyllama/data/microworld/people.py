"""Skills about people: who is where with what, families, reading a passage, what it does not tell, causes."""

from __future__ import annotations

from random import Random

from babyllama.data.microworld.skills import Combination, Example, Skill
from babyllama.data.microworld.world import (
    CHILDREN,
    COLOURS,
    COMPANIONS,
    MEN,
    ROOMS,
    THINGS,
    TIMES,
    WEATHER,
    WEEKDAYS,
    WOMEN,
)


def _places(rng: Random) -> Example:
    """Some walk to rooms, again and again; one carries a thing. Asked: where somebody or the thing is at the end."""
    names, (thing, measure) = rng.sample(CHILDREN, 2), rng.choice(tuple(THINGS.items()))
    carrier = rng.choice(names)
    where: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    lines: list[str] = []
    taken = rng.randrange(3)
    for turn in range(rng.randint(3, 4)):
        if turn == taken:
            lines.append(f"{carrier}拿起了一{measure}{thing}。")
        name = names[turn % 2] if turn < 2 else rng.choice(names)
        room = rng.choice([room for room in ROOMS if room not in where.values()])
        where[name] = room
        pairs.append((name, room))
        lines.append(f"{name}去了{room}。")
    about = thing if rng.random() < 0.25 else rng.choice(names)
    holder = carrier if about == thing else about
    room = where[holder]
    answer = f"{thing}在{holder}手里，{holder}在{room}。" if about == thing else f"{about}在{room}。"
    asked = (holder, room)
    return Example("".join(lines), f"{about}在哪里？", answer, asked, tuple(pair for pair in pairs if pair != asked))


# First step, second step, what they make, and whether the last is a man
_KIN = (
    ("爸爸", "爸爸", "爷爷", True), ("爸爸", "妈妈", "奶奶", False), ("妈妈", "爸爸", "外公", True),
    ("妈妈", "妈妈", "外婆", False), ("爸爸", "哥哥", "伯伯", True), ("爸爸", "弟弟", "叔叔", True),
    ("爸爸", "姐姐", "姑姑", False), ("爸爸", "妹妹", "姑姑", False), ("妈妈", "哥哥", "舅舅", True),
    ("妈妈", "弟弟", "舅舅", True), ("妈妈", "姐姐", "姨妈", False), ("妈妈", "妹妹", "姨妈", False),
    ("哥哥", "妻子", "嫂子", False), ("姐姐", "丈夫", "姐夫", True), ("叔叔", "妻子", "婶婶", False),
    ("舅舅", "妻子", "舅妈", False), ("姑姑", "丈夫", "姑父", True), ("哥哥", "儿子", "侄子", True),
    ("哥哥", "女儿", "侄女", False), ("姐姐", "儿子", "外甥", True),
)  # fmt: skip
_MALE = {"爸爸", "哥哥", "弟弟", "叔叔", "舅舅"}


def _family(rng: Random) -> Example:
    first, second, result, man = rng.choice(_KIN)
    child = rng.choice(CHILDREN)
    middle = rng.choice(MEN if first in _MALE else WOMEN)
    last = rng.choice([name for name in (MEN if man else WOMEN) if name != middle])
    facts = [f"{child}的{first}是{middle}。", f"{middle}的{second}是{last}。"]
    other = rng.choice([name for name in CHILDREN if name != child])
    if rng.random() < 0.5:
        stranger = rng.choice([name for name in MEN if name not in (middle, last)])
        facts.append(f"{other}的老师是{stranger}。")
    rng.shuffle(facts)
    question = rng.choice((f"{last}是{child}的什么人？", f"{child}应该叫{last}什么？"))
    return Example("".join(facts), question, f"{first}的{second}是{result}，{last}是{child}的{result}。",
                   (child, first, second))  # fmt: skip


# An activity and where it is done
_ACTIVITIES = (
    ("放风筝", "公园"), ("看书", "图书馆"), ("踢足球", "操场"), ("钓鱼", "河边"),
    ("买水果", "市场"), ("看电影", "电影院"), ("游泳", "游泳馆"), ("画画", "美术馆"),
    ("爬山", "郊外"), ("种树", "村口"), ("看老虎", "动物园"), ("坐船", "湖边"),
    ("捡贝壳", "海边"), ("打针", "医院"),
)  # fmt: skip


def _outing(rng: Random) -> tuple[str, dict[str, str], Combination]:
    """A passage, its facts by what is asked for, and its combination."""
    child, companion = rng.choice(CHILDREN), rng.choice(COMPANIONS)
    activity, place = rng.choice(_ACTIVITIES)
    day, time = rng.choice(WEEKDAYS), rng.choice(TIMES)
    passage = rng.choice((
        f"{day}{time}，{child}和{companion}去{place}{activity}。",
        f"{child}和{companion}在{day}{time}去了{place}，在那里{activity}。",
        f"{child}很高兴，因为{day}{time}{companion}带{child}去{place}{activity}。",
    ))  # fmt: skip
    facts = {"who": companion, "when": f"{day}{time}", "where": place, "what": activity, "child": child}
    return passage, facts, (child, activity)


def _reading(rng: Random) -> Example:
    passage, facts, asked = _outing(rng)
    child, place = facts["child"], facts["where"]
    question, answer = rng.choice((
        (f"谁和{child}一起去？", f"{facts['who']}和{child}一起去。"),
        (f"{child}什么时候去{place}？", f"{child}{facts['when']}去{place}。"),
        (f"{child}去了哪里？", f"{child}去了{place}。"),
        (f"{child}去{place}做什么？", f"{child}去{place}{facts['what']}。"),
    ))  # fmt: skip
    ends = rng.choice(("大家玩得很开心。", "那天的事真让人难忘。", "回家的时候天已经黑了。", ""))
    return Example(passage + ends, question, answer, asked)


# What a passage may tell besides: a sentence, the question and the answer, with the values
_DETAILS = (
    ("{0}穿着{1}的衣服。", "{0}穿着什么颜色的衣服？", COLOURS),
    ("{0}戴着{1}的帽子。", "{0}戴着什么颜色的帽子？", COLOURS),
    ("{0}背着{1}的书包。", "{0}背着什么颜色的书包？", COLOURS),
    ("{0}出门那天是{1}。", "{0}出门那天是什么天气？", WEATHER),
    ("{0}带了{1}。", "{0}带了什么？", tuple(f"一{measure}{thing}" for thing, measure in THINGS.items())),
)  # fmt: skip


def _unknown(rng: Random) -> Example:
    """Two of the details are told; asked is for one of them or, as often, for another."""
    passage, facts, _ = _outing(rng)
    child = facts["child"]
    order = rng.sample(range(len(_DETAILS)), 3)
    values = [rng.choice(_DETAILS[index][2]) for index in order]
    told = "".join(_DETAILS[i][0].format(child, v) for i, v in zip(order[:2], values[:2], strict=True))
    pick = rng.choice((0, 1, 2, 2))
    line, question, _ = _DETAILS[order[pick]]
    answer = line.format(child, values[pick]) if pick < 2 else "不知道，短文里没有说。"
    others = tuple((child, index) for index in order[:2] if index != order[pick])
    return Example(passage + told, question.format(child), answer, (child, order[pick]), others)


# What happened, what came of it, how it ended; {} is the hero
_EVENTS = (
    ("{}出门忘了带伞，路上下起了大雨", "{}全身都湿了", "{}回家喝了一碗热汤"),
    ("{}晚上睡得太晚", "{}早上起不来", "{}每天都早早上床"),
    ("{}走路不看脚下", "{}摔了一跤", "{}走路总是很小心"),
    ("{}吃了太多糖", "{}牙疼了", "{}每天都认真刷牙"),
    ("{}没有关好窗户，夜里刮起了大风", "桌上的纸飞了一地", "{}把纸一张张捡了起来"),
    ("{}忘了给花浇水", "花都干了", "{}赶快浇水，花又活了"),
    ("{}把钥匙忘在家里", "{}进不了门", "{}等到妈妈下班才回家"),
    ("{}跑得太快", "{}撞到了树", "{}不在路上乱跑了"),
    ("{}天天练习写字", "{}的字又快又好", "{}得到了老师的表扬"),
    ("{}帮邻居老奶奶提菜篮", "老奶奶很高兴", "老奶奶送给{}一个大苹果"),
    ("{}冬天没有穿外套", "{}感冒了", "{}过了几天才好"),
    ("{}不小心打破了杯子", "{}心里很害怕", "{}说了实话，妈妈没有生气"),
    ("{}把伙伴的玩具弄丢了", "伙伴哭了", "{}和伙伴一起把它找了回来"),
    ("{}一直坚持跑步", "{}的身体越来越好", "{}在比赛中得了第一名"),
    ("{}做作业不认真", "{}错了很多题", "{}改正错误，不再马虎"),
    ("{}第一次上台唱歌", "{}紧张得脸都红了", "{}唱完歌，大家都鼓掌"),
)  # fmt: skip
_HEROES = ("小兔", "小猫", "小狗", "小熊", "小猴", "小鸭", *CHILDREN)


def _cause(rng: Random) -> Example:
    number, hero = rng.randrange(len(_EVENTS)), rng.choice(_HEROES)
    event, result, end = (part.format(hero) for part in _EVENTS[number])
    passage = f"{rng.choice(('有一天，', '从前有一回，', '昨天，', ''))}{event}，结果{result}。后来，{end}。"
    asked = (hero, number)
    if rng.random() < 0.5:
        return Example(passage, f"为什么{result}？", f"因为{event}。", asked)
    return Example(passage, "后来怎么样了？", f"后来，{end}。", asked)


PEOPLE = (
    Skill("places", "who is where with what", 1 / 12, _places),
    Skill("family", "relations of two steps", 1 / 18, _family),
    Skill("reading", "reading a passage", 1 / 10, _reading),
    Skill("unknown", "saying that it is not told", 1 / 2, _unknown),
    Skill("causes", "causes and ends of stories", 1 / 16, _cause),
)
