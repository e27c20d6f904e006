"""Skills with sentences: 把 and 被, saying no, opposites, measure words."""

from __future__ import annotations

from random import Random

from babyllama.data.microworld.skills import Example, Skill
from babyllama.data.microworld.world import CHILDREN, COUNTED

_ACTORS = ("小猫", "小狗", "小猴", "小鸟", "爸爸", "妈妈", "爷爷", "奶奶", *CHILDREN)
# Verb with its ending, and what can be done so: none that an animal of the list could not do in a story
_DEEDS = (
    ("吃完", "鱼"), ("吃完", "苹果"), ("喝完", "牛奶"), ("打破", "杯子"), ("打破", "花瓶"), ("弄丢", "钥匙"),
    ("弄丢", "帽子"), ("弄脏", "衣服"), ("弄脏", "地板"), ("洗干净", "碗"), ("洗干净", "桌子"), ("关上", "门"),
    ("打开", "窗户"), ("拿走", "书"), ("拿走", "雨伞"), ("藏起来", "皮球"), ("撕破", "报纸"), ("推倒", "椅子"),
    ("画完", "画"), ("修好", "自行车"),
)  # fmt: skip


def _rewriting(rng: Random) -> Example:
    """One deed in four forms: plain, 把, 被, 没有; asked is for one that is not given."""
    actor, (verb, thing) = rng.choice(_ACTORS), rng.choice(_DEEDS)
    forms = {"把": f"{actor}把{thing}{verb}了。", "被": f"{thing}被{actor}{verb}了。"}
    given, wanted = rng.choice((("把", "被"), ("被", "把"), ("把", "没有"), ("被", "没有")))
    if wanted == "没有":
        question = rng.choice((f"“{forms[given]}”不对，应该怎么说？", f"请说“{forms[given]}”的否定句。"))
        without = {"把": f"{actor}没有把{thing}{verb}。", "被": f"{thing}没有被{actor}{verb}。"}
        return Example("", question, without[given], (actor, verb, thing))
    question = rng.choice((f"请把“{forms[given]}”改成“{wanted}”字句。", f"“{forms[given]}”用“{wanted}”怎么说？"))
    return Example("", question, forms[wanted], (actor, verb, thing))


# Two opposites and what can be both
_NOT_HERE = {"山", "桥", "楼", "河", "路", "水井", "船", "飞机", "马", "牛", "猪", "鸡", "鸟", "草"}
_THINGS = " ".join(noun for noun in COUNTED if noun not in _NOT_HERE)
_OPPOSITES = (
    ("长", "短", "绳子 裤子 铅笔 头发 尾巴 路 队伍 桥 文章 鼻子"),
    ("大", "小", _THINGS),
    ("高", "矮", "弟弟 哥哥 桌子 树 房子 老师 小明 小红 椅子 爸爸"),
    ("快", "慢", "火车 马 汽车 时间 脚步 船 鸟 乌龟 河水 妹妹"),
    ("多", "少", _THINGS),
    ("重", "轻", _THINGS),
    ("热", "冷", "天气 水 房间 教室 饭 茶 牛奶 手 风 北方"),
    ("新", "旧", _THINGS),
    ("亮", "暗", "灯 房间 月光 天空 教室 火光 星星 路灯 屋子 窗户"),
    ("厚", "薄", "书 衣服 纸 被子 冰 墙 木板 云 雪 玻璃"),
    ("宽", "窄", "路 河 桥 门 桌子 床 街道 楼梯 窗户 走廊"),
    ("远", "近", "学校 车站 医院 河 山 商店 公园 海 家 图书馆"),
    ("干净", "脏", _THINGS),
    ("贵", "便宜", _THINGS),
    ("安静", "吵闹", "教室 街道 图书馆 房间 公园 医院 车站 商店 村子 楼道"),
    ("干", "湿", "衣服 头发 毛巾 地板 鞋 纸 木头 帽子 草地 手"),
    ("硬", "软", "床 椅子 饭 苹果 鞋 面包 木头 枕头 桃子 泥土"),
    ("深", "浅", "河 水 井 湖 坑 雪 海 洞 池塘 颜色"),
    ("早", "晚", "火车 哥哥 汽车 老师 弟弟 船 爷爷 同学 春天 客人"),
    ("胖", "瘦", "小猫 小狗 小猪 弟弟 哥哥 马 小熊 爷爷 小牛 小鸭"),
)


def _opposite(rng: Random) -> Example:
    """The two sentences of a noun are one combination: who knows one could turn it round."""
    one, other, nouns = rng.choice(_OPPOSITES)
    noun = rng.choice(nouns.split())
    given, wanted = rng.choice(((one, other), (other, one)))
    before = rng.choice(("这里的", "那边的", "今天的", ""))
    said = f"{before}{noun}很{given}"
    question = rng.choice((f"和“{said}”意思相反的话是什么？", f"“{said}”反过来怎么说？"))
    return Example("", question, f"{given}的反义词是{wanted}，{before}{noun}很{wanted}。", (noun, one))


_AMOUNTS = ("一", "两", "三", "四", "五", "六", "七", "八", "九", "十", "这", "那", "几", "每")


def _measure_word(rng: Random) -> Example:
    amount, (noun, measure) = rng.choice(_AMOUNTS), rng.choice(tuple(COUNTED.items()))
    question = rng.choice((f"“{amount}”和“{noun}”中间用什么量词？", f"请填上量词：{amount}（）{noun}。"))
    return Example("", question, f"{amount}{measure}{noun}。", (amount, noun))


SENTENCES = (
    Skill("rewriting", "sentences with 把, 被, 没有", 1 / 4, _rewriting),
    Skill("opposites", "opposites in a sentence", 1 / 20, _opposite),
    Skill("measure_words", "measure words", 1 / 8, _measure_word),
)
