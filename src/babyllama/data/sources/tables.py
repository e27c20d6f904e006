"""Tables in text files → their rows by the names of the columns.

The first row names the columns and tells what parts them: a comma in a .csv file and a tab in a .tsv file, unless the
names are parted by another of comma, semicolon and tab only. Excel writes semicolons where the comma is the decimal
sign, and tabs into its Unicode text; a line ``sep=;`` before the names, which it reads itself, decides. Guessing by
what is in the rows would fail on texts full of commas. Not here: lines and encodings (files.py).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain

from babyllama.data.sources.files import LINE_BYTES, Lines, Unreadable
from babyllama.data.sources.parquet import check_columns
from babyllama.data.sources.zips import File
from babyllama.errors import InputError

_DELIMITERS = (",", ";", "\t")
_OTHERS = "，；、｜|"  # which people write between names, and which part nothing here
_SEP = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_LONG = 100  # characters; what is longer names no column


def read_rows(path: File, lines: Lines, usual: str) -> Iterator[dict[str, str] | Unreadable]:
    """Every row but the first, which has the names. A row with other than its number of cells cannot be read.

    Args:
        usual: what parts the columns of files that are named so.

    Raises:
        InputError: no names in the first row, or one twice; a quotation without an end.
    """
    csv.field_size_limit(LINE_BYTES)
    texts = iter(lines)
    head = next((text for text in texts if text.strip()), "")
    if said := _SEP.fullmatch(head):
        head = next(texts, "")
    delimiter = said[1] if said else _delimiter(head, usual)
    rows = csv.reader(chain([head], texts), delimiter=delimiter, strict=True)
    names, first = list[str](), lines.number
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            if "unexpected end" in str(error):  # what follows the quotation mark is lost, so it is the file's fault
                raise InputError(f"{path}:{first}: a quotation that begins here does not end; mend it") from None
            lone = "new-line character" in str(error)
            reason = (
                "a line end of old Macs (CR) stands in it; save it with those of Windows or Unix" if lone else error
            )
            row = Unreadable(f"line {first}: not valid CSV: {reason}")
        if row is None:
            return
        bad = lines.bad()
        if isinstance(row, list) and bad:
            row = Unreadable(bad)
        if not names:
            if isinstance(row, Unreadable):
                raise InputError(f"{path}: {row.reason}")
            names = _names(f"{path}:{first}", row)
        elif isinstance(row, Unreadable):
            yield row
        elif row and (fault := _fault(row, len(names))):
            yield Unreadable(f"line {first}: {fault}")
        elif row:
            yield dict(zip(names, row, strict=False))
        first = lines.number + 1


def _delimiter(head: str, usual: str) -> str:
    """The first that parts the names: the usual one, or another."""
    line = head.splitlines()[:1]
    return next((d for d in (usual, *_DELIMITERS) if len(next(csv.reader(line, delimiter=d), [])) > 1), usual)


def _names(where: str, row: list[str]) -> list[str]:
    """Of the columns; one without a name is called by its number, but for the first, which often numbers the rows."""
    names = [name.strip() or (f"column {i}" if i > 1 else "") for i, name in enumerate(row, 1)]
    wanted = "the first row must name the columns, such as question,answer (or 问题,答案)"
    if long := next((name for name in names if len(name) > _LONG or "\n" in name), None):
        raise InputError(f"{where}: {wanted}, but holds a text: {long.splitlines()[0]:.40}…")
    if len(names) == 1 and (other := next((sign for sign in _OTHERS if sign in names[0]), None)):
        raise InputError(f"{where}: {wanted}; here {other} stands between them: write commas, semicolons or tabs, and "
                         "put texts that hold such a sign in quotation marks")  # fmt: skip
    check_columns(where, names)
    return names


def _fault(row: list[str], names: int) -> str:
    """What is wrong with the number of cells; empty ones after the last name are what Excel leaves behind."""
    if len(row) < names or any(row[names:]):
        hint = "; a text that holds what parts the columns belongs in quotation marks" if len(row) > names else ""
        return f"{len(row)} fields, but the header has {names}{hint}"
    return ""
