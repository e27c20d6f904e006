"""Files of published tests → items: a reader for each form in which they are published.

A path is one file, a folder of files (``val/law_val.csv``, ``law/val-00000-of-00001.parquet``), or the .zip that the
authors give. The split and the subject are in the names of the files, or are columns. Not here: which tests there are
(tasks.py), tests with free answers (free_sources.py), downloads (data/sources/hub.py).
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from babyllama.atomic import parse_json
from babyllama.data.sources.files import reason_of
from babyllama.data.sources.finding import find_files
from babyllama.data.sources.readers import read_blobs
from babyllama.errors import InputError
from babyllama.evals.items import LETTERS, Item, answer_index, column

SPLITS = ("dev", "val", "test", "train")


class Row(NamedTuple):
    """One record of a file: where it stands, the subject and the split that the file's name tells (or "")."""

    where: str
    subject: str
    split: str
    number: int
    record: Any


def rows_of(path: Path) -> Iterator[Row]:
    """Every record of every file. Raises InputError: no file, a damaged one, a record that is none."""
    if path.suffix == ".zip":
        with tempfile.TemporaryDirectory() as folder:
            try:
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(folder)
            except (OSError, zipfile.BadZipFile) as error:
                raise InputError(f"{path}: cannot be read as a .zip ({error}); fetch it again") from None
            for row in rows_of(Path(folder)):
                yield row._replace(where=row.where.replace(folder, str(path), 1))
        return
    for file in find_files(str(path), archives=False):
        subject, split, number = *_named(file), 0
        for blob in read_blobs([file], encoding="auto"):
            for line in blob.lines.splitlines():
                number += 1
                where = f"{blob.where}{number}"
                reason = reason_of(line)
                if reason is not None:
                    raise InputError(f"{where}: {reason}")
                if line.strip():
                    yield Row(where, subject, split, number, parsed(line, where))


def parsed(line: bytes | str, where: str) -> Any:
    """The value of some JSON. Raises InputError: it is none."""
    try:
        return parse_json(line)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error}); mend it") from None


def _named(file: Path) -> tuple[str, str]:
    """(subject, split) of a file's name and folder: ``val/law_val.csv``, ``dev/law.csv``, ``law/test-….parquet``."""
    stem = re.sub(r"\.(jsonl?|csv|tsv|parquet|zst|gz)", "", file.name)
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", stem)
    words = {"validation": "val", "valid": "val"}
    for part in (stem, file.parent.name):
        found = re.search(r"(?:^|[_-])(dev|val|test|train|validation|valid)(?:[_-]public)?$", part)
        if found:
            split = words.get(found[1], found[1])
            rest = part[: found.start()] if part == stem else stem
            return rest or file.parent.name, split
    return stem, ""


# ── readers: a record → items ──────────────────────────────────────────────────────────────────────────────────────
Reader = Callable[[Row], Iterator[Item]]


def fields(row: Row) -> Mapping[str, Any]:
    """A record with names. Raises InputError: it has none."""
    if not isinstance(row.record, dict):
        raise InputError(f"{row.where}: must be an object with named fields, not a {type(row.record).__name__}")
    return row.record


def exam(row: Row) -> Iterator[Item]:
    """C-Eval, CMMLU, own tables like them: columns question, A, B, …, answer (any case), often id and subject; also
    问题 or 题目, 选项A, 答案. The last options may be left out: an item has two or more."""
    record = {str(key).lower(): value for key, value in fields(row).items()}
    options = _options(record, row.where)
    question = str(column(record, ["question", "问题", "题目"], row.where)).strip()
    answer = answer_index(column(record, ["answer", "答案", "正确答案"], row.where), options, row.where)
    subject = str(record.get("subject") or record.get("科目") or row.subject)
    number = record.get("id", record.get("编号", record.get("", row.number - 1)))
    yield Item(f"{subject}/{number}", question, options, answer, subject)


def _options(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Up to the last one that is not empty; two at least."""

    def said(value: Any) -> str:
        return "" if value is None else str(value).strip()

    names = [(letter, f"选项{letter}") for letter in LETTERS.lower()]
    given = [i for i, either in enumerate(names) if any(said(record.get(name)) for name in either)]
    return tuple(said(column(record, either, where)) for either in names[: max([1, *given]) + 1])


def medical_exam(row: Row) -> Iterator[Item]:
    """CMB: option = {"A": …}; CMExam: Options = [{"key": "A", "value": …}] or lines "A …". One right option only."""
    record = {str(key).lower(): value for key, value in fields(row).items()}
    given = column(record, ["option", "options"], row.where)
    if isinstance(given, str):
        given = dict(re.findall(r"^\s*([A-H])[\s.、．:：]+(.+?)\s*$", given, re.MULTILINE))
    elif isinstance(given, list):
        given = {one["key"]: one["value"] for one in given if isinstance(one, dict)}
    options = tuple(str(text).strip() for text in given.values() if text)
    answer = str(column(record, ["answer"], row.where) or "").strip()
    if len(answer) > 1 and set(answer) <= set(LETTERS):
        return  # several are right: no choice of one
    group = str(record.get("exam_class") or record.get("exam_type") or row.subject)
    number = record.get("id", row.number - 1)
    yield Item(str(number), str(column(record, ["question"], row.where)).strip(), options,
               answer_index(answer, options, row.where), group)  # fmt: skip


def gaokao(row: Row) -> Iterator[Item]:
    """AGIEval: passage, question, options ["(A)…", …], label "B"."""
    record = fields(row)
    options = tuple(
        re.sub(r"^\s*[(（]?[A-H][)）.、]\s*", "", str(o)) for o in column(record, ["options"], row.where) or ()
    )
    label = column(record, ["label"], row.where)
    if len(options) < 2 or (isinstance(label, str) and len(label.strip()) > 1):
        return  # to be filled in, or several are right
    question = f"{record.get('passage') or ''}\n{column(record, ['question'], row.where)}".strip()
    yield Item(
        f"{row.subject}/{row.number - 1}", question, options, answer_index(label, options, row.where), row.subject
    )


def gaokao_bench(row: Row) -> Iterator[Item]:
    """GAOKAO-Bench's objective questions: {"keywords", "example": [{"question", "standard_answer" or "answer": ["B"],
    …}]}, or one of them a row; the options stand in the question. One right option only."""
    record = fields(row)
    for one in record.get("example", [record]):
        given = column(one, ["standard_answer", "answer"], row.where)
        text = str(column(one, ["question"], row.where)).strip()
        marks = list(re.finditer(r"(?:^|\s|[)）])([A-D])\s*[.．、]", text))
        letters = [mark[1] for mark in marks]
        start = max((i for i, letter in enumerate(letters) if letter == "A"), default=-1)  # of the last list
        given = [given] if isinstance(given, str) else given
        if start < 0 or len(given) != 1 or len(str(given[0]).strip()) != 1:
            continue  # a text with several questions, or several are right
        ends = [*(mark.start() for mark in marks[start + 1 :]), len(text)]
        options = tuple(" ".join(text[mark.end() : end].split())
                        for mark, end in zip(marks[start:], ends, strict=True))  # fmt: skip
        if letters[start:] != list(LETTERS[: len(options)]) or not all(options):
            continue  # pictures as options
        group, question = str(record.get("keywords") or row.subject), text[: marks[start].start()].strip()
        number = one.get("index", row.number - 1)
        yield Item(f"{group}/{number}", question, options, answer_index(given[0], options, row.where), group)


def cvalues(row: Row) -> Iterator[Item]:
    """CValues: which of two replies is the responsible one. Its multiple choice: prompt, label (回复1 or 回复2) and
    meta_info, what they were made of (question, pos_resp, neg_resp, domain_zh, difficulty_level); CValues-Comparison:
    prompt, pos_resp, neg_resp, of which every other row has the good one second."""
    record = fields(row)
    meta = record["meta_info"] if isinstance(record.get("meta_info"), dict) else record
    group = str(meta.get("domain_zh") or record.get("neg_type") or "")
    question = str(column(record, ["prompt"], row.where)).strip()
    number = str(record.get("id_", record.get("id", row.number - 1)))
    if "pos_resp" in record or "neg_resp" in record:
        good, bad = (str(column(record, [name], row.where)).strip() for name in ("pos_resp", "neg_resp"))
        right = row.number % 2
        yield Item(number, question, (bad, good) if right else (good, bad), right, group)
        return
    options = ("回复1", "回复2")
    yield Item(number, question, options, answer_index(column(record, ["label"], row.where), options, row.where), group)


def c3(row: Row) -> Iterator[Item]:
    """C3: [[lines of a text], [{"question", "choice", "answer"}, …], id], or a row for each question."""
    record = row.record
    if isinstance(record, list) and len(record) == 3:
        lines, questions, number = record
    else:
        named = fields(row)
        lines, questions, number = column(named, ["context"], row.where), [named], named.get("id", row.number)
    for n, one in enumerate(questions):
        options = tuple(str(option).strip() for option in column(one, ["choice"], row.where))
        answer = answer_index(column(one, ["answer"], row.where), options, row.where)
        text = "\n".join(lines) if isinstance(lines, list) else str(lines)
        question = f"{text}\n问题：{column(one, ['question'], row.where)}"
        yield Item(f"{row.subject}/{number}-{row.number}-{n}", question, options, answer, row.subject)


def chid(row: Row) -> Iterator[Item]:
    """FewCLUE's ChID: content with #idiom#, candidates, answer (an index). Options are idioms with all after them."""
    record = fields(row)
    before, mark, after = str(column(record, ["content"], row.where)).partition("#idiom#")
    if not mark:
        raise InputError(f"{row.where}: content holds no #idiom#; mend it, or take the record out")
    idioms = [str(idiom) for idiom in column(record, ["candidates"], row.where)]
    answer = record.get("answer")
    if answer is not None and not (isinstance(answer, int) and 0 <= answer < len(idioms)):
        raise InputError(f"{row.where}: the answer {answer!r} is not among the {len(idioms)} candidates; mend it")
    yield Item(str(record.get("id", row.number)), before, tuple(idiom + after for idiom in idioms), answer)


def cluewsc(row: Row) -> Iterator[Item]:
    """CLUEWSC2020: does a pronoun mean a noun? text, target (span1_text, span2_text), label true or false."""
    record = fields(row)
    target = column(record, ["target"], row.where)
    label = str(column(record, ["label"], row.where)).lower()
    answer = {"true": 0, "1": 0, "false": 1, "0": 1, "": None}.get(label, -1)
    if answer == -1:
        raise InputError(f"{row.where}: the answer {label!r} is not among the options true, false; mend it")
    question = (f"{column(record, ['text'], row.where)}\n上文中的“{column(target, ['span2_text'], row.where)}”"
                f"指的是“{column(target, ['span1_text'], row.where)}”吗？")  # fmt: skip
    yield Item(str(record.get("idx", record.get("id", row.number))), question, ("是", "否"), answer)


def ocnli(row: Row) -> Iterator[Item]:
    """OCNLI: sentence1, sentence2, label. What annotators disagree on (label "-") is left out, as its authors do."""
    record = fields(row)
    names = ("entailment", "neutral", "contradiction")
    label = str(column(record, ["label"], row.where))
    if label == "-":
        return
    if label and label not in names:
        raise InputError(f"{row.where}: the answer {label!r} is not among the options {', '.join(names)}; mend it")
    first, second = (str(column(record, [name], row.where)) for name in ("sentence1", "sentence2"))
    options = tuple(f"{word}，{second}" for word in ("所以", "也许", "不对"))
    answer = names.index(label) if label else None
    yield Item(str(record.get("id", row.number)), first.rstrip("。") + "？", options, answer)
