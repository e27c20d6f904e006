"""When an answer is right: for tests of a model and for rewards alike. Not here: who asks (evals/, train/rl/)."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from functools import lru_cache

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def exact(said: str, wanted: str) -> bool:
    """Equal but for white space at the ends."""
    return said.strip() == wanted.strip()


@lru_cache(maxsize=1024)  # a reference is asked for once for each answer to its prompt
def last_number(text: str) -> str:
    """The last number of a text in its shortest form, full-width digits and all; "" where there is none."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text))
    return str(Decimal(found[-1].replace(",", "")).normalize() + 0) if found else ""
