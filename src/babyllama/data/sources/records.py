"""One line of JSON → a document. Chats are read by chats.py, preferences by preferences.py; what holds for all is here.

    text    text | content | completion (or the key `field`); 正文 | 内容 | 文本        most corpora
            title, summary, sections: [{title, content}]                              Baidu Baike, 5.63 million articles
    chat    the forms of chats.py; or a list of messages by itself

A recipe's `columns` says what is what where the keys are one's own; then nothing else of a record is read.
Any record may say ``held_out: true`` or ``false`` of itself: whether it is kept from training; otherwise `prepare`
chooses. What is recognised is used; every key that is not read is named and counted in `Parsed.notes`. A bad record
stops the work or, with ``on_bad: skip``, is counted: one policy for all formats, since the readers pass on what they
could not read of a record as a line that says why (`Unreadable`). Not here: files, tokens.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import xxhash

from babyllama.data.sources.blobs import DAMAGED, Blob, OnBad
from babyllama.data.sources.calls import BadRecord, Record
from babyllama.data.sources.chats import (
    LISTS,
    Notes,
    is_chat,
    is_message,
    note_unread,
    read_chat,
)
from babyllama.data.sources.documents import Document, Kind, Text
from babyllama.data.sources.files import bad_text, reason_of
from babyllama.data.sources.preferences import is_preference, is_rated, read_preference, read_rated
from babyllama.errors import InputError

try:
    from orjson import loads
except ImportError:  # babyllama[data] is not installed
    from json import loads


_TEXT_FIELDS = ("text", "content", "completion", "正文", "内容", "文本")
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # half a surrogate pair, but not a reader's
_MARKER = re.compile(r"<\|[a-z_]+\|>")  # of other programs' templates
_KEYS, _KEY = 12, 40  # that a message shows, and characters of each
_ARTICLE = {"title", "summary", "sections"}
Known = Literal["text", "system", "question", "input", "answer", "history", "messages", "tools", "chosen", "rejected",
                "label"]  # fmt: skip
_OPTIONAL = ("system", "input", "history", "tools")  # which not every record has
_OWN = ("id", "held_out")  # what a record says of itself


@dataclass(frozen=True)
class Shape:
    """How the records of one corpus become documents.

    `max_characters` drops longer documents; of a chat, the longest answer counts. A record without any text (or
    answer) is dropped too; one that cannot be understood stops the work or, with ``on_bad: skip``, is counted.
    """

    kind: Kind
    field: str | None = None
    max_characters: int | None = None
    on_bad: OnBad = "stop"
    encoding: str = "utf-8"  # of the file, for a message that names the cause
    columns: Mapping[Known, str] | None = None  # what a record's own keys are, by the names that are known here


class Id(NamedTuple):
    """That of one record, as a hash, and where it is."""

    hash: int
    where: str
    line: int


@dataclass
class Parsed:
    """The documents of one blob, with what was left out, and the ids that its records carry."""

    documents: list[Document] = field(default_factory=list)
    bad: int = 0
    dropped: int = 0
    first_bad: str = ""
    notes: Notes = field(default_factory=Counter)
    ids: list[Id] = field(default_factory=list)


def parse(blob: Blob, shape: Shape) -> Parsed:
    """All documents of a blob, in order. Raises InputError with file:line."""
    parsed = Parsed()
    for _, document in parse_lines(blob, shape, parsed):
        if document is not None:
            parsed.documents.append(document)
    return parsed


def parse_lines(blob: Blob, shape: Shape, counts: Parsed) -> Iterator[tuple[bytes, Document | None]]:
    """Every line with its document, or None where there is none; bad and dropped records are added to `counts`."""
    for where, number, line in blob.numbered():
        document = None
        if line and not line.isspace():
            try:
                record = _record(line, shape.encoding, shape.columns, counts.notes)
                if type(id := record.get("id")) in (int, str):
                    hash = xxhash.xxh3_64_intdigest(str(id).encode("utf-8", "surrogatepass"))
                    counts.ids.append(Id(hash, where, number))
                document = _document(record, shape, counts.notes)
                counts.dropped += document is None
            except BadRecord as error:
                reason = f"{where}{number}: {error}"
                if shape.on_bad == "stop":
                    raise InputError(f"{reason}; mend it, or leave such records out with on_bad=skip") from None
                counts.bad += 1
                if where.endswith(DAMAGED):
                    counts.notes[f"the rest of {where.removesuffix(DAMAGED)}, which is damaged"] += 1
                counts.first_bad = counts.first_bad or reason
        yield line, document


def kind_of(blob: Blob, field: str | None, columns: Mapping[Known, str] | None = None) -> Kind | None:
    """The kind of the first record that can be read, told by its keys; None if there is none."""
    for line in blob.lines.split(b"\n"):
        if line and not line.isspace():
            try:
                record = _record(line, columns=columns)
            except BadRecord:
                continue
            if field is not None:
                return "text"
            kinds: dict[Kind, bool] = {
                "preference": is_preference(record), "rated": is_rated(record), "chat": is_chat(record), "text": True,
            }  # fmt: skip
            return next(kind for kind, holds in kinds.items() if holds)
    return None


def _record(line: bytes, encoding: str = "utf-8", columns: Mapping[Known, str] | None = None,
            notes: Notes | None = None) -> Record:  # fmt: skip
    fault = reason_of(line)
    if fault is not None:
        raise BadRecord(fault)
    try:
        record = loads(line)
    except ValueError:
        record = _second_try(line, encoding)
    if isinstance(record, str):
        return {"text": record}
    if isinstance(record, list) and record and all(map(is_message, record)):
        return {"messages": record}
    if isinstance(record, list):
        raise BadRecord("a record is a JSON object, not a list; if the file is one JSON array, say format: json")
    if not isinstance(record, dict):
        raise BadRecord(f"a record is a JSON object, not a {type(record).__name__}")
    if columns:
        record = _called(record, columns, Counter() if notes is None else notes)
    for key in LISTS:
        if isinstance(value := record.get(key), str):
            record[key] = _unpacked(value)
    return record


def _called(record: Record, columns: Mapping[Known, str], notes: Notes) -> Record:
    """What `columns` names of a record, by the names that are known here."""
    for known, own in columns.items():
        if own not in record and known not in _OPTIONAL:
            raise BadRecord(f"no key {own!r}, which columns calls {known}: keys are {_keys(record)}")
    note_unread(record, {*columns.values(), *_OWN}, notes)
    found = {known: record[own] for known, own in columns.items() if own in record}
    return {**{key: record[key] for key in _OWN if key in record}, **found}


def _unpacked(text: str) -> Any:
    """The messages that a text holds as JSON, as tables of one type a column have them; else the text itself."""
    if not text.lstrip().startswith("[{"):
        return text
    try:
        found = loads(text)
    except ValueError:
        return text
    return found if all(map(is_message, found)) else text


def _second_try(line: bytes, encoding: str) -> Any:
    """By Python's own parser, which takes what its writer writes: NaN, Infinity, numbers of any size."""
    try:
        return json.loads(line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError:
        raise BadRecord(bad_text(line, encoding)) from None
    except RecursionError:
        raise BadRecord("not valid JSON (nested too deeply)") from None
    except ValueError as error:
        raise BadRecord(f"not valid JSON ({getattr(error, 'msg', error)})") from None


def _document(record: Record, shape: Shape, notes: Notes) -> Document | None:
    held_out = record.pop("held_out", None)
    if held_out not in (None, True, False):
        raise BadRecord(f"held_out must be true or false, got {held_out!r:.40}")
    document = replace(_READ[shape.kind](record, shape.field, notes), held_out=held_out)
    text = document.text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if "\udc80" <= text[error.start] <= "\udcff":  # a reader kept bytes that it could not decode
            kept = _HALF.sub("", text).encode("utf-8", "surrogateescape")
            raise BadRecord(bad_text(kept, shape.encoding)) from None
        raise BadRecord("holds half a surrogate pair, which is no character") from None
    if "<|" in text and _MARKER.search(text):
        notes["markers such as <|im_start|> in a text, which stay text"] += 1
    size = document.size
    if shape.max_characters is not None and size > shape.max_characters:
        notes[f"longer than {shape.max_characters} characters"] += 1
        return None
    return document if size else None


def _chat(record: Record, field: str | None, notes: Notes) -> Document:
    if is_preference(record):
        notes["rejected answers of preference pairs"] += 1
        return read_preference(record, notes).preferred
    chat = read_chat(record, notes)
    if chat is None and any(isinstance(record.get(key), str) for key in _TEXT_FIELDS):
        raise BadRecord(f"no chat in it: keys are {_keys(record)}, which is a text, but the corpus is taken as chats; "
                        "give texts and chats as two corpora, or say kind: text")  # fmt: skip
    if chat is None:
        raise BadRecord(
            f"no chat in it: keys are {_keys(record)}; known are messages, conversations, and pairs such as "
            "instruction and output, question and answer; of other keys say which is which: "
            "columns: {question: …, answer: …}"
        )
    return chat


def _preference(record: Record, field: str | None, notes: Notes) -> Document:
    if not is_preference(record):
        raise BadRecord(f"no preference pair in it: keys are {_keys(record)}, not chosen and rejected")
    return read_preference(record, notes)


def _rated(record: Record, field: str | None, notes: Notes) -> Document:
    if not is_rated(record):
        raise BadRecord(f"no rated answer in it: keys are {_keys(record)}; wanted are a question, an "
                        "answer, and label: true or false")  # fmt: skip
    return read_rated(record, notes)


def _text(record: Record, field: str | None, notes: Notes) -> Text:
    key = next((key for key in ((field,) if field else _TEXT_FIELDS) if key in record), None)
    if key is not None:
        if record[key] is not None and not isinstance(record[key], str):
            raise BadRecord(f"key {key!r} must hold text, not a {type(record[key]).__name__}")
        if len(record) > 1:
            note_unread(record, {key}, notes)
        return Text((record[key] or "").removeprefix("\ufeff"))
    if field is None and isinstance(record.get("sections"), list) and "title" in record:
        note_unread(record, _ARTICLE, notes)
        return Text("\n".join(_article(record)).replace("\r\n", "\n"))
    chat = read_chat(record, notes) if field is None else None
    if chat is None:
        wanted = repr(field) if field else " or ".join(map(repr, _TEXT_FIELDS))
        chats = "" if field else "; of a chat say which is which: columns: {question: …, answer: …}"
        raise BadRecord(f"no key {wanted}: keys are {_keys(record)}; name the one with the text in "
                        f"field{chats}")  # fmt: skip
    notes[
        "who says what in chats, which are read as plain texts (chats want a corpus of their own, of kind: chat)"
    ] += 1
    return Text(chat.text)


def _keys(record: Record) -> str:
    """The keys of a record, as far as a message has room for them."""
    shown = [key if len(key) <= _KEY else f"{key[:_KEY]}…" for key in [*record][:_KEYS]]
    return ", ".join([*shown, "…"] if len(record) > _KEYS else shown) or "none"


def _article(record: Record) -> Iterator[str]:
    for part in (record, *record["sections"]):
        if not isinstance(part, dict):
            raise BadRecord(f"sections must hold objects with title and content, not a {type(part).__name__}")
        for key in ("title", "summary", "content"):
            if part.get(key):
                yield str(part[key]).strip()


_READ = {"text": _text, "chat": _chat, "preference": _preference, "rated": _rated}
