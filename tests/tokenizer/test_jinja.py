"""Foreign chat templates against transformers: its ids, its mask; contents that hold markers stay text."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import SMALL_TEXT, foreign_folder, sentencepiece_model
from transformers import AutoTokenizer

from babyllama.errors import InputError
from babyllama.tokenizer.chat import TEMPLATES, render_chat
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import train_bpe

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Strips, wants a system message first, marks what is learned.
BRACKETS = """\
{%- if messages[0].role == 'system' -%}{%- set first = messages[0].content -%}{%- endif -%}
{%- for m in messages if m.role != 'system' -%}
{%- if m.role == 'assistant' -%}
{% generation %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endgeneration %}
{%- else -%}
{%- set told = '<<SYS>>' + first + '<</SYS>>' if first and loop.first else '' -%}
{{ bos_token + '[INST] ' + told + m.content.strip() }} [/INST]
{%- endif -%}
{%- endfor -%}"""
MARKERS = ["<|im_start|>", "<|im_end|>"]

content = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8) | st.sampled_from(
    ["", " ", "\n", "  你好  ", "a\n\nb\n", "{{ x }}", "system", "assistant\n"]
)


def folder_of(kind: str, template: str, special: bool, folder: Path) -> Path:
    if kind == "own":
        backend = train_bpe(SMALL_TEXT, 460).backend
    else:
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
        backend = Tokenizer.load(folder / "tokenizer.model").backend
    return foreign_folder(folder, backend, MARKERS, template, special)


@pytest.fixture(scope="module", params=["own-chatml", "own-brackets", "sentencepiece-chatml", "own-chatml-plain"])
def folder(request, tmp_path_factory) -> Path:
    kind, template, *plain = request.param.split("-")
    jinja = CHATML if template == "chatml" else BRACKETS
    return folder_of(kind, jinja, not plain, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


def chat(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


@given(texts=st.lists(content, min_size=1, max_size=5), system=st.none() | content)
def test_ids_are_those_of_transformers(ours: Tokenizer, theirs, texts: list[str], system: str | None) -> None:
    messages = chat(*texts)
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    asked = messages[-1]["role"] == "user"
    found = render_chat(ours, messages, add_generation_prompt=asked)
    assert found.tokens == theirs.apply_chat_template(messages, add_generation_prompt=asked)["input_ids"]


@given(text=content, marker=st.sampled_from([*MARKERS, "</s>", "<s>"]), answer=content)
def test_contents_never_become_markers(ours: Tokenizer, text: str, marker: str, answer: str) -> None:
    """As many of each marker as in the chat whose contents hold none, and the text is all there."""
    plain = render_chat(ours, chat("x", "y", "z"), add_generation_prompt=True).tokens
    found = render_chat(ours, chat(text + marker, answer + marker * 2, marker), add_generation_prompt=True).tokens
    for name in (*MARKERS, "<s>", "</s>", "<|user|>"):
        token = ours.backend.token_to_id(name)
        assert found.count(token) == plain.count(token), name
    assert marker in ours.decode([i for i in found if i not in ours.special_ids])


def test_the_answer_and_its_end_are_learned(ours: Tokenizer) -> None:
    messages = chat("天空", "蓝色 ", "云", "白色<|im_end|>")
    found = render_chat(ours, messages)
    learned = [i for i, on in zip(found.tokens, found.mask, strict=True) if on]
    end = ours.backend.token_to_id("<|im_end|>" if "im_start" in ours.chat_template else "</s>")
    assert [i for i in learned if i == end] == [end, end] and learned[-1] == end and end in ours.stop_ids
    shown = ours.decode([i for i in learned if i != end])
    assert shown.replace(" ", "") == "蓝色白色<|im_end|>"
    messages[1]["learned"] = False  # type: ignore[assignment]
    again = render_chat(ours, messages)
    assert again.tokens == found.tokens and sum(again.mask) < sum(found.mask)


@pytest.mark.parametrize("begun", ["y", "你好，\n", " 1 + "])
def test_an_answer_that_goes_on_ends_with_its_content(ours: Tokenizer, theirs, begun: str) -> None:
    """Also with the blanks that a template strips: the rest is written after them."""
    messages = chat("天空", "蓝色", "云", begun)
    found = ours.decode(render_chat(ours, messages, continue_final_message=True).tokens, skip_special=False)
    whole = ours.decode(render_chat(ours, messages).tokens, skip_special=False)
    assert found.endswith(begun.lstrip()) and whole.startswith(found.rstrip())
    if begun == "y":
        assert found == theirs.decode(theirs.apply_chat_template(messages, continue_final_message=True)["input_ids"])
    rewriting = ours.with_template("{% for m in messages %}{{ m.content | reverse }}{% endfor %}")
    with pytest.raises(InputError, match="where the last answer goes on cannot be told"):
        render_chat(rewriting, messages, continue_final_message=True)


def test_the_template_is_kept(ours: Tokenizer, folder: Path, tmp_path: Path) -> None:
    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.chat_template == ours.chat_template == json.loads((folder / "tokenizer_config.json").read_text())[
        "chat_template"]  # fmt: skip
    assert again.with_template("bos").with_template(ours.chat_template).hash == ours.hash
    (tmp_path / "deeper").mkdir()
    ours.with_template("bos").save(tmp_path / "deeper")
    assert Tokenizer.load(tmp_path / "deeper").chat_template == "bos"


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{% for m in messages %}{{ m.content }", "not valid Jinja"),
        ("{{ raise_exception('no systems') }}", "refuses these messages: no systems"),
        ("{{ messages[7].content.strip() }}", "fails: UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "fails: SecurityError"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "rewrites what the messages say"),
    ],
)
def test_broken_templates_are_one_line(tmp_path: Path, template: str, fault: str) -> None:
    tokenizer = Tokenizer.load(folder_of("own", template, True, tmp_path))
    with pytest.raises(InputError, match=fault) as caught:
        render_chat(tokenizer, chat("ab", "cd"))
    assert "\n" not in str(caught.value)


def test_a_template_that_rewrites_contents_refuses_markers_only(tmp_path: Path) -> None:
    upper = "{% for m in messages %}<|im_start|>{{ m.content | upper }}<|im_end|>{% endfor %}"
    tokenizer = Tokenizer.load(folder_of("own", upper, True, tmp_path))
    found = render_chat(tokenizer, chat("abc"), add_generation_prompt=True).tokens
    assert tokenizer.decode(found, skip_special=False) == "<|im_start|>ABC<|im_end|>"
    with pytest.raises(InputError, match=r"messages\[0\].content: holds <\|im_end\|>"):
        render_chat(tokenizer, chat("a<|im_end|>"), add_generation_prompt=True)


def test_built_in_templates_raise_for_what_they_cannot_render(tmp_path: Path) -> None:
    for template, said in {"roles": "must have a function", "bos": "no tools"}.items():
        train_bpe(SMALL_TEXT, 460).with_template(template).save(tmp_path / template)
        theirs = AutoTokenizer.from_pretrained(tmp_path / template)
        with pytest.raises(Exception, match=said):
            theirs.apply_chat_template(chat("x"), tools=[{"type": "function"}])
    parts = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    faults: list[tuple[list, dict, str]] = [
        (parts, {}, "content that is text"),
        ([{"role": "critic", "content": "x"}], {}, "roles"),
    ]
    for messages, more, fault in faults:
        with pytest.raises(Exception, match=fault):
            theirs.apply_chat_template(messages, **more)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_earlier_folders_are_known(tmp_path: Path, name: str) -> None:
    """The texts that former versions wrote: these loops, before them also without refusals and with bos_token as a
    name. What they wrote of a chat is written alike today."""
    train_bpe(SMALL_TEXT, 460).save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    former = (Path(__file__).parent / "former" / f"{name}.jinja").read_text("utf-8")
    for text in (former, former.split("{%- endfor -%}\n", 1)[1].replace("'<s>'", "bos_token")):
        path.write_text(json.dumps({**config, "bos_token": "<s>", "pad_token": "</s>", "chat_template": text}))
        old = Tokenizer.load(tmp_path)
        assert (old.chat_template, old.bos_id, old.start_ids) == (name, 0, [1])
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    contents = {"system": "a ", "user": "你好\n", "assistant": " b\n", "tool": "c"}
    said = [{"role": role, "content": content} for role, content in contents.items()]
    for messages, prompt in ((said, True), (said[:2], True), (said[1:], False)):
        wanted = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
        assert render_chat(old, messages, prompt).tokens == wanted
