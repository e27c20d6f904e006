"""Files of published tests whose answers a model writes → items; as sources.py for tests of choice."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from babyllama.errors import InputError
from babyllama.evals.items import Item, column
from babyllama.evals.sources import Row, fields, parsed


def gsm8k(row: Row) -> Iterator[Item]:
    """GSM8K in Chinese: question_zh (or question), answer_only (or answer, whose number stands after ####)."""
    record = fields(row)
    question = str(column(record, ["question_zh", "question"], row.where)).strip()
    answer = str(column(record, ["answer_only", "answer"], row.where)).rpartition("####")[2].strip()
    if not re.search(r"\d", answer):
        raise InputError(f"{row.where}: the answer {answer[:20]!r} holds no number; mend it")
    yield Item(str(record.get("id", row.number)), question, (answer,), 0)


def simple_qa(row: Row) -> Iterator[Item]:
    """Chinese SimpleQA: question, answer, primary_category; or problem, answer and the rest in metadata, as JSON. What
    stands in brackets behind an answer need not be said: 碳酸镁（MgCO3）."""
    record = fields(row)
    meta = record.get("metadata") or record
    meta = parsed(meta, row.where) if isinstance(meta, str) else meta
    question, answer = (
        str(column(record, names, row.where)).strip() for names in (["question", "problem"], ["answer"])
    )
    shorter = re.sub(r"[(（][^()（）]*[)）]$", "", answer).strip() or answer
    yield Item(str(meta.get("id") or row.number), question, tuple(dict.fromkeys((answer, shorter))), 0,
               str(meta.get("primary_category") or ""))  # fmt: skip


def cmrc(row: Row) -> Iterator[Item]:
    """CMRC 2018: SQuAD's paragraphs, or a row for each question (context, question, answers or {"text": answers})."""
    record = fields(row)
    if "paragraphs" in record:
        rows = [{**question, "context": column(paragraph, ["context"], row.where)}
                for paragraph in record["paragraphs"]
                for question in column(paragraph, ["qas"], row.where)]  # fmt: skip
    else:
        rows = [record]
    for one in rows:
        text, asked = (str(column(one, [name], row.where)).strip() for name in ("context", "question"))
        answers = column(one, ["answers"], row.where)
        answers = answers["text"] if isinstance(answers, dict) else answers
        answers = [str(answer["text"] if isinstance(answer, dict) else answer).strip() for answer in answers]
        yield Item(str(one.get("id", row.number)), f"{text}\n问题：{asked}", tuple(dict.fromkeys(answers)), 0)


_LONG = {
    "multifieldqa_zh": "阅读以下文字并用中文简短回答：\n\n{context}\n\n现在请基于上面的文章回答下面的问题，"
    "只告诉我答案，不要输出任何其他字词。\n\n问题：{input}\n回答：",
    "dureader": "请基于给定的文章回答下述问题。\n\n文章：{context}\n\n请基于上述文章回答下面的问题。\n\n"
    "问题：{input}\n回答：",
    "vcsum": "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n{context}\n\n会议总结：",
    "lsht": "请判断给定新闻的类别，下面是一些例子。\n\n{context}\n{input}",
    "passage_retrieval_zh": "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n{context}\n\n"
    '下面是一个摘要\n\n{input}\n\n请输入摘要所属段落的编号。答案格式必须是"段落1"，'
    '"段落2"等格式\n\n答案是：',
}  # fmt: skip  (the benchmark's own words, MIT: config/dataset2prompt.json)


def longbench(row: Row) -> Iterator[Item]:
    """LongBench: input, context, answers, dataset, all_classes. Its tests in Chinese; the others are left out."""
    record = fields(row)
    name = str(record.get("dataset") or row.subject)
    if name not in _LONG:
        return
    asked = {key: str(column(record, [key], row.where) or "") for key in ("context", "input")}
    answers = tuple(str(answer).strip() for answer in column(record, ["answers"], row.where))
    question = _LONG[name].replace("{input}", asked["input"]).replace("{context}", asked["context"])
    classes = tuple(map(str, record.get("all_classes") or ()))
    if name == "lsht" and not set(answers) <= set(classes):
        raise InputError(f"{row.where}: the answer {answers[0]!r} is not among all_classes; mend it")
    yield Item(f"{name}/{record.get('_id', row.number)}", question, answers, 0, name, classes=classes)


def tool_calls(row: Row) -> Iterator[Item]:
    """messages and tools as OpenAI has them, expected: {"name", "arguments"}, or a list of such; without it the last
    message must be an answer with tool_calls, which is not shown."""
    record = fields(row)
    messages, tools = (column(record, [name], row.where) for name in ("messages", "tools"))
    expected = record.get("expected")
    if expected is None:
        last = messages[-1] if isinstance(messages, list) and messages else {}
        calls = last.get("tool_calls") if isinstance(last, dict) else None
        if not calls:
            raise InputError(f"{row.where}: the column 'expected' is missing, and the last message calls no tool")
        messages, expected = messages[:-1], [call.get("function", call) for call in calls]
    wanted = list[list[Any]]()
    for call in expected if isinstance(expected, list) else [expected]:
        arguments = call.get("arguments") if isinstance(call, dict) else None
        arguments = parsed(arguments, row.where) if isinstance(arguments, str) else arguments
        if not isinstance(arguments, dict) or not isinstance(call.get("name"), str):
            raise InputError(f"{row.where}: expected must be an object with a name and arguments (an object); mend it")
        wanted.append([call["name"], arguments])
    if not isinstance(tools, list) or not tools:
        raise InputError(f"{row.where}: tools must be a list of at least one; mend it")
    question = json.dumps({"messages": messages, "tools": tools}, ensure_ascii=False)
    yield Item(str(record.get("id", row.number)), question, (json.dumps(wanted, ensure_ascii=False),), 0)
