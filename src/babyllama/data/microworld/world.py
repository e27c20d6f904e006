"""Who and what there is in the micro-world: people, places, things with their measure words, days."""

from __future__ import annotations

BOYS = ("小明", "小刚", "小军", "小强", "小龙", "小东", "小华", "小虎")
GIRLS = ("小红", "小丽", "小芳", "小兰", "小雪", "小梅", "小云", "小燕")
CHILDREN = BOYS + GIRLS
MEN = ("大伟", "建国", "志强", "文军", "海波", "永平")
WOMEN = ("秀英", "桂香", "玉珍", "春花", "淑芬", "月琴")
COMPANIONS = ("爸爸", "妈妈", "爷爷", "奶奶", "哥哥", "姐姐", "同学", "老师")

ROOMS = ("厨房", "客厅", "卧室", "花园", "教室", "操场", "图书馆", "商店", "公园", "医院", "车站", "河边")
# What can be carried, with its measure word
THINGS = {
    "书": "本", "铅笔": "支", "雨伞": "把", "皮球": "个", "杯子": "个", "帽子": "顶", "钥匙": "把", "信": "封",
    "苹果": "个", "风筝": "只", "手表": "块", "地图": "张",
}  # fmt: skip
# What can be counted, with its measure word: the word is to be learned, not what the thing does
COUNTED = {
    **THINGS, "桌子": "张", "椅子": "把", "床": "张", "纸": "张", "画": "幅", "花": "朵", "树": "棵", "草": "棵",
    "山": "座", "桥": "座", "楼": "座", "河": "条", "鱼": "条", "路": "条", "裤子": "条", "毛巾": "条", "狗": "只",
    "猫": "只", "鸟": "只", "鸡": "只", "马": "匹", "牛": "头", "猪": "头", "车": "辆", "船": "条", "飞机": "架",
    "衣服": "件", "鞋": "双", "筷子": "双", "灯": "盏", "水井": "口", "米饭": "碗", "茶": "杯", "字典": "本",
}  # fmt: skip
FRUIT = ("苹果", "桃子", "橘子", "糖果", "鸡蛋", "玻璃球", "贴纸", "核桃")

WEEKDAYS = tuple(f"星期{day}" for day in "一二三四五六日")
MONTHS = tuple(f"{number}月" for number in range(1, 13))
HOURS = tuple(f"{number}点" for number in range(1, 13))
TIMES = ("早上", "上午", "中午", "下午", "傍晚", "晚上")
COLOURS = ("红色", "黄色", "蓝色", "绿色", "白色", "黑色")
WEATHER = ("晴天", "阴天", "雨天", "雪天")
