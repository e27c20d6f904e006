"""Parquet files → blobs of JSON lines, by the columns' bytes: a text is not decoded only to be encoded again.

A batch of rows becomes one string of bytes with stand-ins for the quotation marks, backslashes and line ends that are
JSON's own; then what is in the texts is escaped, all at once, and the stand-ins become what they stand for. They are
bytes that UTF-8 does not have. Not here: what the rows mean (records.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from babyllama.data.sources.blobs import BLOB_BYTES, Blob, json_of
from babyllama.data.sources.zips import File, Member
from babyllama.errors import InputError, needs_extra

_QUOTE, _BACKSLASH, _END = b"\xff", b"\xfe", b"\xfd"
_OWN = {_QUOTE: b'"', _BACKSLASH: b"\\", _END: b"\n"}
_HIDE = bytes.maketrans(b'"\\', _QUOTE + _BACKSLASH)
_COMMON = {b"\\": b"\\\\", b'"': b'\\"', b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}
_RARE = {bytes([code]): json.dumps(chr(code))[1:-1].encode() for code in range(32)}
_BATCH_ROWS, _BATCH_BYTES = 1024, 1 << 20  # at a time: what a core's cache holds


def read_parquet(path: File, blob_bytes: int = BLOB_BYTES, encoding: str = "utf-8") -> Iterator[Blob]:
    """All rows, each a line. `encoding` is not used: a Parquet file says itself what is text.

    Raises:
        InputError: damaged, in an archive, a column that is there twice; pyarrow is missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise needs_extra("pyarrow", "data") from None
    if isinstance(path, Member):
        raise InputError(f"{path}: a Parquet file in an archive; unpack it and give its files")
    lines, size, row, done = list[bytes](), path.stat().st_size, 0, 0
    try:
        file = pyarrow.parquet.ParquetFile(path if isinstance(path, Path) else path.open())
        rows = max(file.metadata.num_rows, 1)
        check_columns(str(path), file.schema_arrow.names)
        unpacked = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        at_once = max(min(_BATCH_BYTES * rows // max(unpacked, 1), _BATCH_ROWS), 1)
        for batch in file.iter_batches(batch_size=at_once, use_threads=False):
            lines.append(_lines(batch))
            row += len(batch)
            if sum(map(len, lines)) >= blob_bytes:
                yield Blob(f"{path}, row ", done + 1, b"".join(lines), size * row // rows)
                lines, done = [], row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: damaged or no Parquet file ({reason}); fetch it again") from None
    if lines:
        yield Blob(f"{path}, row ", done + 1, b"".join(lines), size)


def check_columns(where: str, names: list[str]) -> None:
    """Raises InputError: a column is there twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{where}: the column {twice[0]!r} is there twice; rename one of them")


def _lines(batch: Any) -> bytes:
    """A JSON object of each row, with a line end."""
    import numpy as np

    parts, before = list[Any](), b"{"
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        parts += [before + _QUOTE + name.encode() + _QUOTE + b":", _values(column)]
        before = b","
    data = _joined(*parts, b"}" + _END).buffers()[2].to_pybytes() if len(batch) and parts else b""
    for own, escaped in _COMMON.items():
        data = data.replace(own, escaped)
    if data and np.frombuffer(data, np.uint8).min() < 32:
        for own, escaped in _RARE.items():
            data = data.replace(own, escaped)
    for stand_in, own in _OWN.items():
        data = data.replace(stand_in, own)
    return data


def _values(column: Any) -> Any:
    """The JSON of each value, as an Arrow array of bytes, with stand-ins."""
    import numpy as np
    from pyarrow import array, large_binary, types

    tests = types.is_string, types.is_large_string, types.is_binary, types.is_large_binary
    if any(test(column.type) for test in tests):
        column = column.cast(large_binary())
        data = np.frombuffer(column.buffers()[2] or b"", np.uint8)
        if not len(data) or data.max() < _END[0]:  # else some bytes are no text
            quoted = _joined(_QUOTE, column, _QUOTE)
            return quoted.fill_null(b"null") if column.null_count else quoted
    return array([json_of(value).translate(_HIDE) for value in column.to_pylist()], large_binary())


def _joined(*parts: Any) -> Any:
    """Arrays of bytes row by row, and between them the same bytes in each row."""
    from pyarrow import compute, large_binary, scalar

    binary = large_binary()
    between = [scalar(part, binary) if isinstance(part, bytes) else part for part in (*parts, b"")]
    return compute.call_function("binary_join_element_wise", between)
