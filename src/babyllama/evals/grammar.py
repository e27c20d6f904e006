"""Sentences made by rules, in pairs: which word, which order, which measure word is right?

Whoever has learned nothing still prefers a word to another. So each of two words is right in one frame and wrong in
its mirror (把 and 被, 本 and 只); where only the order tells, what changes places has equally many hanzi. All items
that one preference would answer alike form a block. Sources of the idea: BLiMP (Warstadt et al. 2020), ZhoBLiMP (Liu et
al. 2024); sentences and words are written here, in the public domain.
"""

from __future__ import annotations

from random import Random

from babyllama.evals.items import Item

_SLOTS = {
    "人": "我 他 她 老师 妈妈 爸爸 医生 学生 弟弟 妹妹 农民 工人 司机 朋友 邻居 同学",
    "众": "老师 医生 学生 农民 工人 司机 朋友 邻居 同学 孩子",
    "何处": "学校 医院 公园 商店 饭店 邮局 银行 市场 海边 工厂",
    "何物": "房间 衣服 汽车 书包 桌子 苹果 箱子 手机 雨伞 帽子",
    "做事": "看书 喝水 吃饭 写信 唱歌 买菜 跑步 游泳 睡觉 上课 爬山 钓鱼",
    "如何": "大 小 新 旧 长 短 贵 远 近 重",
    "动": "跑 走 写 说 唱 游 飞 做",
    "姿": "躺 坐 站 笑 哭 睡",
}
# two words; a frame in which the first is right at 〇, and one in which the second is
_CONTRASTS = """
得 的 | {人}{动}〇很快。 | {人}〇{何物}很{如何}。
没 不 | {人}从来〇去过{何处}。 | {人}〇会{做事}。
吗 呢 | 你去过{何处}〇？ | 你为什么去{何处}〇？
把 被 | {人}〇{何物}卖了。 | {何物}〇{人}卖了。
比 跟 | 这个〇那个{如何}一点。 | 这个〇那个一样{如何}。
着 了 | {人}正{姿}〇呢。 | {人}已经来〇。
个 们 | 三〇{众}来了。 | {众}〇都来了。
在 到 | {人}正〇{何处}{做事}。 | {人}从早上等〇晚上。
虽然 因为 | 〇{人}很累，但是还要{做事}。 | 〇{人}很累，所以没有{做事}。
如果 即使 | 〇下雨，{人}就不去{何处}。 | 〇下雨，{人}也要去{何处}。
不但 只有 | 〇{人}会去，而且{人}也会去。 | 〇{人}先去，{人}才会去。
从 向 | {人}〇{何处}回来了。 | {人}〇{何处}走去。
给 对 | {人}〇我写了一封信。 | {人}〇我非常好。
都 才 | 每个{众}〇知道。 | 只有{人}〇知道。
又 再 | {人}昨天〇来了。 | 请你明天〇来。
多 很 | {何物}有〇{如何}？ | {何物}〇{如何}。
谁 哪 | 〇在{做事}？ | 你在〇里{做事}？
两 二 | {人}有〇本书。 | 今天是星期〇。
是 有 | {人}〇一个好人。 | {人}〇三本书。
离 由 | {人}家〇{何处}很远。 | 这件事〇{人}决定。
为了 由于 | 〇身体健康，{人}每天{做事}。 | 〇下大雨，{人}没去{何处}。
还是 或者 | 你去{何处}〇去{何处}？ | {人}今天〇明天去{何处}。
刚 将 | {人}〇从{何处}回来。 | {人}明年〇去{何处}工作。
上 里 | {人}坐在地〇。 | {人}坐在屋〇。
以前 以后 | 很久〇，有一个{众}。 | 从今〇，{人}要好好{做事}。
怎么 什么 | 这个字〇写？ | 你叫〇名字？
自己 互相 | {人}一个人照顾〇。 | {众}和{众}〇帮助。
更 挺 | {何物}比我的〇{如何}。 | {何物}〇{如何}的。
连 除 | 〇小孩子也知道。 | 〇{人}以外都来了。
往 用 | {人}一直〇前走。 | {人}〇笔写字。
只要 无论 | 〇下雨，{人}就在家。 | 〇下不下雨，{人}都在家。
一些 一次 | {人}买了〇水果。 | {人}去过〇{何处}。
"""
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
# what comes before, pairs in the right order, what comes after. No pair shares a hanzi with another of its row, unless
# it shares the first one: those are of one block.
_ORDERS = """
程度 | 这个 | 很大 很小 很高 | 。
程度 | 那里 | 太远 太近 太冷 | 。
程度 | 它们 | 真快 真慢 真贵 | 。
程度 | 天气 | 挺热 挺好 挺暖 | 。
程度 | 今年 | 更忙 更累 更穷 | 。
程度 | 他家 | 最新 最旧 最富 | 。
程度 | 房间 | 非常干净 非常漂亮 非常安静 | 。
程度 | 问题 | 十分简单 十分清楚 十分奇怪 | 。
程度 | 孩子 | 特别聪明 特别健康 特别可爱 | 。
程度 | 情况 | 相当复杂 相当危险 相当紧张 | 。
副词 | 我 | 也去 也来 也走 | 。
副词 | 他们 | 都吃 都喝 都看 | 。
副词 | 小王 | 常唱 常跳 常跑 | 。
副词 | 老李 | 还睡 还坐 还站 | 。
副词 | 我们 | 先说 先听 先写 | 。
副词 | 大家 | 再学 再想 再玩 | 。
副词 | 弟弟 | 不哭 不笑 不闹 | 。
副词 | 你们 | 别动 别停 别等 | 。
副词 | 他们 | 已经出发 已经毕业 已经结婚 | 。
副词 | 我们 | 经常跑步 经常旅游 经常聊天 | 。
副词 | 老师 | 立刻回家 立刻起床 立刻休息 | 。
能愿 | 妹妹 | 会游 会爬 会飞 | 。
能愿 | 哥哥 | 能拿 能搬 能抬 | 。
能愿 | 奶奶 | 想买 想卖 想换 | 。
能愿 | 姐姐 | 敢问 敢答 敢骂 | 。
能愿 | 同学 | 可以参加 可以帮助 可以离开 | 。
数量 | 我有 | 三本 五张 七条 两把 四件 六辆 八只 九匹 | 。
方位 | 东西在 | 桌上 床下 碗里 门外 楼前 山后 海边 河中 | 。
介词 | 老师 | 对我说 跟他走 给谁看 向你学 替她写 | 。
时间 | 我 | 昨天看书 早上跑步 夜里写信 中午吃饭 周末爬山 平时喝茶 傍晚钓鱼 | 。
时间 | 他们 | 去年结婚 春季种花 假期旅游 从前打猎 现在开会 清晨扫地 | 。
动宾 | 妈妈喜欢 | 喝酒 看戏 骑马 寄信 下棋 吃鱼 洗碗 | 。
体 | 爷爷 | 来了 走了 睡了 | 。
体 | 奶奶 | 见过 听过 吃过 | 。
体 | 姑姑 | 坐着 站着 躺着 | 。
"""


def minimal_pairs(draw: Random) -> list[Item]:
    """A sentence and one with another word of grammar."""
    items: list[Item] = []
    for row in _CONTRASTS.strip().splitlines():
        words, *frames = (part.strip() for part in row.split("|"))
        pair, group = tuple(words.split()), words.replace(" ", "")
        for n in range(5):
            for right, frame in enumerate(frames):
                sentence = _filled(frame, draw)
                options = tuple(sentence.replace("〇", word) for word in pair)
                items.append(Item(f"{group}-{n}-{right}", "", options, right, group, group))
    return items


def _filled(frame: str, draw: Random) -> str:
    """No word twice."""
    used: set[str] = set()
    for slot, said in _SLOTS.items():
        while f"{{{slot}}}" in frame:
            word = draw.choice([word for word in said.split() if word not in used and word not in frame])
            used.add(word)
            frame = frame.replace(f"{{{slot}}}", word, 1)
    return frame


def measure_words(draw: Random) -> list[Item]:
    """一本书 against 一只书, and 一只鸟 against 一本鸟; every noun in one block."""
    nouns = {word: draw.sample(of.split(), 8) for word, of in _MEASURES.items()}
    items: list[Item] = []
    for n in range(8):
        order = draw.sample(list(_MEASURES), len(_MEASURES))
        for pair in zip(order[::2], order[1::2], strict=True):
            name = f"量词-{n}-{''.join(pair)}"
            items += [Item(f"{name}-{right}", "", tuple(f"一{word}{nouns[pair[right]][n]}" for word in pair), right,
                           "量词", name) for right in (0, 1)]  # fmt: skip
    return items


def word_order(draw: Random) -> list[Item]:
    """Two halves of equally many hanzi in the order that Chinese allows, and in the other."""
    items: list[Item] = []
    for row, line in enumerate(_ORDERS.strip().splitlines()):
        group, before, pairs, after = (part.strip() for part in line.split("|"))
        place: dict[str, int] = {}
        for n, words in enumerate(pairs.split()):
            half = len(words) // 2
            first, second, rest = (
                words[:half],
                words[half : 2 * half],
                words[2 * half :],
            )  # 对我说: 说 stays
            right = place.setdefault(first, draw.randrange(2))  # of one block: the same place in all its items
            options = [f"{before}{first}{second}{rest}{after}", f"{before}{second}{first}{rest}{after}"]
            items.append(Item(f"语序-{row}-{n}", "", tuple(options[:: 1 - 2 * right]), right, group,
                              f"语序-{row}-{first}"))  # fmt: skip
    return items
