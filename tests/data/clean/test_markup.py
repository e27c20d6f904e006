"""Tags, boilerplate and repeated lines go; code, addresses and text stay."""

from __future__ import annotations

import pytest

from babyllama.data.clean.markup import Boilerplate, Html, RepeatedLines


@pytest.mark.parametrize(("text", "expected"), [
    ("<p>第一段。</p><p class=\"a\">第二段，<b>粗</b>体。</p>", "\n第一段。\n\n第二段，粗体。\n"),
    ("甲<br/>乙&nbsp;丙&lt;丁&#39;", "甲\n乙 丙<丁'"),
    ("文<script type=\"x\">var a = '<p>';</script>字<!-- 注 --><style>p {}</style>", "文字"),
    ("<a href=\"http://x.cn/\">链接</a>和<IMG SRC=a.png>图", "链接和图"),
    ("1 < 2 且 a<b, b>c；vector<int>；<think>想</think>", "1 < 2 且 a<b, b>c；vector<int>；<think>想</think>"),
    ("见 https://x.cn/?a=1&copy=2&lt;3 与 AT&T; R&D", "见 https://x.cn/?a=1&copy=2&lt;3 与 AT&T; R&D"),
    ("用 `<br>` 换行：\n```html\n<p>&nbsp;</p>\n```\n<p>完", "用 `<br>` 换行：\n```html\n<p>&nbsp;</p>\n```\n\n完"),
])  # fmt: skip
def test_html(text: str, expected: str) -> None:
    assert Html()(text) == expected


GONE = """
版权所有 © 2020 某网
沪ICP备12345678号-1
上一篇：某文
责任编辑：张三
分享到微信
扫一扫 关注我们
登录 | 注册
首页 > 新闻 > 国内
来源：某某日报
点击查看更多精彩
未经授权不得转载
当前位置：首页
分享到的知识
"""  # the last one begins as a button does
STAYS = """
未经许可，任何单位和个人不得从事出版物批发、零售业务。
上一章我们介绍了卷积神经网络。
版权所有人享有下列权利。
来源于生活的故事很多。
作者认为，这一结论是对的。
相关文章很多，不一一列举。
首页设计很重要。
编辑是一种职业。
"""


def test_boilerplate() -> None:
    assert Boilerplate()(GONE.strip() + STAYS) == STAYS.strip()
    assert Boilerplate(longest=5)("来源：某某日报") == "来源：某某日报"


def test_repeated_lines_keep_the_first_and_code_and_refrains() -> None:
    line, refrain, code = "这一行说的话足够长，会被看作重复。", "归去来兮", "    return value_of(thing)"
    text = "\n".join([line, refrain, code, line + " ", refrain, code, "```", line, "```", line])
    assert RepeatedLines()(text) == "\n".join([line, refrain, code, refrain, code, "```", line, "```", ""]).rstrip("\n")
