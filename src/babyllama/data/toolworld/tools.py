"""Tools as pure functions: a calculator, a calendar, a table of a made-up world, its weather, units.

A call gets a text back, also where it cannot be answered: then the text says why. The same call always gets the same.
Not here: questions that need them (questions.py), models that call them (train/rl/agents.py, serve/).
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from fractions import Fraction
from typing import Any, NamedTuple

import xxhash

CITIES = ("云川", "石桥", "青浦", "白河", "东岭", "南屿", "柳城", "望海", "金沙", "梅岭", "清泉", "北岗", "松原",
          "红湖", "双溪", "平湖")  # fmt: skip
PROPERTIES = {"人口": ("万", 12, 900), "面积": ("平方千米", 150, 9000), "海拔": ("米", 5, 3200),
              "距离": ("千米", 20, 1500)}  # fmt: skip
SKIES = ("晴", "多云", "阴", "小雨", "大雨", "雪")
WEEKDAYS = tuple(f"星期{day}" for day in "一二三四五六日")
_LENGTH, _WEIGHT, _TIME = "长度", "重量", "时间"
UNITS: dict[str, tuple[str, Fraction]] = {
    "千米": (_LENGTH, Fraction(1000)), "米": (_LENGTH, Fraction(1)), "厘米": (_LENGTH, Fraction(1, 100)),
    "里": (_LENGTH, Fraction(500)), "吨": (_WEIGHT, Fraction(1000)), "千克": (_WEIGHT, Fraction(1)),
    "克": (_WEIGHT, Fraction(1, 1000)), "斤": (_WEIGHT, Fraction(1, 2)), "天": (_TIME, Fraction(1440)),
    "小时": (_TIME, Fraction(60)), "分钟": (_TIME, Fraction(1)),
}  # fmt: skip
_OPERATIONS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
LONGEST, LARGEST = 60, 10**15  # characters of an expression; digits that a number may come to


class Unanswerable(ValueError):
    """Why a call has no answer, in words for the model."""


@dataclass(frozen=True)
class Tool:
    """`parameters`: name → (JSON type, what it is); all are required."""

    name: str
    about: str
    parameters: Mapping[str, tuple[str, str]]
    run: Callable[..., str]

    @property
    def spec(self) -> dict[str, Any]:
        """In OpenAI's form."""
        properties = {name: {"type": kind, "description": about} for name, (kind, about) in self.parameters.items()}
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        return {"type": "function", "function": {"name": self.name, "description": self.about, "parameters": schema}}


class Result(NamedTuple):
    """What a call gets back; `good`: it could be answered."""

    text: str
    good: bool


def call(name: str, arguments: Any, offered: Collection[str]) -> Result:
    """The answer to one call; of a tool that is not `offered`, or with other arguments than it takes, why not."""
    if name not in offered or name not in TOOLS:
        return Result(f"错误：没有工具 {name}", False)
    tool = TOOLS[name]
    if not isinstance(arguments, dict) or arguments.keys() != tool.parameters.keys():
        return Result(f"错误：参数应为 {'、'.join(tool.parameters)}", False)
    try:
        return Result(tool.run(**{key: _typed(key, arguments[key], tool) for key in arguments}), True)
    except Unanswerable as error:
        return Result(f"错误：{error}", False)


def _typed(key: str, value: Any, tool: Tool) -> Any:
    kind = tool.parameters[key][0]
    wanted = {"string": str, "integer": int, "number": (int, float)}[kind]
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise Unanswerable(f"{key} 应为 {kind}")
    return value


# ── what they do ───────────────────────────────────────────────────────────────────────────────────────────────────
def shown(value: Fraction) -> str:
    """A whole number, or up to four decimals."""
    if abs(value) > LARGEST:
        raise Unanswerable("数太大")
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.4f}".rstrip("0").rstrip(".")


def _calculated(expression: str) -> str:
    if len(expression) > LONGEST:
        raise Unanswerable("算式太长")
    try:
        return shown(_value(ast.parse(expression.strip(), mode="eval").body))
    except ZeroDivisionError:
        raise Unanswerable("除数为零") from None
    except (SyntaxError, RecursionError, MemoryError, KeyError, ValueError) as error:
        raise Unanswerable(str(error) if isinstance(error, Unanswerable) else "算式有误") from None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp):
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    raise Unanswerable("算式有误")


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise Unanswerable("日期应为 YYYY-MM-DD") from None


def _later(day: str, days: int) -> str:
    try:
        found = _day(day) + timedelta(days)
    except OverflowError:
        raise Unanswerable("天数太大") from None
    return f"{found.isoformat()} {WEEKDAYS[found.weekday()]}"


def _drawn(*parts: object) -> int:
    return xxhash.xxh3_64_intdigest(repr(parts).encode())


def _city(name: str) -> str:
    if name not in CITIES:
        raise Unanswerable(f"没有城市 {name:.8}")
    return name


def _looked_up(city: str, item: str) -> str:
    if item not in PROPERTIES:
        raise Unanswerable(f"只有{'、'.join(PROPERTIES)}")
    unit, low, high = PROPERTIES[item]
    return f"{low + _drawn(_city(city), item) % (high - low)}{unit}"


def _weather(city: str, day: str) -> str:
    draw = _drawn("天气", _city(city), _day(day).isoformat())
    return f"{SKIES[draw % len(SKIES)]}，{draw // 8 % 45 - 8}度"


def _converted(value: float, source: str, target: str) -> str:
    for unit in (source, target):
        if unit not in UNITS:
            raise Unanswerable(f"没有单位 {unit:.8}")
    (kind, by), (other, into) = UNITS[source], UNITS[target]
    if kind != other:
        raise Unanswerable(f"{source} 不能换成 {target}")
    return shown(Fraction(str(value)) * by / into) + target


_TEXT = "string"
_DAY, _CITY = (_TEXT, "YYYY-MM-DD"), (_TEXT, "城市")
TOOLS: dict[str, Tool] = {tool.name: tool for tool in (
    Tool("calculator", "计算算式", {"expression": (_TEXT, "算式，如 3*(4+5)")}, _calculated),
    Tool("calendar", "若干天后的日期与星期", {"day": _DAY, "days": ("integer", "天数，可为负")}, _later),
    Tool("city_facts", "城市资料", {"city": _CITY, "item": (_TEXT, "、".join(PROPERTIES))}, _looked_up),
    Tool("weather", "某城某日的天气", {"city": _CITY, "day": _DAY}, _weather),
    Tool("convert", "单位换算", {"value": ("number", "数值"), "source": (_TEXT, "原单位"), "target": (_TEXT, "新单位")},
         _converted),
)}  # fmt: skip
