"""Filters for what web pages leave in a text: tags and entities, lines that are not the page's text, repeated lines.

What stands in Markdown's code (``` or `) and in addresses is left as it is by all of them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from babyllama.data.clean.filters import Filter

URL = r"(?:https?|ftp)://[^\s<>\"'，。；、！？（）《》「」“”]+|www\.[^\s<>\"'，。；、！？（）《》「」“”]+"
_CODE = r"^(?P<fence>```+|~~~+).*?(?:^(?P=fence)|\Z)|`[^`\n]+`"
CODE = re.compile(_CODE, re.MULTILINE | re.DOTALL)
KEPT = re.compile(f"{_CODE}|{URL}", re.MULTILINE | re.DOTALL)


def outside(text: str, kept: re.Pattern[str], change: Callable[[str], str]) -> str:
    """`change` of every stretch between the matches of `kept`, which stay as they are."""
    found, end = [], 0
    for match in kept.finditer(text):
        found += [change(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*found, change(text[end:])])


_BLOCKS = (
    "address|article|aside|blockquote|br|caption|dd|div|dl|dt|fieldset|figcaption|figure|footer|form|"
    "h[1-6]|header|hr|li|main|nav|ol|p|pre|section|table|tbody|td|tfoot|th|thead|tr|ul"
)
_WORDS = (
    "abbr|big|body|button|center|cite|code|col|colgroup|del|em|embed|font|head|html|iframe|img|input|ins|"
    "kbd|label|link|mark|meta|noscript|object|option|param|samp|script|select|small|source|span|strike|"
    "strong|style|sub|sup|textarea|title|tt|var|video"
)
_VALUES = r"(?:\s+[\w:-]+\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>]+))"
_HIDDEN = re.compile(
    r"<(script|style|noscript|iframe)\b[^>]*>.*?</\1\s*>|<!--.*?-->|<!DOCTYPE[^>]*>", re.DOTALL | re.IGNORECASE
)
_BLOCK = re.compile(rf"</?(?:{_BLOCKS}){_VALUES}*\s*/?>", re.IGNORECASE)
_WORD = re.compile(rf"</?(?:{_WORDS}){_VALUES}*\s*/?>", re.IGNORECASE)
_LETTER = re.compile(rf"<([abiqsu]){_VALUES}+\s*>|</[abiqsu]>|<([biqsu])>(?=[^<]*</\2>)", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,30}|#\d{1,7}|#[xX][0-9A-Fa-f]{1,6});")
_MARKED = re.compile(r"<[/!A-Za-z]|&[#A-Za-z]")


class Html(Filter):
    """Tags and entities of HTML out; what scripts, styles and comments hold goes with them.

    Only names that HTML has, with attributes that have values, count as tags, so ``vector<int>``, ``a < b`` and
    ``<think>`` stay. An entity needs its semicolon. A tag that ends a block becomes a line's end.
    """

    kind: Literal["html"] = "html"

    def __call__(self, text: str) -> str:
        return outside(outside(text, CODE, _untagged), KEPT, _decoded) if _MARKED.search(text) else text


def _untagged(text: str) -> str:
    if "<" not in text:
        return text
    new = _WORD.sub("", _BLOCK.sub("\n", _LETTER.sub("", _HIDDEN.sub("", text))))
    if new != text:  # where tags were, blanks are only the page's layout
        new = re.sub(r"[ \t]*\n(?:[ \t]*\n)+", "\n\n", new)
    return new


def _decoded(text: str) -> str:
    return _ENTITY.sub(lambda found: html.unescape(found[0]).replace("\xa0", " "), text) if "&" in text else text


_BOILERPLATE = re.compile(
    r"""^[\s·|>»\-—【\[（(]*(?:
    (?:版权所有(?=[\s:：©（(]|$)|(?:版权|免责)声明\s*[:：]|Copyright\b|©|All\ Rights\ Reserved
     |.{0,12}ICP(?:备|证)\s*\d|.{0,4}公网安备)
    |(?:[上下]一[篇页章]|返回(?:首页|顶部|目录|列表)|(?:阅读|查看)(?:全文|原文|更多)|展开全文|加载更多)
     (?=\s|[:：|】\]）)>»]|$)
    |(?:相关(?:阅读|推荐|文章|新闻|链接)|推荐阅读|延伸阅读|热门(?:推荐|文章|标签))\s*(?:[:：】\]]|$)
    |(?:点击(?:查看|阅读|下载|进入|这里|此处|收藏|上方|下方|蓝字)|扫一扫|扫描(?:下方|上方)?二维码|长按(?:二维码|识别)
     |(?:欢迎)?关注(?:我们|微信|公众号|本站)|微信(?:公众号|扫码)|分享(?:到|至)|新浪微博分享)[^。]*$
    |(?:责任编辑|责编|编辑|来源|文章来源|稿源|原标题|本文来源|作者|发布时间|浏览次数|阅读次数|阅读量|点击数|字号)\s*[:：][^。]{0,40}$
    |(?:当前位置|您(?:现在|当前)?的位置)\s*[:：]
    |(?:登录|注册|登陆)(?:\s*[|/·]?\s*(?:登录|注册|登陆|首页|收藏|帮助))*\s*$
    |(?:如需转载|转载请|未经.{0,15}(?:不得|禁止|严禁).{0,8}(?:转载|复制|摘编|镜像|抄袭)|本文为.{0,12}原创|侵权(?:必究|请联系)
     |举报(?:电话|邮箱|投诉)|客服(?:电话|热线|QQ))
    |(?:首页|网站首页)(?:\s*[|>»·/\-]\s*\S{1,10})+\s*$
    )""",
    re.VERBOSE | re.IGNORECASE,
)


class Boilerplate(Filter):
    """Short lines that belong to a page and not to its text: copyright, navigation, sharing, credits.

    Told by how they begin, in Chinese. C4's rule (keep only lines that end in punctuation, arXiv 1910.10683) is not
    used: it would take titles, verses and tables along.
    """

    kind: Literal["boilerplate"] = "boilerplate"
    longest: int = Field(default=80, ge=1, description="lines of more characters are text, whatever they begin with")

    def __call__(self, text: str) -> str:
        lines = text.split("\n")
        kept = [line for line in lines if len(line) > self.longest or not _BOILERPLATE.match(line)]
        return text if len(kept) == len(lines) else "\n".join(kept).strip("\n")


class RepeatedLines(Filter):
    """A line that a document has said before, out. Lines without hanzi (code) and short ones (refrains) stay."""

    kind: Literal["repeated_lines"] = "repeated_lines"
    at_least: int = Field(default=12, ge=1, description="characters; shorter lines may repeat")

    def __call__(self, text: str) -> str:
        if text.count("\n") == 0:
            return text
        return self._once(text) if "```" not in text and "~~~" not in text else self._outside_code(text)

    def _outside_code(self, text: str) -> str:
        seen: set[str] = set()
        return outside(text, KEPT, lambda part: self._once(part, seen))

    def _once(self, text: str, seen: set[str] | None = None) -> str:
        seen, kept, lines = set() if seen is None else seen, [], text.split("\n")
        for line in lines:
            said = line.strip()
            if len(said) >= self.at_least and _HANZI.search(said):
                if said in seen:
                    continue
                seen.add(said)
            kept.append(line)
        return text if len(kept) == len(lines) else "\n".join(kept)


_HANZI = re.compile("[\u3400-\u9fff]")
