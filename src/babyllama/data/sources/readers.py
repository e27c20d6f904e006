"""Files of any supported format → blobs of JSON lines, in flat memory.

    .jsonl .ndjson       one JSON object a line                      plain, .gz or .zst; passed on untouched
    .json                the same, or one array of objects           plain, .gz or .zst
    .parquet             one row a document                          needs babyllama[data]
    .csv .tsv            a header, one row a document                plain, .gz or .zst
    .txt                 one document, cut at line ends              plain, .gz or .zst

A .txt file is taken as one long text such as a novel, whose blank lines part paragraphs; ``format: lines`` makes every
line a document and ``format: blocks`` every run of lines between blank lines. All text is UTF-8, with or without a byte
order mark. Not here: what the objects mean (records.py), which files there are (corpora.py).
"""

from __future__ import annotations

import codecs
import csv
import glob
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from babyllama.data.sources.files import COMPRESSED, LINE_BYTES, Bytes, not_utf8
from babyllama.errors import InputError, needs_extra

BLOB_BYTES = 16 << 20
_PIECE_BYTES = 64 << 10  # a .txt file is cut at the first line end after so many bytes

Format = Literal["auto", "jsonl", "json", "parquet", "csv", "tsv", "txt", "lines", "blocks"]
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "tsv",
    ".txt": "txt",
}  # fmt: skip


@dataclass(frozen=True)
class Blob:
    """Whole JSON lines, undecoded. `where` + a line's number names it: ``a.jsonl:7`` or ``a.json, record 7``.

    `first` is the number of the blob's first line.
    `position` counts the source's bytes on disk that were read when the blob was complete.
    """

    where: str
    first: int
    lines: bytes
    position: int


def find_files(path: str) -> list[Path]:
    """A file, every corpus file below a folder, or the matches of a glob, sorted. Raises InputError if none."""
    given = Path(path).expanduser()
    if given.is_file():
        return [given]
    if given.is_dir():
        found = sorted(p for p in given.rglob("*") if p.is_file() and _suffix(p) in _SUFFIXES)
        wanted = " ".join(_SUFFIXES)
        if not found:
            raise InputError(f"{path}: no corpus file in this folder; known are {wanted}, plain, .gz or .zst")
        return found
    matches = glob.glob(str(given), recursive=True)  # noqa: PTH207  Path.glob takes no absolute pattern
    found = sorted(p for p in map(Path, matches) if p.is_file())
    if not found:
        raise InputError(f"{path}: no such file or folder, and nothing matches it as a pattern")
    return found


def read_blobs(files: Iterable[Path], format: Format = "auto", blob_bytes: int = BLOB_BYTES) -> Iterator[Blob]:
    """All files in order. Raises InputError with file:line for what cannot be read."""
    before = 0
    for path in files:
        for blob in _READERS[_format_of(path, format)](path, blob_bytes):
            yield Blob(blob.where, blob.first, blob.lines, before + blob.position)
        before += path.stat().st_size


def pack_records(
    records: Iterable[Any], where: str, blob_bytes: int = BLOB_BYTES, position: Callable[[], int] = lambda: 0
) -> Iterator[Blob]:
    """Objects already read → blobs; their line numbers are record numbers."""
    lines, size, first, number = [], 0, 1, 0
    for number, record in enumerate(records, start=1):
        lines.append(json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
        size += len(lines[-1]) + 1
        if size >= blob_bytes:
            yield Blob(where, first, b"\n".join(lines) + b"\n", position())
            lines, size, first = [], 0, number + 1
    if lines:
        yield Blob(where, first, b"\n".join(lines) + b"\n", position())


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix.lower()


def _format_of(path: Path, format: Format) -> Format:
    found = _SUFFIXES.get(_suffix(path)) if format == "auto" else format
    if found is None:
        known = ", ".join(name for name in Format.__args__ if name != "auto")
        raise InputError(f"{path}: the name does not tell the format; say format: one of {known}")
    if found == "json":
        with Bytes(path) as handle:
            head = handle.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
        return "json" if head.startswith(b"[") else "jsonl"
    return found


def _json_lines(path: Path, blob_bytes: int) -> Iterator[Blob]:
    with Bytes(path) as handle:
        first = 1
        while chunk := handle.read(blob_bytes):
            if not chunk.endswith(b"\n"):
                rest = handle.readline()
                if len(rest) == LINE_BYTES:
                    line = first + chunk.count(b"\n")
                    raise InputError(f"{path}:{line}: longer than {LINE_BYTES >> 20} MiB; this is no JSON lines file")
                chunk += rest
            yield Blob(f"{path}:", first, chunk.removeprefix(codecs.BOM_UTF8) if first == 1 else chunk, handle.tell())
            first += chunk.count(b"\n")


def _json_array(path: Path, blob_bytes: int) -> Iterator[Blob]:
    with Bytes(path) as handle:
        yield from pack_records(_array_items(path, handle), f"{path}, record ", blob_bytes, handle.tell)


def _array_items(path: Path, handle: Bytes) -> Iterator[Any]:
    """The items of one array, a buffer of text at a time. Each failed attempt doubles what is read before the next."""
    scan, decode = json.JSONDecoder().raw_decode, codecs.getincrementaldecoder("utf-8-sig")()
    text, at, number, size, ended = "", 0, 0, 1 << 20, False
    separator, closed = re.compile(r"\s*\[\s*(\])?"), False
    while True:
        found = separator.match(text, at)
        item: Any = None
        try:
            if found and (closed := found[1] is not None):
                break
            if found is None or found.end() == len(text):
                raise ValueError
            item, end = scan(text, found.end())
        except ValueError:
            if ended or len(text) - at > LINE_BYTES:
                break
            data = handle.read(size)
            text, at, ended, size = text[at:] + _decoded(decode, data, path, number), 0, not data, size * 2
            continue
        number, at, size = number + 1, end, 1 << 20
        separator = re.compile(r"\s*(?:,\s*|(?=\]))(\])?")
        yield item
    if not closed:
        raise InputError(f"{path}, record {number + 1}: not valid JSON in an array of objects; mend the file there")


def _decoded(decoder: codecs.IncrementalDecoder, data: bytes, path: Path, number: int) -> str:
    try:
        return decoder.decode(data, final=not data)
    except UnicodeDecodeError:
        raise not_utf8(f"{path}, after record {number}") from None


def _parquet(path: Path, blob_bytes: int) -> Iterator[Blob]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise needs_extra("pyarrow", "data") from None
    size, row, rows = path.stat().st_size, 0, 1

    def records() -> Iterator[Any]:
        nonlocal row, rows
        try:
            file = pyarrow.parquet.ParquetFile(path)
            rows = max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    row += 1
                    yield record
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: damaged or no Parquet file ({reason}); fetch it again") from None

    yield from pack_records(records(), f"{path}, row ", blob_bytes, lambda: size * row // rows)


def _table(delimiter: str) -> Callable[[Path, int], Iterator[Blob]]:
    def read(path: Path, blob_bytes: int) -> Iterator[Blob]:
        with Bytes(path) as handle:
            rows = csv.reader(_text_lines(path, handle), delimiter=delimiter, strict=True)
            yield from pack_records(_rows(path, rows), f"{path}, row ", blob_bytes, handle.tell)

    return read


def _rows(path: Path, rows: Any) -> Iterator[dict[str, str]]:
    csv.field_size_limit(LINE_BYTES)
    header: list[str] | None = None
    try:
        for row in rows:
            if header is None:
                header = row
            elif row and len(row) != len(header):
                raise InputError(f"{path}:{rows.line_num}: {len(row)} fields, but the header has {len(header)}")
            elif row:
                yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: not valid CSV: {error}") from None


def _text_lines(path: Path, handle: Bytes) -> Iterator[str]:
    """Decoded lines with their line ends."""
    number = 0
    while line := handle.readline():
        number += 1
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise not_utf8(f"{path}:{number}") from None


def _text(cut: Callable[[Iterator[str]], Iterator[str]]) -> Callable[[Path, int], Iterator[Blob]]:
    def read(path: Path, blob_bytes: int) -> Iterator[Blob]:
        with Bytes(path) as handle:
            lines = (line.rstrip("\r\n") for line in _text_lines(path, handle))
            records = ({"text": text} for text in cut(lines))
            yield from pack_records(records, f"{path}, document ", blob_bytes, handle.tell)

    return read


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    piece, size = [], 0
    for line in lines:
        piece.append(line)
        size += len(line.encode()) + 1
        if size >= _PIECE_BYTES:
            yield "\n".join(piece).strip("\n")
            piece, size = [], 0
    if piece:
        yield "\n".join(piece).strip("\n")


def _blocks(lines: Iterator[str]) -> Iterator[str]:
    block = []
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield "\n".join(block)
            block = []
    if block:
        yield "\n".join(block)


_READERS: dict[Format, Callable[[Path, int], Iterator[Blob]]] = {
    "jsonl": _json_lines, "json": _json_array, "parquet": _parquet, "csv": _table(","), "tsv": _table("\t"),
    "txt": _text(_pieces), "lines": _text(iter), "blocks": _text(_blocks),
}  # fmt: skip
