"""Amounts as people write them: a number and its noun, large numbers, durations, sizes. The one place."""

from __future__ import annotations

_UNITS = ((1e3, "k"), (1e6, "M"), (1e9, "B"), (1e12, "T"))


def amount(number: int, noun: str, plural: str | None = None) -> str:
    """``1 row``, ``2,000 rows``; `plural` where it is not noun + s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def short(number: float) -> str:
    """2_940_000 → ``2.94 M``; below ten thousand every digit."""
    if number < 1e4:
        return f"{number:,.0f}"
    unit, name = next((u, n) for u, n in _UNITS if number < 999.5 * u or n == "T")
    return f"{number / unit:.3g} {name}"


def size(number: float) -> str:
    """Bytes → ``11.2 MiB``."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:.0f} B"


def duration(seconds: float) -> str:
    """Seconds, in two units at most: ``4.2 s``, ``40 s``, ``4 min 5 s``, ``2 h 5 min``, ``3 d 4 h``."""
    whole, minutes, hours = round(seconds), round(seconds / 60), round(seconds / 3600)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        large, small = f"{whole // 60} min", f"{whole % 60} s"
    elif minutes < 48 * 60:
        large, small = f"{minutes // 60} h", f"{minutes % 60} min"
    else:
        large, small = f"{hours // 24} d", f"{hours % 24} h"
    return large if small.startswith("0 ") else f"{large} {small}"
