"""Personal data: planted with valid check digits among numbers that only look like them."""

from __future__ import annotations

import random

from babyllama.data.clean.filters import Drop
from babyllama.data.clean.personal import MASKS, Personal, is_bank_card, is_id_card


def id_card(rng: random.Random) -> str:
    """By GB 11643, written apart from the filter: the check digit makes Σ aᵢ·2^(18 − i) ≡ 1 (mod 11)."""
    date = f"{rng.randint(1940, 2015)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}"
    body = f"{rng.choice(['110101', '310115', '440305', '510107', '650102'])}{date}{rng.randint(0, 999):03}"
    total = sum(int(digit) << (17 - i) for i, digit in enumerate(body))
    return next(body + c for value, c in enumerate("0123456789X") if (total + value) % 11 == 1)


def luhn(number: str) -> bool:
    """From left to right, by the digits of the doubled ones."""
    doubled = (str(int(digit) * (1 + (i + len(number) - 1) % 2)) for i, digit in enumerate(number))
    return sum(map(int, "".join(doubled))) % 10 == 0


def bank_card(rng: random.Random) -> str:
    body = rng.choice(["622202", "621700", "4392", "5187"]) + "".join(rng.choice("0123456789") for _ in range(30))
    body = body[: rng.choice([15, 18])]
    return next(body + c for c in "0123456789" if luhn(body + c))


def planted(rng: random.Random) -> tuple[str, str]:
    digits = "".join(rng.choice("0123456789") for _ in range(8))
    letters, card = rng.sample("ABCDEFGHJKLMNPQRSTUVWXYZ", 3), bank_card(rng)
    return rng.choice([
        ("id_card", id_card(rng)), ("bank_card", card),
        ("bank_card", " ".join(card[i : i + 4] for i in range(0, len(card), 4))),
        ("phone", f"1{rng.choice('3456789')}{rng.choice('0123456789')}{digits}"),
        ("phone", f"+86 13{rng.choice('0123456789')}-{digits[:4]}-{digits[4:]}"),
        ("phone", f"010-6{digits[:7]}"), ("phone", f"(0571)8{digits[:7]}"),
        ("email", f"{''.join(letters).lower()}.{digits[:3]}@mail-{digits[3]}.example.com.cn"),
        ("plate", f"京{letters[0]}{digits[:5]}"), ("plate", f"粤{letters[0]}·{letters[1]}{digits[:4]}"),
        ("plate", f"沪{letters[0]}D{digits[:5]}"),
    ])  # fmt: skip


HARMLESS = """
圆周率是3.14159265358979323846264338327950288。
订单号20231105123456789不是卡号。
见 https://x.cn/13812345678/a@b.com 。
人口14亿，即1400000000人。
2024-01-15 12:30:45 发布
ISBN 978-7-302-51162-5
版本 138.1234.5678
京A的车多
新CPU的性能
京东A轮融资
提交 3f13812345678ab
0.13912345678
`13812345678`
git@github.com:me/it.git
@某人 你好
110101199013011234
QQ群 123456789
川G20峰会
6222021234567890123
""".strip().split("\n")


def test_planted_data_is_found_and_nothing_else() -> None:
    rng, mask = random.Random(7), Personal()
    found = wrong = 0
    for _ in range(1000):
        kind, value = planted(rng)
        before, after = rng.choice([("联系", "，谢谢"), ("号码：", "。"), ("（", "）"), ("", ""), ("她的", "是真的")])
        found += mask(before + value + after) == before + MASKS[kind] + after
    harmless = [text for text in HARMLESS for _ in range(5)]
    wrong = sum(mask(text) != text for text in harmless)
    assert found >= 950, found
    assert not wrong, [text for text in HARMLESS if mask(text) != text]


def test_check_digits() -> None:
    rng = random.Random(1)
    card, bank = id_card(rng), bank_card(rng)
    assert is_id_card(card) and is_bank_card(bank)
    assert sum(is_id_card(card[:17] + c) for c in "0123456789X") == 1
    assert sum(is_bank_card(bank[:-1] + c) for c in "0123456789") == 1
    assert is_id_card("11010519491231002X") and not is_id_card("11010519491331002X")  # the standard's own example


def test_drop_and_choice() -> None:
    text = "电话13812345678，邮箱a@b.cn"
    assert Personal(action="drop")(text) == Drop("phone")
    assert Personal(data=("email",))(text) == "电话13812345678，邮箱[电子邮箱]"
    assert Personal(data=("email",), action="drop")("电话13812345678") == "电话13812345678"
