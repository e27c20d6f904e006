"""Published forms, written out by hand in miniature, → items; every fault of a file is one line."""

from __future__ import annotations

import json
import zipfile

import pytest

from babyllama.commands.evaluate import EvaluateRecipe
from babyllama.errors import InputError
from babyllama.evals import free_sources, sources
from babyllama.evals.items import Item, checked
from babyllama.evals.tasks import TaskChoice
from babyllama.recipe import load_recipe

CEVAL_VAL = (
    'id,question,A,B,C,D,answer\n0,下列属于税收原则的是____。,公平,"快,慢",大小,长短,A\n1,二加二等于____。,3,4,5,6,B\n'
)
CEVAL_DEV = "id,question,A,B,C,D,answer,explanation\n0,一加一等于____。,1,2,3,4,B,因为。\n"
CMMLU = ",Question,A,B,C,D,Answer\n0,产蛋最多的是,高邮鸭,北京鸭,樱桃谷鸭,绍鸭,D\n"


def items(reader, *records, subject="", least=2):
    rows = [sources.Row(f"f:{n}", subject, "", n, record) for n, record in enumerate(records, start=1)]
    return checked(((row.where, item) for row in rows for item in reader(row)), least)


def test_ceval_from_its_folder_its_zip_and_one_file(tmp_path):
    for name, text in (("val/law_val.csv", CEVAL_VAL), ("dev/law_dev.csv", CEVAL_DEV)):
        (tmp_path / "ceval" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ceval" / name).write_text(text, "utf-8")
    with zipfile.ZipFile(tmp_path / "exam.zip", "w") as archive:
        archive.write(tmp_path / "ceval/val/law_val.csv", "val/law_val.csv")
        archive.write(tmp_path / "ceval/dev/law_dev.csv", "dev/law_dev.csv")
    found = TaskChoice(name="ceval").items(tmp_path)
    assert found == TaskChoice(name="ceval", path=tmp_path / "exam.zip").items(None)
    first = found.asked[0]
    assert (first.group, first.options, first.answer) == ("law", ("公平", "快,慢", "大小", "长短"), 0)
    assert found.chance == 0.25 and found.examples["law"][0].question == "一加一等于____。"
    lines = [{"subject": "law", "id": 0, "question": "问", "A": "甲", "B": "乙", "C": "丙", "D": "丁", "answer": ""}]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    (item,) = TaskChoice(name="ceval", path=tmp_path / "test.jsonl", split="test").items(None).asked
    assert item.answer is None and item.group == "law"


def test_groups_are_set_as_in_a_recipe(tmp_path):
    lines = [{"subject": subject, "id": 0, "question": "问", "A": "甲", "B": "乙", "C": "丙", "D": "丁", "answer": "A"}
             for subject in ("law", "logic")]  # fmt: skip
    (tmp_path / "ceval_val.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    given = [f"model={tmp_path}", f"tasks=[{{name: ceval, groups: [logic], path: {tmp_path}}}]"]
    (choice,) = load_recipe(EvaluateRecipe, None, given).tasks
    assert [item.group for item in choice.items(None).asked] == ["logic"]


def test_cmmlu_has_capital_columns_and_its_split_in_the_folder(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "agronomy.csv").write_text(CMMLU, "utf-8")
    (item,) = TaskChoice(name="cmmlu", path=tmp_path).items(None).asked
    assert (item.group, item.answer, item.options[3]) == ("agronomy", 3, "绍鸭")


def test_parquet_as_the_hub_has_it(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "logic").mkdir()
    table = pyarrow.Table.from_pylist(
        [{"id": 7, "question": "问", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "C"}]
    )
    pyarrow.parquet.write_table(table, tmp_path / "logic" / "val-00000-of-00001.parquet")
    (item,) = TaskChoice(name="ceval", path=tmp_path).items(None).asked
    assert (item.id, item.group, item.answer) == ("logic/7", "logic", 2)


def test_other_forms():
    talk = [["男：你好。", "女：再见。"], [{"question": "谁先说？", "choice": ["男的", "女的"], "answer": "女的"}], "1"]
    (one,) = items(sources.c3, talk)
    assert one.question == "男：你好。\n女：再见。\n问题：谁先说？" and one.answer == 1
    (one,) = items(
        sources.chid, {"id": 3, "content": "他#idiom#，走了。", "candidates": ["一心一意", "半途而废"], "answer": 1}
    )
    assert one.question == "他" and one.options[1] == "半途而废，走了。" and one.answer == 1
    target = {"span1_text": "毛豆", "span2_text": "他"}
    (one,) = items(sources.cluewsc, {"idx": 5, "text": "毛豆说他饿。", "target": target, "label": "true"})
    assert one.options == ("是", "否") and one.answer == 0 and one.question.endswith("“他”指的是“毛豆”吗？")
    pair = {"sentence1": "他在家。", "sentence2": "他不在外面。", "label": "entailment", "id": 1}
    assert [one.answer for one in items(sources.ocnli, pair, {**pair, "label": "-", "id": 2})] == [0]
    mcq = {"question": "治感冒", "option": {"A": "水", "B": "药", "C": ""}, "answer": "B", "exam_class": "内科"}
    (one,) = items(sources.medical_exam, mcq)
    assert one.options == ("水", "药") and one.answer == 1 and one.group == "内科"
    assert items(sources.medical_exam, {**mcq, "answer": "AB"}) == ()
    agi = {"passage": "文。", "question": "选？", "options": ["(A)甲", "(B)乙"], "label": "B"}
    (one,) = items(sources.gaokao, agi, subject="gaokao-history")
    assert one.options == ("甲", "乙") and one.answer == 1 and one.question == "文。\n选？"


EXAM = {"id": 0, "question": "问", "A": "甲", "B": "乙", "C": "丙", "D": "丁", "answer": "A"}


@pytest.mark.parametrize(
    ("records", "fault"),
    [([{k: v for k, v in EXAM.items() if k != "C"}], "f:1: the column 'c' is missing; it has id, question"),
     ([EXAM, EXAM], r"f:2: the id '/0' is there already \(f:1\); ids must differ"),
     ([{**EXAM, "answer": "E"}], "f:1: the answer 'E' is not among the options A, B, C, D; mend it"),
     ([{**EXAM, "B": " "}], "f:1: option B is empty; mend it"), ([[1, 2]], "f:1: must be an object with named fields")],
)  # fmt: skip
def test_faults_of_records(records, fault):
    with pytest.raises(InputError, match=fault):
        items(sources.exam, *records)


def test_faults_of_files(tmp_path):
    (tmp_path / "val.jsonl").write_text(json.dumps(EXAM) + '\n{"question": \n', "utf-8")
    with pytest.raises(InputError, match=r"val\.jsonl:2: not valid JSON"):
        TaskChoice(name="ceval", path=tmp_path / "val.jsonl").items(None)
    (tmp_path / "val.jsonl").write_text(json.dumps(EXAM), "utf-8")
    with pytest.raises(InputError, match="ceval has no item in split test; there is val"):
        TaskChoice(name="ceval", path=tmp_path / "val.jsonl", split="test").items(None)
    (tmp_path / "bad.zip").write_bytes(b"PK no")
    with pytest.raises(InputError, match=r"bad\.zip: cannot be read as a \.zip"):
        TaskChoice(name="ceval", path=tmp_path / "bad.zip").items(None)
    with pytest.raises(InputError, match=r"ocnli: get it from github\.com/CLUEbenchmark/OCNLI"):
        TaskChoice(name="ocnli").items(None)
    with pytest.raises(ValueError, match="unknown task 'mmlu'; there are minimal_pairs"):
        TaskChoice(name="mmlu")


def test_a_sample_is_always_the_same(tmp_path):
    some = TaskChoice(name="arithmetic", max_items=20).items(None).asked
    assert some == TaskChoice(name="arithmetic", max_items=20).items(None).asked and len(some) == 20


def test_gsm8k_and_cmrc_in_all_their_forms():
    translated = {"question_zh": "几个？", "question": "?", "answer_only": "18", "answer": "x"}
    worked = {"question": "多少？", "answer": "先算。\n#### 1,200"}
    first, second = items(free_sources.gsm8k, translated, worked, least=1)
    assert (first.question, first.options, second.options) == ("几个？", ("18",), ("1,200",))
    row = {"id": "Q0", "context": "甲写了书。", "question": "谁？", "answers": ["甲", "甲", "作者甲"]}
    asked = {"id": "Q0", "question": "谁？", "answers": [{"text": "甲", "answer_start": 0}, {"text": "作者甲"}]}
    nested = {"paragraphs": [{"id": "D", "context": "甲写了书。", "qas": [asked]}]}
    hub = {**row, "answers": {"text": ["甲", "作者甲"], "answer_start": [0, 0]}}
    for record in (row, nested, hub):
        (item,) = items(free_sources.cmrc, record, least=1)
        assert item == Item("Q0", "甲写了书。\n问题：谁？", ("甲", "作者甲"), 0)


@pytest.mark.parametrize(("reader", "record", "fault"), [
    (free_sources.gsm8k, {"question": "?", "answer": "#### 无"}, "f:1: the answer '无' holds no number"),
    (free_sources.cmrc, {"context": "文", "question": "?", "answers": []}, "f:1: has no answer; mend it"),
    (free_sources.cmrc, {"context": "文", "answers": ["文"]}, "f:1: the column 'question' is missing"),
])  # fmt: skip
def test_faults_of_free_answers(reader, record, fault):
    with pytest.raises(InputError, match=fault):
        items(reader, record, least=1)


@pytest.mark.parametrize(
    ("table", "options", "answer"),
    [
        ("问题,A,B,答案\n地球是圆的？,对,错,A\n", ("对", "错"), 0),
        ("编号;题目;选项A;选项B;选项C;选项D;答案\n1;题;甲;乙;丙;;c\n", ("甲", "乙", "丙"), 2),
        ("题目\t选项A\t选项B\t选项C\t选项D\t选项E\t正确答案\n题\t甲\t乙\t丙\t丁\t戊\t戊\n", tuple("甲乙丙丁戊"), 4),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8-sig", "gbk"])
def test_own_tables_as_people_make_them(tmp_path, encoding, table, options, answer):
    (tmp_path / "常识_val.csv").write_text(table, encoding)
    found = TaskChoice(name="ceval", path=tmp_path).items(None)
    (item,) = found.asked
    assert (item.options, item.answer, item.group, found.chance) == (options, answer, "常识", 1 / len(options))


def test_a_number_is_an_option_too():
    (item,) = items(sources.exam, {"问题": "一减一？", "A": 2, "B": 1, "C": 0, "D": None, "答案": "0"})
    assert (item.options, item.answer) == (("2", "1", "0"), 2)


@pytest.mark.parametrize(
    ("table", "fault"),
    [("问题,A,B,C,D,答案\n题,甲,乙,,丁,A\n", "option C is empty"),
     ("问题,A,答案\n题,甲,A\n", "the column 'b' is missing"),
     ("问题,A,B,C,D,答案\n题,甲,乙,,,D\n", "the answer 'D' is not among the options A, B"),
     ("问题,A,B,答案\n题,,,A\n", "option A is empty")],
)  # fmt: skip
def test_holes_in_own_tables_are_told(tmp_path, table, fault):
    (tmp_path / "常识_val.csv").write_text(table, "utf-8")
    with pytest.raises(InputError, match=fault):
        TaskChoice(name="ceval", path=tmp_path).items(None)
