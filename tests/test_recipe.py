"""Recipes: what wins, what is refused and how the refusal reads, and that a dumped recipe loads as the same one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, field_validator

from babyllama import recipe as module
from babyllama.errors import InputError
from babyllama.plain_yaml import parse_yaml
from babyllama.recipe import Recipe, dump_recipe, load_recipe


class Wsd(Recipe):
    kind: Literal["wsd"] = "wsd"
    warmup: int = 10
    floor: float = 0.1


class Cosine(Recipe):
    kind: Literal["cosine"] = "cosine"
    warmup: int = 20
    cycles: float = 0.5


class Corpus(Recipe):
    path: Path
    weight: float = 1.0


class Example(Recipe):
    name: str = "base"
    steps: int = Field(100, ge=1)
    lr: float = 1e-3
    shuffle: bool = True
    context: int | None = None
    schedule: Annotated[Wsd | Cosine, Field(discriminator="kind")] = Wsd()
    corpora: tuple[Corpus, ...] = ()
    prompts: tuple[str, ...] = ()


class Several(Recipe):
    schedules: tuple[Annotated[Wsd | Cosine, Field(discriminator="kind")], ...] = ()


def load(tmp_path, text, *overrides, kind=Example):
    path = tmp_path / "r.yaml"
    path.write_text(text, "utf-8")
    return load_recipe(kind, str(path), overrides)


def refusal(tmp_path, text, *overrides, kind=Example):
    with pytest.raises(InputError) as error:
        load(tmp_path, text, *overrides, kind=kind)
    return str(error.value)


# ── what wins ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_defaults_then_file_then_overrides(tmp_path):
    got = load(tmp_path, "steps: 5\nlr: 0.5\n", "lr=0.25", "lr=0.125")
    assert (got.name, got.steps, got.lr) == ("base", 5, 0.125)
    assert load_recipe(Example) == Example()


def test_a_nested_override_keeps_its_neighbours(tmp_path):
    got = load(tmp_path, "schedule: {warmup: 3, floor: 0.2}\n", "schedule.floor=0.3")
    assert got.schedule == Wsd(warmup=3, floor=0.3)


@pytest.mark.parametrize(("text", "value"), [("3e-4", 3e-4), ("1E5", 1e5), ("-2.5e+3", -2500.0), (".5", 0.5),
                                             ("1_0e2", 1000.0), ("7", 7.0)])  # fmt: skip
def test_numbers_as_people_write_them(tmp_path, text, value):
    assert load(tmp_path, f"lr: {text}\n").lr == value
    got = load_recipe(Example, None, [f"lr={text}"]).lr
    assert type(got) is float
    assert got == value


@pytest.mark.parametrize(("text", "value"), [("False", False), ("false", False), ("True", True), ("no", False)])
def test_false_is_false(tmp_path, text, value):
    """Known fault 20: `type=bool` flags for which "False" is true, and files that override the command line."""
    assert load(tmp_path, "shuffle: true\n", f"shuffle={text}").shuffle is value
    assert load(tmp_path, f"shuffle: {text}\n").shuffle is value


@pytest.mark.parametrize("text", ["'False'", '"true"', "0", "1", "nope", ""])
def test_only_a_boolean_is_a_boolean(tmp_path, text):
    assert refusal(tmp_path, "", f"shuffle={text}").startswith("shuffle: ")


def test_dates_and_chinese_are_text(tmp_path):
    assert load(tmp_path, "name: 2024-01-31\n").name == "2024-01-31"
    assert load(tmp_path, "name: 春天来了：好\n", "prompts=[你好, 再见]").prompts == ("你好", "再见")
    assert load(tmp_path, "\ufeffname: 带BOM\n").name == "带BOM"


def test_times_and_leading_zeros_are_no_numbers_of_another_base(tmp_path):
    """To YAML 1.1 12:30 is 750 and 017 is 15."""
    assert load(tmp_path, "prompts: [12:30, 007, 1:30.5]\n", "name=017").prompts == ("12:30", "007", "1:30.5")
    assert refusal(tmp_path, "", "steps=017") == 'steps: input should be a valid integer, got "017"'
    assert "'5:10' lacks a blank after its colon" in refusal(tmp_path, "", "corpora=[{5:10}]")


AS_TYPED = ['他说"好"', '"好"是什么意思', '"好" 和 "坏"', '"', "it's", "a: b # c", "", "null", "{x"]


@pytest.mark.parametrize(("typed", "text"), [*((t, t) for t in AS_TYPED), ('"a: b"', "a: b"), ("'2024'", "2024")])
def test_text_is_taken_as_it_is_typed(typed, text):
    assert load_recipe(Example, None, [f"name={typed}"]).name == text


class Places(Recipe):
    out: Path
    maybe: Path | None = Path("x")
    many: tuple[Path, ...] = ()
    corpora: tuple[Corpus, ...] = ()


def test_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "r.yaml").write_text("out: ~/a\nmany: [~/b, c~, ./c/~]\ncorpora: [{path: ~/d}]\n", "utf-8")
    got = load_recipe(Places, "~/r.yaml", ["maybe=~"])
    assert (got.out, got.maybe, got.corpora[0].path) == (tmp_path / "a", tmp_path, tmp_path / "d")
    assert got.many == (tmp_path / "b", Path("c~"), Path("c/~"))
    assert load_recipe(Places, None, ["out=a", "maybe=null"]).maybe is None


def test_paths_that_cannot_be_meant():
    for typed, part in (("out=~nobody-is-called-so/x", "no home folder"), ("out=", "out: is empty; give a path")):
        with pytest.raises(InputError, match=part):
            load_recipe(Places, None, [typed])


def test_list_items_by_index(tmp_path):
    text = "corpora: [{path: a}, {path: b, weight: 2.0}]\nprompts: [x, y]\n"
    got = load(tmp_path, text, "corpora.1.weight=3", "corpora.0.path=c", "prompts.1=z")
    assert got.corpora == (Corpus(path=Path("c")), Corpus(path=Path("b"), weight=3.0))
    assert got.prompts == ("x", "z")


@pytest.mark.parametrize("override", ["prompts.2=z", "prompts.-1=z", "prompts.x=z", "prompts.²=z", "corpora.9.path=z"])
def test_bad_list_index(tmp_path, override):
    said = refusal(tmp_path, "corpora: [{path: a}]\nprompts: [x, y]\n", override)
    assert said.startswith(f"override {override.split('=')[0]}: ")
    assert "must be an index below" in said


def test_overriding_inside_text_is_refused_not_a_crash(tmp_path):
    assert "prompts.0: " in refusal(tmp_path, "prompts: [x]\n", "prompts.0.deep=1")


def test_an_override_does_not_reach_an_alias(tmp_path):
    text = "corpora:\n- &one {path: a}\n- *one\n"
    assert [c.weight for c in load(tmp_path, text, "corpora.0.weight=5").corpora] == [5.0, 1.0]


def test_merge_keys(tmp_path):
    assert load(tmp_path, "schedule: {<<: {warmup: 4, floor: 0.4}, floor: 0.3}\n").schedule == Wsd(warmup=4, floor=0.3)


@pytest.mark.parametrize("override", ["steps", "=3", ""])
def test_an_override_needs_an_equals_sign(override):
    with pytest.raises(InputError, match=r"must look like key\.path=value"):
        load_recipe(Example, None, [override])


# ── unions by kind ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_default_kind_need_not_be_named(tmp_path):
    assert load(tmp_path, "schedule: {warmup: 7}\n").schedule == Wsd(warmup=7)


def test_another_kind_brings_its_own_defaults(tmp_path):
    """The default's values (warmup: 10) must not leak into the other kind."""
    assert load(tmp_path, "schedule: {kind: cosine}\n").schedule == Cosine()
    assert load(tmp_path, "", "schedule.kind=cosine", "schedule.cycles=2").schedule == Cosine(cycles=2.0)


def test_wrong_kind_lists_the_kinds(tmp_path):
    said = refusal(tmp_path, "schedule: {kind: cosin}\n")
    assert said.endswith("r.yaml: schedule.kind: there is no 'cosin'; did you mean cosine? there are wsd, cosine")


def test_the_name_of_a_kind_stands_for_it(tmp_path):
    assert load(tmp_path, "schedule: cosine\n").schedule == Cosine()
    assert load(tmp_path, "", "schedule=cosine").schedule == Cosine()
    assert load(tmp_path, "schedules: [wsd, {kind: cosine, cycles: 1.0}]\n", kind=Several).schedules == (
        Wsd(), Cosine(cycles=1.0))  # fmt: skip
    assert refusal(tmp_path, "", "schedule=cosin") == (
        "schedule: there is no 'cosin'; did you mean cosine? there are wsd, cosine")  # fmt: skip


def test_what_is_set_over_a_file_is_no_fault_of_the_files(tmp_path):
    assert refusal(tmp_path, "lr: 0.1\n", "steps=0").startswith("steps: ")
    assert "r.yaml: steps: " in refusal(tmp_path, "steps: 0\n", "lr=0.1")


def test_a_kind_set_over_a_recipe_of_another_kind(tmp_path):
    """What the recipe says of the other kind is refused with what to write, which then leaves it out."""
    recipe = "schedule: {kind: wsd, warmup: 7, floor: 0.2}\n"
    said = refusal(tmp_path, recipe, "schedule.kind=cosine")
    assert said.endswith("schedule.floor: the recipe gives it for another kind; to leave out all that it says of "
                         "schedule, write schedule=cosine in place of schedule.kind=cosine")  # fmt: skip
    assert load(tmp_path, recipe, "schedule=cosine", "schedule.cycles=2").schedule == Cosine(cycles=2.0)
    assert "belongs to kind wsd" in refusal(tmp_path, recipe, "schedule=cosine", "schedule.floor=0.3")
    assert "belongs to kind wsd" in refusal(tmp_path, "", "schedule.kind=cosine", "schedule.floor=0.3")


def test_a_key_of_the_other_kind_is_unknown(tmp_path):
    said = refusal(tmp_path, "schedule: {kind: cosine, floor: 0.1}\n")
    # without pydantic's own tag in the path
    assert said.endswith("r.yaml: schedule.floor: belongs to kind wsd; this one has cycles, kind, warmup")
    said = refusal(tmp_path, "schedules: [{kind: wsd}, {kind: cosine, floor: 0.1}]\n", kind=Several)
    assert said.endswith("schedules.1.floor: belongs to kind wsd; this one has cycles, kind, warmup")


def test_a_name_that_no_file_can_have():
    for name in ("x" * 256, "春" * 86, "a\\0b"):
        with pytest.raises(InputError, match=r"^path: no file can have this name: "):
            load_recipe(Corpus, None, [f'path="{name}"'])
    assert load_recipe(Corpus, None, ["path=" + "春" * 85]).path.name == "春" * 85


# ── what is refused ────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stesp: 3\n", "r.yaml: stesp: unknown key; did you mean steps?"),
        ("schedule: {warmpu: 3}\n", "r.yaml: schedule.warmpu: unknown key; did you mean schedule.warmup?"),
        ("corpora: [{path: a}, {path: b, wieght: 1}]", "corpora.1.wieght: unknown key; did you mean corpora.1.weight?"),
        ("corpora: [{weight: 1}]\n", "r.yaml: corpora.0.path: this key must be given"),
        ("zzz: 1\n", "r.yaml: zzz: unknown key; known keys: context, corpora"),
        ("steps: many\n", 'r.yaml: steps: input should be a valid integer, got "many"'),
        ("steps: 1e3\n", "r.yaml: steps: input should be a valid integer, got 1000.0"),
        ("steps: 0\n", "r.yaml: steps: input should be greater than or equal to 1, got 0"),
        ("lr: '3e-4'\n", 'r.yaml: lr: input should be a valid number, got "3e-4"'),
        ("lr: .nan\n", "r.yaml: lr: input should be a finite number"),
        ("lr: .inf\n", "r.yaml: lr: input should be a finite number"),
        ("name: 5\n", "r.yaml: name: input should be a valid string, got 5"),
        ("prompts: x\n", "r.yaml: prompts: "),
        ("schedule: 5\n", "r.yaml: schedule: "),
        ("[1, 2]\n", "r.yaml: a recipe is a mapping of keys to values, not a list"),
        ("name: !!set {a}\n", "not JSON serializable"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, text, said):
    got = refusal(tmp_path, text)
    assert said in got
    assert "\n" not in got


def test_every_fault_has_its_own_line(tmp_path):
    lines = refusal(tmp_path, "steps: x\nstesp: 1\nlr: y\n").splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == ["lr", "steps", "stesp"]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("steps: 1\nlr: 2\nsteps: 3\n", ":3:1: ", "key 'steps' is given twice"),
        ("schedule:\n  warmup: 1\n  warmup: 1\n", ":3:3: ", "key 'warmup' is given twice"),
        ("steps: 1\nname: [a, b\nlr: 2\n", ":3:3: ", "not valid YAML"),
        ("steps: 1\n\tlr: 2\n", ":2:1: ", "not valid YAML"),
        ("name: *nobody\n", ":1:7: ", "undefined alias"),
        ("? [a]\n: 1\n", ":1:3: ", "a key must be one word"),
        ("name: !!python/object/apply:os.getcwd []\n", ":1:7: ", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", ":2:1: ", "not valid YAML"),
    ],
)
def test_bad_yaml_has_a_place(tmp_path, text, where, what):
    said = refusal(tmp_path, text)
    assert said.startswith(f"{tmp_path / 'r.yaml'}{where}")
    assert what in said
    assert "\n" not in said


@pytest.mark.parametrize("text", ["[{path:my.jsonl, kind: chat}]", "{kind:rtn}", "{deep: [{a: {path:x}}]}"])
def test_a_colon_without_a_blank_is_told_as_what_it_is(text):
    """YAML takes it for one long key without a value."""
    with pytest.raises(InputError, match=r"^r: '(path|kind):[\w.]+' lacks a blank after its colon; write \w+: "):
        parse_yaml(text, "r")


@pytest.mark.parametrize(("text", "said"), [
    ("[{path: *.jsonl}]", r"what begins with \* needs quotes"), ("*all", r"what begins with \* needs quotes"),
    ("{a: &.x}", "what begins with & needs quotes"), ("[@me]", "put what begins so into quotes"),
    ("a:\n\tb: 1", "indent with blanks"), ("[{path: a}，{path: b}]", "write , in place of ，"),
    ("{path：a.jsonl}", "'path：a.jsonl' has a full-width colon; write path: a.jsonl"),
])  # fmt: skip
def test_what_yaml_takes_for_something_else_is_told_with_its_remedy(text, said):
    with pytest.raises(InputError, match=said) as error:
        parse_yaml(text, "r")
    assert "\n" not in str(error.value)


def test_what_is_no_such_colon(tmp_path):
    for text in ("{a: null}", "{hf://o/r/x.jsonl}", "{'a b:c': null}", "[a:b]", "a:b", "{a:b: 1}"):
        parse_yaml(text, "r")


@pytest.mark.parametrize("text", ["name: a\x01b\n", "steps: !!int many\n"])
def test_other_yaml_faults_are_one_line(tmp_path, text):
    said = refusal(tmp_path, text)
    assert said.startswith(f"{tmp_path / 'r.yaml'}: not valid YAML: ")
    assert "\n" not in said


def test_bad_yaml_in_an_override():
    with pytest.raises(InputError, match=r"^override prompts:1:\d+: not valid YAML"):
        load_recipe(Example, None, ["prompts=[a"])


def test_invalid_utf8(tmp_path):
    (tmp_path / "r.yaml").write_bytes("name: 好".encode("gbk"))
    with pytest.raises(InputError, match=r"r\.yaml: not valid UTF-8 at byte 6$"):
        load_recipe(Example, str(tmp_path / "r.yaml"))


def test_recipes_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Example().steps = 3  # type: ignore[misc]


# ── bundled names ──────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def bundled(tmp_path, monkeypatch):
    (tmp_path / "package" / "quick").mkdir(parents=True)
    (tmp_path / "package" / "quick" / "pretrain.yaml").write_text("steps: 7\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(module, "BUNDLED", tmp_path / "package")
    monkeypatch.chdir(tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["quick/pretrain", "quick/pretrain.yaml"])
def test_bundled_name(bundled, name):
    assert load_recipe(Example, name).steps == 7


def test_a_file_of_ones_own_comes_first(bundled):
    Path("quick").mkdir()
    Path("quick/pretrain.yaml").write_text("steps: 8\n")
    assert load_recipe(Example, "quick/pretrain.yaml").steps == 8


@pytest.mark.parametrize("name", ["quick/pretrian", "pretrain", "quick/pretrain.yml"])
def test_unknown_name_says_which_is_near(bundled, name):
    with pytest.raises(
        InputError, match=rf"^{name}: no such recipe file; did you mean quick/pretrain\? `babyllama rec"
    ):
        load_recipe(Example, name)
    with pytest.raises(InputError, match=r"^my: no such recipe file; `babyllama recipes` lists"):
        load_recipe(Example, "my")


class Deep(Recipe):
    plan: Example = Field(examples=["plan.steps=5"])
    other: Example = Example()


@pytest.mark.parametrize(("typed", "said"), [
    (["lr=1"], "lr: unknown key; did you mean plan.lr or other.lr?"),
    (["plan.stesp=1"], "plan.stesp: unknown key; did you mean plan.steps?"),
    (["plan.rompt=a"], "plan.rompt: unknown key; did you mean plan.prompts?"),
    (["plan.text=9"], "plan.text: unknown key; did you mean plan.context?"),
    (["shuffel=true"], "shuffel: unknown key; did you mean plan.shuffle or other.shuffle?"),
    (["pathh=a"], "pathh: unknown key; did you mean plan.corpora.0.path or other.corpora.0.path?"),
    (["zzz=1"], "zzz: unknown key; known keys: other, plan"),
    ([], "plan: this key must be given; write plan.steps=5"),
    (["plan.corpora=[{}]"], "plan.corpora.0.path: this key must be given; write plan.corpora.0.path=…"),
])  # fmt: skip
def test_near_misses_and_what_to_write(typed, said):
    with pytest.raises(InputError) as error:
        load_recipe(Deep, None, typed)
    assert said in str(error.value).splitlines()


class Silent(Recipe):
    size: int = 2

    @field_validator("size")
    @classmethod
    def _even(cls, size: int) -> int:
        if size % 2:
            raise AssertionError  # as `assert` does outside of pytest
        return size


def test_a_check_without_a_word_still_names_key_and_value():
    with pytest.raises(InputError, match=r"^size: not allowed, got 3$"):
        load_recipe(Silent, None, ["size=3"])


# ── dump → load ────────────────────────────────────────────────────────────────────────────────────────────────────
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "3e-4",
        "1_0",
        "1e5",
        ".5",
        "no",
        "null",
        "~",
        "2024-01-31",
        "12:30:00",
        "0x1F",
        "=",
        "<<",
        "- a",
        "#",
        "你好",
        " ",
    ]
)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
SCHEDULE = st.builds(Wsd, warmup=st.integers(), floor=NUMBER) | st.builds(Cosine, warmup=st.integers(), cycles=NUMBER)
EXAMPLES = st.builds(
    Example, name=TEXT, steps=st.integers(1, 1 << 62), lr=NUMBER, shuffle=st.booleans(),
    context=st.none() | st.integers(), schedule=SCHEDULE, prompts=st.lists(TEXT, max_size=3).map(tuple),
    corpora=st.lists(st.builds(Corpus, path=st.sampled_from([Path("a/b"), Path("语料/甲.jsonl")]), weight=NUMBER),
                     max_size=2).map(tuple))  # fmt: skip


@pytest.mark.parametrize("text", ["\x85", "a\x85b", "\u2028", "一\u2029 二", "\r", "\ufeff", "\xa0"])
def test_unusual_white_space_survives_dumping(tmp_path, text):
    (tmp_path / "dumped.yaml").write_bytes(dump_recipe(Example(name=text)).encode())
    assert load_recipe(Example, str(tmp_path / "dumped.yaml")).name == text


@settings(max_examples=200, deadline=None)
@given(EXAMPLES)
def test_dump_then_load_is_the_same_recipe(tmp_path_factory, example):
    text = dump_recipe(example)
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_bytes(text.encode())
    again = load_recipe(Example, str(path))
    assert again == example
    assert math.copysign(1, again.lr) == math.copysign(1, example.lr)
    # any YAML reader, not only ours, finds the same text values
    assert yaml.safe_load(text)["name"] == example.name


@pytest.mark.parametrize(
    ("given", "text"), [("2024", "2024"), ("a: b", "a: b"), ("no", "no"), ("'2024'", "2024"), ("", "")]
)
def test_text_fields_take_the_text_as_it_stands(given, text):
    class Inner(Recipe):
        words: str = ""

    class Asks(Recipe):
        prompt: str = ""
        inner: Inner = Inner()

    recipe = load_recipe(Asks, None, [f"prompt={given}", f"inner.words={given}"])
    assert recipe.prompt == text and recipe.inner.words == text
