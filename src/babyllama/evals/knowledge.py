"""What every child knows, to be completed: facts, idioms, lines of verse, hanzi by their parts. Typed here; the idioms
and verses are old and in the public domain.

Four questions make a block and share their four answers, so that each answer is right once and wrong three times:
whoever prefers one of them, whatever is asked, gets exactly a quarter right. Answers of a block have equally many
characters. Not here: sets by rules (grammar.py, made.py), scores.
"""

from __future__ import annotations

from random import Random

from babyllama.evals.items import Item

_FACTS = """
中国的首都是 北京 | 日本的首都是 东京 | 法国的首都是 巴黎 | 英国的首都是 伦敦
德国的首都是 柏林 | 韩国的首都是 首尔 | 泰国的首都是 曼谷 | 意大利的首都是 罗马
雪的颜色是 白 | 草的颜色是 绿 | 血的颜色是 红 | 煤的颜色是 黑
糖的味道是 甜 | 盐的味道是 咸 | 醋的味道是 酸 | 辣椒的味道是 辣
人用眼睛 看 | 人用耳朵 听 | 人用鼻子 闻 | 人用嘴巴 吃
鸟在天上 飞 | 鱼在水里 游 | 蛇在地上 爬 | 马在草原上 跑
生病了要找 医生 | 教我们读书的人是 老师 | 在田里种地的人是 农民 | 在饭店做菜的人是 厨师
抓小偷的人是 警察 | 在法庭上判案的人是 法官 | 开汽车的人是 司机 | 写小说的人是 作家
写字要用 笔 | 切菜要用 刀 | 下雨要打 伞 | 晚上照明要开 灯
苹果是一种 水果 | 老虎是一种 动物 | 铁是一种 金属 | 桌子是一种 家具
白菜是一种 蔬菜 | 足球是一种 运动 | 钢琴是一种 乐器 | 春节是一种 节日
牛吃 草 | 猫抓 鼠 | 蚕吐 丝 | 鸡下 蛋
爸爸的爸爸叫 爷爷 | 妈妈的妈妈叫 外婆 | 爸爸的弟弟叫 叔叔 | 妈妈的哥哥叫 舅舅
一加一等于 二 | 一加三等于 四 | 三加三等于 六 | 九减一等于 八
一年有十二个 月 | 一块钱有十 角 | 一米有一百 厘 | 一刻钟有十五 分
水在零度会结 冰 | 木头烧完变成 灰 | 麦子磨成 粉 | 黄豆磨成 浆
看电影要去 影院 | 坐火车要去 车站 | 寄信要去 邮局 | 存钱要去 银行
飞机降落的地方是 机场 | 老师上课的地方是 学校 | 医生看病的地方是 医院 | 工人做工的地方是 工厂
人冷了要穿 衣 | 人饿了要吃 饭 | 人渴了要喝 水 | 人困了要上 床
大的反义词是 小 | 高的反义词是 低 | 快的反义词是 慢 | 新的反义词是 旧
热的反义词是 冷 | 长的反义词是 短 | 轻的反义词是 重 | 近的反义词是 远
早上太阳升起的方向是 东 | 傍晚太阳落下的方向是 西 | 北的对面是 南 | 右的对面是 左
龙井是一种 茶 | 茅台是一种 酒 | 景德镇盛产 瓷 | 新疆盛产 棉
中国最长的河是 长江 | 中国最高的山在 西藏 | 中国的国宝是 熊猫 | 中秋节要吃 月饼
"""
_IDIOMS = """
画蛇添足 守株待兔 亡羊补牢 井底之蛙
对牛弹琴 自相矛盾 狐假虎威 掩耳盗铃
一心一意 半途而废 三顾茅庐 四面楚歌
刻舟求剑 叶公好龙 愚公移山 杯弓蛇影
望梅止渴 纸上谈兵 指鹿为马 卧薪尝胆
破釜沉舟 完璧归赵 负荆请罪 毛遂自荐
胸有成竹 滥竽充数 买椟还珠 朝三暮四
塞翁失马 鹬蚌相争 夜郎自大 杞人忧天
邯郸学步 东施效颦 惊弓之鸟 黔驴技穷
水落石出 雪中送炭 锦上添花 风和日丽
百发百中 千军万马 五颜六色 七上八下
九牛一毛 十全十美 乱七八糟 五湖四海
画龙点睛 鹤立鸡群 虎头蛇尾 狼吞虎咽
马到成功 鸡飞狗跳 龙腾虎跃 守口如瓶
鼠目寸光 如鱼得水 骑虎难下 顺手牵羊
天长地久 海阔天空 山清水秀 鸟语花香
春暖花开 秋高气爽 冰天雪地 万紫千红
开门见山 口是心非 心平气和 手忙脚乱
眉开眼笑 目瞪口呆 自言自语 前因后果
左顾右盼 东张西望 南辕北辙 大同小异
温故知新 学以致用 熟能生巧 勤能补拙
实事求是 全力以赴 迫不及待 与众不同
名落孙山 孟母三迁 闻鸡起舞 班门弄斧
盲人摸象 坐井观天 拔苗助长 鱼目混珠
"""
_VERSES = """
床前明月光，疑是地上 霜 | 锄禾日当午，汗滴禾下 土 | 白日依山尽，黄河入海 流 | 欲穷千里目，更上一层 楼
举头望明月，低头思故 乡 | 春眠不觉晓，处处闻啼 鸟 | 夜来风雨声，花落知多 少 | 谁知盘中餐，粒粒皆辛 苦
千山鸟飞绝，万径人踪 灭 | 孤舟蓑笠翁，独钓寒江 雪 | 松下问童子，言师采药 去 | 只在此山中，云深不知 处
红豆生南国，春来发几 枝 | 愿君多采撷，此物最相 思 | 空山不见人，但闻人语 响 | 返景入深林，复照青苔 上
独坐幽篁里，弹琴复长 啸 | 深林人不知，明月来相 照 | 君自故乡来，应知故乡 事 | 来日绮窗前，寒梅著花 未
日暮苍山远，天寒白屋 贫 | 柴门闻犬吠，风雪夜归 人 | 野火烧不尽，春风吹又 生 | 离离原上草，一岁一枯 荣
国破山河在，城春草木 深 | 感时花溅泪，恨别鸟惊 心 | 烽火连三月，家书抵万 金 | 白头搔更短，浑欲不胜 簪
海内存知己，天涯若比 邻 | 海上生明月，天涯共此 时 | 慈母手中线，游子身上 衣 | 谁言寸草心，报得三春 晖
解落三秋叶，能开二月 花 | 过江千尺浪，入竹万竿 斜 | 鹅鹅鹅，曲项向天 歌 | 白毛浮绿水，红掌拨清 波
好雨知时节，当春乃发 生 | 随风潜入夜，润物细无 声 | 墙角数枝梅，凌寒独自 开 | 遥知不是雪，为有暗香 来
朝辞白帝彩云间，千里江陵一日 还 | 两岸猿声啼不住，轻舟已过万重 山
故人西辞黄鹤楼，烟花三月下扬 州 | 孤帆远影碧空尽，唯见长江天际 流
清明时节雨纷纷，路上行人欲断 魂 | 借问酒家何处有，牧童遥指杏花 村
日照香炉生紫烟，遥看瀑布挂前 川 | 飞流直下三千尺，疑是银河落九 天
独在异乡为异客，每逢佳节倍思 亲 | 遥知兄弟登高处，遍插茱萸少一 人
黄河远上白云间，一片孤城万仞 山 | 羌笛何须怨杨柳，春风不度玉门 关
"""
_PARTS = """
日月明 木木林 女子好 人木休
田力男 小土尘 口鸟鸣 山石岩
火火炎 人人从 白水泉 立日音
古月胡 禾火秋 心亡忘 门口问
门人闪 门日间 手目看 羊大美
小大尖 不正歪 水少沙 火少炒
金十针 木寸村 土也地 水也池
口土吐 女马妈 日青晴 水青清
言青请 目青睛 虫青蜻 人言信
竹毛笔 宀女安 宀各客 广木床
"""


def common_knowledge(draw: Random) -> list[Item]:
    """Facts."""
    return _blocks("常识", [_pair(part.split()) for part in _parts(_FACTS)], draw)


def idioms(draw: Random) -> list[Item]:
    """The last hanzi of an idiom of four."""
    return _blocks("成语", [(idiom[:3], idiom[3]) for idiom in _IDIOMS.split()], draw)


def verses(draw: Random) -> list[Item]:
    """The last hanzi of two lines of verse."""
    return _blocks("古诗", [_pair(part.split()) for part in _parts(_VERSES)], draw)


def hanzi_parts(draw: Random) -> list[Item]:
    """The hanzi that is made of two others."""
    return _blocks("拆字", [(f"由“{a}”和“{b}”组成的字是“", whole) for a, b, whole in _PARTS.split()], draw)


def block(group: str, number: int, pairs: list[tuple[str, str]], draw: Random) -> list[Item]:
    """(question, its answer) of each → items that all have all answers as options, in one drawn order."""
    options = [answer for _, answer in pairs]
    draw.shuffle(options)
    name = f"{group}-{number}"
    return [Item(f"{name}-{n}", question, tuple(options), options.index(answer), group, name)
            for n, (question, answer) in enumerate(pairs)]  # fmt: skip


def _blocks(group: str, pairs: list[tuple[str, str]], draw: Random) -> list[Item]:
    """Four after four."""
    return [item for n in range(0, len(pairs), 4) for item in block(group, n // 4, pairs[n : n + 4], draw)]


def _parts(text: str) -> list[str]:
    return text.strip().replace("\n", "|").split("|")


def _pair(words: list[str]) -> tuple[str, str]:
    question, answer = words
    return question, answer
