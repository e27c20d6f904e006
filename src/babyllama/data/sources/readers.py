"""Files of any supported format → blobs of JSON lines, in flat memory.

    .jsonl .ndjson       one JSON object a line                      plain, .gz or .zst; passed on untouched
    .json                the same, or as arrays.py reads it          plain, .gz or .zst
    .parquet             one row a document                          needs babyllama[data]
    .csv .tsv            a header, one row a document                plain, .gz or .zst
    .txt                 one document, cut at line ends              plain, .gz or .zst
    .zip                 all of these but .parquet, also in folders  members are read where they lie

A .txt file is taken as one long text such as a novel, whose blank lines part paragraphs; ``format: lines`` makes every
line a document and ``format: blocks`` every run of lines between blank lines. All text is UTF-8, with or without a byte
order mark, unless `encoding` says otherwise. What cannot be read of one record is passed on as such (files.py). Not
here: what the objects mean (records.py), which files there are (corpora.py).
"""

from __future__ import annotations

import codecs
import csv
import glob
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from babyllama.data.sources.arrays import HEAD_BYTES, Form, form_of, items
from babyllama.data.sources.blobs import BLOB_BYTES, Blob, pack_records
from babyllama.data.sources.files import COMPRESSED, LINE_BYTES, Bytes, Unreadable, bad_text, too_long
from babyllama.data.sources.remote import RemoteFile
from babyllama.data.sources.zips import ZIP, File, Member, is_read, members, unpacked
from babyllama.errors import InputError, needs_extra

_PIECE_BYTES = 64 << 10  # a .txt file is cut at the first line end after so many bytes

Format = Literal["auto", "jsonl", "json", "parquet", "csv", "tsv", "txt", "lines", "blocks"]
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "tsv",
    ".txt": "txt",
}  # fmt: skip
_IN_ARCHIVES = [suffix for suffix in _SUFFIXES if suffix != ".parquet"]  # whose reader has to jump about in a file


def find_files(path: str, archives: bool = True) -> list[Path]:
    """A file, every corpus file below a folder, or the matches of a glob, sorted. Raises InputError if none.

    Of a folder, hidden files and folders are passed over (`passed_over` names them). `archives`: zip archives count.
    """
    given = Path(path).expanduser()
    if given.is_file():
        return [given]
    if given.is_dir():
        known = {*_SUFFIXES, ZIP} if archives else _SUFFIXES
        found = sorted(p for p in given.rglob("*") if p.is_file() and not _hidden(p, given) and _suffix(p) in known)
        if not found:
            raise InputError(
                f"{path}: no corpus file in this folder; known are {' '.join(_SUFFIXES)}, or .gz, .zst, .zip"
            )
        return found
    matches = glob.glob(str(given), recursive=True)  # noqa: PTH207  Path.glob takes no absolute pattern
    found = sorted(p for p in map(Path, matches) if p.is_file())
    if not found:
        raise InputError(f"{path}: no such file or folder, and nothing matches it as a pattern")
    return found


def passed_over(path: str) -> list[str]:
    """What `find_files` and archives leave out, sorted: files of a folder, relative to it, and members of archives."""
    given = Path(path).expanduser()
    if given.is_dir():
        every = [p for p in given.rglob("*") if p.is_file()]
        left = [p for p in every if _hidden(p, given) or _suffix(p) not in {*_SUFFIXES, ZIP}]
        archives = [p for p in every if p.suffix.lower() == ZIP and p not in left]
    else:
        left, archives = [], [given] if given.is_file() and given.suffix.lower() == ZIP else []
    inside = [m for archive in archives for m in members(archive) if not is_read(m, _IN_ARCHIVES)]
    root = given if given.is_dir() else given.parent
    return sorted(
        [*(str(p.relative_to(root)) for p in left), *(f"{m.archive.relative_to(root)}/{m.name}" for m in inside)]
    )


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def read_blobs(
    files: Iterable[Path | RemoteFile], format: Format = "auto", blob_bytes: int = BLOB_BYTES, encoding: str = "utf-8"
) -> Iterator[Blob]:
    """All files in order. Raises InputError for a file that is damaged or of no known format."""
    before = 0
    for path in unpacked(files, _IN_ARCHIVES):
        for blob in _reader_of(path, format, encoding)(path, blob_bytes, encoding):
            read = blob.position * path.packed // max(path.size, 1) if isinstance(path, Member) else blob.position
            yield Blob(blob.where, blob.first, blob.lines, before + read)
        before += path.packed if isinstance(path, Member) else path.stat().st_size


def _suffix(path: File) -> str:
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix.lower()


_Reader = Callable[[File, int, str], Iterator[Blob]]


def _reader_of(path: File, format: Format, encoding: str) -> _Reader:
    found = _SUFFIXES.get(_suffix(path)) if format == "auto" else format
    if found is None:
        Bytes(path).close()  # an archive is called that
        known = ", ".join(Format.__args__[1:])
        raise InputError(f"{path}: the name does not tell the format; say format: one of {known}")
    if found == "json" or (found == "jsonl" and format == "auto"):
        with Bytes(path, encoding) as handle:
            form = form_of(handle.head(HEAD_BYTES))
        return _json_lines if form == "lines" else partial(_json_items, form)
    return _READERS[found]


def _json_lines(path: File, blob_bytes: int, encoding: str) -> Iterator[Blob]:
    with Bytes(path, encoding) as handle:
        first = 1
        while chunk := handle.read(blob_bytes):
            if not chunk.endswith(b"\n"):
                chunk += handle.readline()
                if len(chunk) >= blob_bytes + LINE_BYTES:
                    raise too_long(path, first + chunk.count(b"\n"))
            yield Blob(f"{path}:", first, chunk.removeprefix(codecs.BOM_UTF8) if first == 1 else chunk, handle.tell())
            first += chunk.count(b"\n")


def _json_items(form: Form, path: File, blob_bytes: int, encoding: str) -> Iterator[Blob]:
    with Bytes(path, encoding) as handle:
        yield from pack_records(items(path, handle, form, encoding), f"{path}, record ", blob_bytes, handle.tell)


def _parquet(path: File, blob_bytes: int, encoding: str) -> Iterator[Blob]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise needs_extra("pyarrow", "data") from None
    if isinstance(path, Member):
        raise InputError(f"{path}: a Parquet file in an archive; unpack it and give its files")
    size, row, rows = path.stat().st_size, 0, 1

    def records() -> Iterator[Any]:
        nonlocal row, rows
        try:
            file = pyarrow.parquet.ParquetFile(path if isinstance(path, Path) else path.open())
            rows = max(file.metadata.num_rows, 1)
            _check_columns(str(path), file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=1024):
                row += len(batch)
                names = batch.schema.names
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield dict(zip(names, values, strict=True))
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: damaged or no Parquet file ({reason}); fetch it again") from None

    yield from pack_records(records(), f"{path}, row ", blob_bytes, lambda: size * row // rows)


def _check_columns(where: str, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{where}: the column {twice[0]!r} is there twice; rename one of them")


def _table(delimiter: str) -> _Reader:
    def read(path: File, blob_bytes: int, encoding: str) -> Iterator[Blob]:
        with Bytes(path, encoding) as handle:
            rows = _rows(path, _Lines(handle, encoding), delimiter)
            yield from pack_records(rows, f"{path}, row ", blob_bytes, handle.tell)

    return read


class _Lines:
    """Decoded lines with their line ends. One that is no text keeps its bytes as surrogates, and `bad` says why."""

    def __init__(self, handle: Bytes, encoding: str) -> None:
        self._handle, self._encoding = handle, encoding
        self.number, self._bad = 0, ""

    def __iter__(self) -> Iterator[str]:
        while line := self._handle.readline():
            self.number += 1
            if len(line) == LINE_BYTES and not line.endswith(b"\n"):
                raise too_long(self._handle.path, self.number)
            if self.number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield line.decode()
            except UnicodeDecodeError:
                self._bad = f"line {self.number}: {bad_text(line, self._encoding)}"
                yield line.decode("utf-8", "surrogateescape")

    def bad(self) -> str:
        """What was wrong with a line since the last call; empty if nothing was."""
        found, self._bad = self._bad, ""
        return found


def _rows(path: File, lines: _Lines, delimiter: str) -> Iterator[dict[str, str] | Unreadable]:
    csv.field_size_limit(LINE_BYTES)
    rows, header = csv.reader(iter(lines), delimiter=delimiter, strict=True), None
    while True:
        first = lines.number + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            if "unexpected end" in str(error):  # what follows the quotation mark is lost, so it is the file's fault
                raise InputError(f"{path}:{first}: a quotation that begins here does not end; mend it") from None
            yield Unreadable(f"line {first}: not valid CSV: {error}")
            continue
        bad = lines.bad()
        if row is None:
            return
        if header is None:
            if bad:
                raise InputError(f"{path}: {bad}")
            _check_columns(f"{path}:1", header := row)
        elif bad:
            yield Unreadable(bad)
        elif row and len(row) != len(header):
            yield Unreadable(f"line {first}: {len(row)} fields, but the header has {len(header)}")
        elif row:
            yield dict(zip(header, row, strict=True))


_Cut = Callable[[Iterator[str | Unreadable]], Iterator[str | Unreadable]]


def _text(cut: _Cut) -> _Reader:
    def read(path: File, blob_bytes: int, encoding: str) -> Iterator[Blob]:
        with Bytes(path, encoding) as handle:
            lines = _Lines(handle, encoding)
            parts = (Unreadable(bad) if (bad := lines.bad()) else line.rstrip("\r\n") for line in lines)
            records = (part if isinstance(part, Unreadable) else {"text": part} for part in cut(parts))
            yield from pack_records(records, f"{path}, document ", blob_bytes, handle.tell)

    return read


def _pieces(lines: Iterator[str | Unreadable]) -> Iterator[str | Unreadable]:
    piece, size = [], 0
    for line in lines:
        if isinstance(line, Unreadable):
            yield line
            continue
        piece.append(line)
        size += len(line.encode()) + 1
        if size >= _PIECE_BYTES:
            yield "\n".join(piece).strip("\n")
            piece, size = [], 0
    if piece:
        yield "\n".join(piece).strip("\n")


def _blocks(lines: Iterator[str | Unreadable]) -> Iterator[str | Unreadable]:
    block = []
    for line in lines:
        if isinstance(line, Unreadable):
            yield line
        elif line.strip():
            block.append(line)
        elif block:
            yield "\n".join(block)
            block = []
    if block:
        yield "\n".join(block)


_READERS: dict[Format, _Reader] = {
    "jsonl": _json_lines, "parquet": _parquet, "csv": _table(","), "tsv": _table("\t"),
    "txt": _text(_pieces), "lines": _text(iter), "blocks": _text(_blocks),
}  # fmt: skip
