"""Personal data: numbers of identity cards, phones and bank cards, e-mail addresses, plates of cars.

A number counts only if it could be a real one: an identity card by its province, date and check digit (GB 11643), a
bank card by its first digits, length and Luhn's check digit (ISO/IEC 7812). Decimals, addresses of pages and code in
backquotes are left alone. Names and street addresses are not found: no pattern tells them.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from babyllama.data.clean.filters import Drop, Filter
from babyllama.data.clean.markup import CODE, URL

Data = Literal["id_card", "bank_card", "phone", "email", "plate"]
MASKS: dict[str, str] = {
    "id_card": "[身份证号]", "bank_card": "[银行卡号]", "phone": "[电话号码]", "email": "[电子邮箱]",
    "plate": "[车牌号]",
}  # fmt: skip
_PROVINCE = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
_APART = r"(?<![A-Za-z0-9_.\-])(?<!\d[,:/])"  # what stands before a number that begins here
_CLOSED = r"(?![A-Za-z0-9_\-])(?!\.\d)"
_PATTERNS: dict[str, str] = {
    "url": URL,
    "email": r"(?<![A-Za-z0-9._%+\-/:@])[A-Za-z0-9][A-Za-z0-9._%+\-]{0,63}@"
             r"(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,62})\.)+[A-Za-z]{2,24}(?![A-Za-z0-9\-@])(?!:[\w/])",
    "id_card": rf"{_APART}[1-8]\d{{16}}[\dXx]{_CLOSED}",
    "bank_card": rf"{_APART}(?:\d{{4}}(?P<gap>[ \-]))(?:\d{{4}}(?P=gap)){{2,3}}\d{{1,4}}{_CLOSED}"
                 rf"|{_APART}\d{{15,19}}{_CLOSED}",
    "phone": rf"{_APART}(?:(?:\+|00)86[ \-]?)?1[3-9]\d(?:\d{{8}}|[ \-]\d{{4}}[ \-]\d{{4}}){_CLOSED}"
             rf"|{_APART}(?:\(0\d{{2,3}}\)|（0\d{{2,3}}）|0\d{{2,3}}[ \-])[ \-]?[2-8]\d{{6,7}}{_CLOSED}",
    "plate": rf"[{_PROVINCE}][A-HJ-NP-Z][ ·•.\-]?(?=[A-Z]{{0,2}}\d|\d)(?=(?:[A-Z]?\d[A-Z]?){{2,}})"
             r"(?:[DF][A-HJ-NP-Z0-9]\d{4}|\d{5}[DF]|[A-HJ-NP-Z0-9]{4}[A-HJ-NP-Z0-9挂学警港澳])(?![A-Za-z0-9])",
}  # fmt: skip
_ALL = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _PATTERNS.items()))
_HINTS = (re.compile("[@]"), re.compile(r"\d(?:\d{6}|\d\d[ \-]\d{4})"), re.compile(rf"[{_PROVINCE}][A-Z]"))
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_ISSUERS = re.compile(r"4|5[1-5]|2[2-7]|3[4578]|6[0-9]|9[0-9]|1000|8[0-9]")


def is_id_card(number: str) -> bool:
    """Whether 18 characters are the number of an identity card: province, date of birth, check digit."""
    if len(number) != 18 or not number[:17].isdecimal() or not 11 <= int(number[:2]) <= 82:
        return False
    year, month, day = int(number[6:10]), int(number[10:12]), int(number[12:14])
    if not (1880 <= year <= 2100 and 1 <= month <= 12 and 1 <= day <= _DAYS[month - 1]):
        return False
    total = sum(int(digit) * weight for digit, weight in zip(number, _WEIGHTS, strict=False))
    return "10X98765432"[total % 11] == number[17].upper()


def is_bank_card(number: str) -> bool:
    """Whether digits are the number of a bank card: 15 to 19 of them, an issuer's first ones, Luhn's check digit."""
    if not 15 <= len(number) <= 19 or not _ISSUERS.match(number) or len(set(number)) < 4:
        return False
    digits = [int(digit) for digit in reversed(number)]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return (sum(digits[::2]) + doubled) % 10 == 0


class Personal(Filter):
    """Personal data masked by a word in brackets, or the document left out.

    The audit and the manifest never show what was found: their samples are masked too.
    """

    kind: Literal["personal"] = "personal"
    chats: ClassVar[bool] = True
    data: tuple[Data, ...] = Field(
        default=("id_card", "bank_card", "phone", "email", "plate"), min_length=1, description="what is looked for"
    )
    action: Literal["mask", "drop"] = Field(
        default="mask", description="a word in brackets instead, or no such document"
    )

    def __call__(self, text: str) -> str | Drop:
        lines = _hinted(text)
        if not lines:
            return text
        code = [match.span() for match in CODE.finditer(text)] if "`" in text or "~~~" in text else []
        found, end = [], 0
        for match in (match for start, stop in lines for match in _ALL.finditer(text, start, stop)):
            kind = self._kind(match)
            if kind is None or any(start <= match.start() < stop for start, stop in code):
                continue
            if self.action == "drop":
                return Drop(kind)
            found += [text[end : match.start()], MASKS[kind]]
            end = match.end()
        return "".join([*found, text[end:]]) if found else text

    def _kind(self, match: re.Match[str]) -> str | None:
        kind = match.lastgroup
        number = match[0].replace(" ", "").replace("-", "")
        if kind in ("id_card", "bank_card"):
            kind = "id_card" if is_id_card(number) else "bank_card" if is_bank_card(number) else None
        return kind if kind in self.data else None


def _hinted(text: str) -> list[tuple[int, int]]:
    """Begin and end of the lines that may hold something, in order: most texts have none, and a look is cheap."""
    lines: set[tuple[int, int]] = set()
    for hint in _HINTS:
        position = 0
        while (match := hint.search(text, position)) is not None:
            stop = text.find("\n", match.end())
            stop = len(text) if stop < 0 else stop
            lines.add((text.rfind("\n", 0, match.start()) + 1, stop))
            position = stop
    return sorted(lines)
