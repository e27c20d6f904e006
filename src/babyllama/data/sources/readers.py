"""Files of any supported format → blobs of JSON lines, in flat memory.

    .jsonl .ndjson       one JSON object a line                      plain, .gz or .zst; passed on untouched
    .json                the same, or as arrays.py reads it          plain, .gz or .zst
    .parquet             one row a document                          needs babyllama[data]
    .csv .tsv            by tables.py: one row a document            plain, .gz or .zst
    .txt                 one document, cut at line ends              plain, .gz or .zst
    .zip                 all of these but .parquet, also in folders  members are read where they lie

A .txt file is taken as one long text such as a novel, whose blank lines part paragraphs; ``format: lines`` makes every
line a document and ``format: blocks`` every run of lines between blank lines. All text is UTF-8 unless `encoding` or a
byte order mark says otherwise. What cannot be read of one record is passed on as such (files.py). Not
here: what the objects mean (records.py), which files there are (corpora.py).
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from babyllama.data.sources.arrays import HEAD_BYTES, Form, form_of, items
from babyllama.data.sources.blobs import BLOB_BYTES, DAMAGED, Blob, OnBad, joined, pack_records
from babyllama.data.sources.files import LINE_BYTES, Bytes, Lines, Unreadable, too_long
from babyllama.data.sources.finding import IN_ARCHIVES, NO_TEXT, SUFFIXES, Format
from babyllama.data.sources.parquet import read_parquet
from babyllama.data.sources.remote import RemoteFile
from babyllama.data.sources.tables import read_rows
from babyllama.data.sources.zips import File, Member, suffix_of, unpacked
from babyllama.errors import InputError, MissingExtra

_TOGETHER = 16  # small files make blobs of this part of the largest: fewer files, and still work for every core
_PIECE_BYTES = 64 << 10  # a .txt file is cut at the first line end after so many bytes


def read_blobs(files: Iterable[Path | RemoteFile], format: Format = "auto", blob_bytes: int = BLOB_BYTES,
               encoding: str = "utf-8", *, on_bad: OnBad = "stop") -> Iterator[Blob]:  # fmt: skip
    """All files in order, small ones together. A damaged one stops the work or, with ``on_bad: skip``, ends there and
    is one bad record.

    Raises:
        InputError: a file that is damaged or of no known format.
    """
    yield from joined(_of_files(files, format, blob_bytes, encoding, on_bad), blob_bytes // _TOGETHER)


def _of_files(files: Iterable[Path | RemoteFile], format: Format, blob_bytes: int, encoding: str, on_bad: OnBad
              ) -> Iterator[Blob]:  # fmt: skip
    before = 0
    for file in files:
        inside = _unpacked(file, on_bad)
        if isinstance(inside, InputError):
            yield _damaged(file, inside, 0, before)
            inside = []
        for path in inside:
            for blob in _of_file(path, format, blob_bytes, encoding, on_bad):
                read = blob.position * path.packed // max(path.size, 1) if isinstance(path, Member) else blob.position
                yield Blob(blob.where, blob.first, blob.lines, before + read)
            before += path.packed if isinstance(path, Member) else path.stat().st_size


def encoding_of(file: Path) -> str:
    """What `encoding: auto` reads it as, by its beginning; of an archive all that its members are in, with a + between.

    Of a file that cannot be read it is ``unknown``: the fault shows where it is read.
    """
    found = set[str]()
    try:
        for path in unpacked([file], IN_ARCHIVES):
            if suffix_of(path) != ".parquet":
                with Bytes(path, "auto") as handle:
                    handle.head(HEAD_BYTES)
                    found.add(handle.encoding)
    except InputError:
        found.add("unknown")
    return "+".join(sorted(found)) or "utf-8"


def _unpacked(file: Path | RemoteFile, on_bad: OnBad) -> list[File] | InputError:
    try:
        return list(unpacked([file], IN_ARCHIVES))
    except InputError as error:
        if on_bad == "stop":
            raise
        return error


def _of_file(path: File, format: Format, blob_bytes: int, encoding: str, on_bad: OnBad) -> Iterator[Blob]:
    known, read = _format_of(path, format), 0
    try:
        for blob in _reader_of(path, known, encoding)(path, blob_bytes, encoding):
            read = blob.position
            yield blob
    except MissingExtra:
        raise
    except InputError as error:
        if on_bad == "stop" or isinstance(path, RemoteFile):  # a connection that fails is no fault of the file
            raise
        yield _damaged(path, error, read, read)


def _damaged(path: File, error: InputError, read: int, position: int) -> Blob:
    """What stands for the rest of a file: one record that cannot be read."""
    reason = f"{str(error).removeprefix(f'{path}: ')}; what follows its byte {read:,} is left out"
    return Blob(f"{path}{DAMAGED}", 1, Unreadable(reason).line + b"\n", position)


_Reader = Callable[[File, int, str], Iterator[Blob]]


def _format_of(path: File, format: Format) -> Format:
    """As given, or by the name; of a .jsonl file it shows itself whether it is one."""
    if format != "auto":
        return format
    found = SUFFIXES.get(suffix_of(path))
    if found is None:
        Bytes(path).close()  # an archive is called that
        known, other = ", ".join(Format.__args__[1:]), NO_TEXT.get(Path(str(path)).suffix.lower())
        if other:
            raise InputError(f"{path}: is no text; save it as {other} in UTF-8, with the program that opens it")
        raise InputError(f"{path}: the name does not tell the format; say format: one of {known} (txt for plain text)")
    return "json" if found == "jsonl" else found


def _reader_of(path: File, format: Format, encoding: str) -> _Reader:
    if format == "json":
        with Bytes(path, encoding) as handle:
            form = form_of(handle.head(HEAD_BYTES))
        return _json_lines if form == "lines" else partial(_json_items, form)
    return _READERS[format]


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


def _table(delimiter: str) -> _Reader:
    def read(path: File, blob_bytes: int, encoding: str) -> Iterator[Blob]:
        with Bytes(path, encoding) as handle:
            rows = read_rows(path, Lines(handle, encoding), delimiter)
            yield from pack_records(rows, f"{path}, row ", blob_bytes, handle.tell)

    return read


_Cut = Callable[[Iterator[str | Unreadable]], Iterator[str | Unreadable]]


def _text(cut: _Cut) -> _Reader:
    def read(path: File, blob_bytes: int, encoding: str) -> Iterator[Blob]:
        with Bytes(path, encoding) as handle:
            lines = Lines(handle, encoding)
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
    "jsonl": _json_lines, "parquet": read_parquet, "csv": _table(","), "tsv": _table("\t"),
    "txt": _text(_pieces), "lines": _text(iter), "blocks": _text(_blocks),
}  # fmt: skip
