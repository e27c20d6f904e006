"""Items made here, by rules and from a seed: small signals that move early in training. Everything is written here and
in the public domain.

Each set is balanced, so that a preference for a word, for short options or for the first place gains nothing: of two
measure words each is right as often as the other, sums and their neighbours change places, copied words are drawn
anew. Not here: how items are scored (choices.py), items of published tests (sources.py).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from random import Random

from babyllama.evals.items import Item

# ── words ──────────────────────────────────────────────────────────────────────────────────────────────────────────
_MEASURES = {
    "本": "书 词典 杂志 日记 小说 相册 课本 字典",
    "只": "鸟 猫 鸡 羊 兔子 老鼠 蝴蝶 鸭子",
    "条": "河 鱼 蛇 路 裙子 裤子 毛巾 围巾",
    "张": "纸 桌子 床 照片 地图 邮票 车票 唱片",
    "辆": "汽车 自行车 卡车 马车 出租车 摩托车 公交车 坦克",
    "件": "衬衫 毛衣 大衣 事情 礼物 行李 外套 上衣",
    "座": "山 桥 塔 城市 水库 宫殿 教堂 雕像",
    "棵": "树 松树 白菜 柳树 小草 桃树 杨树 果树",
    "匹": "马 布 骏马 白马 骡子 绸缎 战马 小马",
    "朵": "花 云 玫瑰 白云 荷花 菊花 牡丹 浪花",
    "艘": "船 军舰 轮船 潜艇 帆船 货轮 航母 渔船",
    "把": "刀 伞 椅子 剪刀 钥匙 梳子 扇子 锁",
}
_PEOPLE = [
    "我",
    "他",
    "她",
    "老师",
    "妈妈",
    "爸爸",
    "医生",
    "学生",
    "弟弟",
    "妹妹",
    "农民",
    "工人",
    "司机",
    "朋友",
    "邻居",
    "同学",
]
_TIMES = ["昨天", "今天", "早上", "晚上", "去年", "上个月", "星期天", "中午", "下午", "春天", "前天", "周末"]
_PLACES = ["学校", "医院", "公园", "商店", "图书馆", "车站", "饭店", "邮局", "银行", "市场", "海边", "工厂"]
_DEEDS = [("看", "书"), ("喝", "水"), ("吃", "饭"), ("写", "信"), ("唱", "歌"), ("买", "菜"), ("洗", "衣服"),
          ("画", "画儿"), ("打", "电话"), ("听", "音乐"), ("做", "作业"), ("修", "车")]  # fmt: skip
_QUALITIES = [("大", "小"), ("高", "矮"), ("快", "慢"), ("新", "旧"), ("长", "短"), ("冷", "热"), ("贵", "便宜"),
              ("干净", "脏"), ("远", "近"), ("重", "轻")]  # fmt: skip
_THINGS = ["房间", "衣服", "城市", "汽车", "书包", "桌子", "河水", "道路", "苹果", "老虎", "箱子", "手机"]
_HANZI = list("天地人山水火木金土日月星云风雨雪花草树鸟鱼马牛羊春夏秋冬东西南北红黄蓝白黑高低大小长短")
_FACTS = [  # question, right option, wrong ones of the same kind
    ("中国的首都是", "北京", ("上海", "广州", "南京")), ("法国的首都是", "巴黎", ("伦敦", "柏林", "罗马")),
    ("日本的首都是", "东京", ("大阪", "京都", "首尔")), ("英国的首都是", "伦敦", ("巴黎", "纽约", "柏林")),
    ("一年有十二个", "月", ("天", "年", "时")), ("一天有二十四个", "小时", ("分钟", "星期", "季度")),
    ("一个星期有", "七天", ("六天", "八天", "五天")), ("一年有", "四个季节", ("五个季节", "三个季节", "六个季节")),
    ("水在零度会结成", "冰", ("火", "土", "油")), ("太阳从", "东边升起", ("西边升起", "北边升起", "南边升起")),
    ("白天之后是", "夜晚", ("苹果", "衣服", "大象")), ("鱼生活在", "水里", ("火里", "天上", "书里")),
    ("鸟用翅膀", "飞翔", ("写字", "唱歌", "吃饭")), ("人用眼睛", "看", ("听", "闻", "吃")),
    ("人用耳朵", "听", ("看", "尝", "走")), ("生病了要去看", "医生", ("司机", "画家", "歌手")),
    ("教书的人叫", "老师", ("医生", "农民", "厨师")), ("种地的人叫", "农民", ("律师", "医生", "演员")),
    ("冬天下", "雪", ("书", "车", "鱼")), ("雪的颜色是", "白色", ("红色", "黑色", "绿色")),
    ("草的颜色是", "绿色", ("紫色", "黑色", "蓝色")), ("糖的味道是", "甜的", ("苦的", "辣的", "咸的")),
    ("盐的味道是", "咸的", ("甜的", "苦的", "酸的")), ("醋的味道是", "酸的", ("甜的", "辣的", "苦的")),
    ("爸爸的爸爸叫", "爷爷", ("叔叔", "舅舅", "哥哥")), ("妈妈的妈妈叫", "外婆", ("姑姑", "姐姐", "嫂子")),
    ("一加一等于", "二", ("五", "九", "七")), ("三角形有三条", "边", ("线", "腿", "路")),
    ("苹果是一种", "水果", ("动物", "家具", "金属")), ("老虎是一种", "动物", ("水果", "蔬菜", "工具")),
    ("铁是一种", "金属", ("水果", "鸟类", "布料")), ("发烧的时候体温会", "升高", ("降低", "消失", "睡觉")),
    ("画蛇添", "足", ("手", "眼", "鱼")), ("守株待", "兔", ("羊", "鸟", "狗")), ("亡羊补", "牢", ("门", "路", "衣")),
    ("井底之", "蛙", ("鱼", "鸡", "马")), ("对牛弹", "琴", ("鼓", "歌", "钟")), ("一心一", "意", ("手", "口", "头")),
    ("半途而", "废", ("去", "回", "死")), ("自相矛", "盾", ("枪", "剑", "甲")), ("狐假虎", "威", ("皮", "声", "力")),
    ("掩耳盗", "铃", ("钟", "鼓", "羊")), ("床前明月光，疑是地上", "霜", ("雪", "水", "花")),
    ("举头望明月，低头思", "故乡", ("父母", "朋友", "往事")), ("春眠不觉晓，处处闻", "啼鸟", ("花香", "人语", "钟声")),
    ("白日依山尽，黄河入", "海流", ("江流", "天去", "山间")), ("锄禾日当午，汗滴禾下", "土", ("水", "石", "草")),
    ("欲穷千里目，更上一", "层楼", ("座山", "条船", "匹马")),
]  # fmt: skip


# ── sets ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def _pair(group: str, number: int, good: str, bad: str, draw: Random, question: str = "") -> Item:
    """Two options in drawn order."""
    first = draw.random() < 0.5
    return Item(f"{group}-{number}", question, (good, bad) if first else (bad, good), 0 if first else 1, group)


def measure_words(draw: Random) -> list[Item]:
    """一本书 against 一只书, and 一只鸟 against 一本鸟: each measure word as often right as wrong, no noun twice in a
    pair of them."""
    items, nouns = [], {word: draw.sample(of.split(), 8) for word, of in _MEASURES.items()}
    used = dict.fromkeys(_MEASURES, 0)
    pairs = list(combinations(_MEASURES, 2))
    draw.shuffle(pairs)
    for one, other in pairs:
        for right, wrong in ((one, other), (other, one)):
            noun = nouns[right][used[right] % 8]
            used[right] += 1
            items.append(_pair("量词", len(items), f"一{right}{noun}", f"一{wrong}{noun}", draw))
    return items


def word_order(draw: Random) -> list[Item]:
    """The same words in an order that Chinese allows, and in one that it does not."""
    items: list[Item] = []
    for n in range(40):
        who, when, where = draw.choice(_PEOPLE), draw.choice(_TIMES), draw.choice(_PLACES)
        verb, thing = draw.choice(_DEEDS)
        plain, measure = draw.choice(_THINGS), draw.choice(["很", "太", "真", "非常", "十分", "特别"])
        quality = draw.choice(draw.choice(_QUALITIES))
        for group, good, bad in (
            ("时间在前", f"{who}{when}{verb}{thing}。", f"{who}{verb}{thing}{when}。"),
            ("地点在前", f"{who}在{where}{verb}{thing}。", f"{who}{verb}{thing}在{where}。"),
            ("程度在前", f"{plain}{measure}{quality}。", f"{plain}{quality}{measure}。"),
            ("否定在前", f"{who}没有{verb}{thing}。", f"{who}{verb}{thing}没有。"),
            ("动词在前", f"{who}喜欢{verb}{thing}。", f"{who}喜欢{thing}{verb}。"),
        ):
            items.append(_pair(group, n, good, bad, draw))
    return items


def minimal_pairs(draw: Random) -> list[Item]:
    """A sentence and one that differs in a word of grammar. Every kind comes with its mirror, in which that word is
    the right one."""
    items: list[Item] = []
    for n in range(25):
        who, when, where = draw.choice(_PEOPLE), draw.choice(_TIMES), draw.choice(_PLACES)
        verb, thing = draw.choice(_DEEDS)
        what, (quality, _) = draw.choice(_THINGS), draw.choice(_QUALITIES)
        other = draw.choice([person for person in _PEOPLE if person != who])
        for group, good, bad in (
            ("的地得·名词", f"{who}的{what}很{quality}。", f"{who}得{what}很{quality}。"),
            ("的地得·补语", f"{who}{verb}得很{quality}。", f"{who}{verb}的很{quality}。"),
            ("不没·过去", f"{who}昨天没{verb}{thing}。", f"{who}昨天不{verb}{thing}。"),
            ("不没·打算", f"{who}明天不想{verb}{thing}。", f"{who}明天没想{verb}{thing}。"),
            ("吗呢·是非", f"你{when}去过{where}吗？", f"你{when}去过{where}呢？"),
            ("吗呢·特指", f"你为什么去{where}呢？", f"你为什么去{where}吗？"),
            ("把被·主动", f"{who}把{what}卖了。", f"{who}被{what}卖了。"),
            ("把被·被动", f"{what}被{who}卖了。", f"{what}把{who}卖了。"),
            ("比跟·比较", f"{who}比{other}{quality}一点。", f"{who}跟{other}{quality}一点。"),
            ("比跟·一样", f"{who}跟{other}一样{quality}。", f"{who}比{other}一样{quality}。"),
        ):
            items.append(_pair(group, n, good, bad, draw))
    return items


def arithmetic(draw: Random) -> list[Item]:
    """Sums, differences and products of small numbers; the wrong results are near ones, from both sides alike."""
    items: list[Item] = []
    tasks = [(f"{a}+{b}=", a + b, "加法") for a in range(1, 50) for b in range(1, 50)]
    tasks += [(f"{a}-{b}=", a - b, "减法") for a in range(10, 100) for b in range(1, a - 4)]
    tasks += [(f"{a}×{b}=", a * b, "乘法") for a in range(2, 13) for b in range(2, 13)]
    by_group = {group: [t for t in tasks if t[2] == group] for group in ("加法", "减法", "乘法")}
    for group, held in by_group.items():
        for n, (question, result, _) in enumerate(draw.sample(held, 70)):
            low = draw.randint(0, 3)  # how many of the wrong ones are smaller: no place in the order is likelier
            near = [result + step for step in range(-low, 4 - low)]
            draw.shuffle(near)
            items.append(Item(f"{group}-{n}", question, tuple(map(str, near)), near.index(result), group))
    return items


def induction(draw: Random) -> list[Item]:
    """A row of drawn hanzi, again from its start: which one comes next? All options stand in the row, so only their
    order tells; none is the last one that was read."""
    items: list[Item] = []
    for n in range(200):
        length = draw.choice((6, 8, 10, 12))
        row = draw.sample(_HANZI, length)
        at = draw.randrange(2, length)
        wrong = draw.sample([c for i, c in enumerate(row) if i not in (at, at - 1)], 3)
        options = [row[at], *wrong]
        draw.shuffle(options)
        question = "".join(row) + "，" + "".join(row[:at])
        items.append(Item(f"归纳-{n}", question, tuple(options), options.index(row[at]), f"{length} 字"))
    return items


def copying(draw: Random) -> list[Item]:
    """A word that was said, against words that were not: 请跟我说：… 。我说：…"""
    items: list[Item] = []
    for n in range(200):
        drawn = draw.sample(_HANZI, 8)
        words = [drawn[i] + drawn[i + 4] for i in range(4)]
        right = draw.randrange(4)
        items.append(Item(f"复述-{n}", f"请跟我说：{words[right]}。我说：", tuple(words), right, "复述"))
    return items


def common_knowledge(draw: Random) -> list[Item]:
    """Facts, idioms and lines of verse that every child knows, to be completed."""
    items: list[Item] = []
    for n, (question, right, wrong) in enumerate(_FACTS):
        options = [right, *wrong]
        draw.shuffle(options)
        items.append(Item(f"常识-{n}", question, tuple(options), options.index(right), "常识"))
    return items


MADE: dict[str, Callable[[Random], list[Item]]] = {
    "measure_words": measure_words, "word_order": word_order, "minimal_pairs": minimal_pairs,
    "arithmetic": arithmetic, "induction": induction, "copying": copying, "common_knowledge": common_knowledge,
}  # fmt: skip


def made(name: str, seed: int = 0) -> list[Item]:
    """The set of this name; the same for the same seed, on any machine."""
    return MADE[name](Random(f"{name} {seed}"))
