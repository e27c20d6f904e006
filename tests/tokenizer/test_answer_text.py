"""What an answer's text is made of, read back however it is cut."""

from hypothesis import given
from hypothesis import strategies as st

from babyllama.tokenizer.answers import Thoughts, answer_text, offered, system_text, without_thought
from babyllama.tokenizer.tools import read_answer

CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": "1"}}}
words = st.text("ab<>/thinк\n", max_size=12)
plain = st.text("ab你 ", min_size=1, max_size=6).map(lambda text: f"说{text}说")


def fed(text: str, size: int, inside: bool = False) -> tuple[str, str]:
    reader, thought, said = Thoughts(inside), "", ""
    for at in range(0, len(text), size):
        more = reader.feed(text[at : at + size], False)
        thought, said = thought + more[0], said + more[1]
    more = reader.feed("", True)
    return thought + more[0], said + more[1]


@given(thought=words, said=plain, size=st.integers(1, 9))
def test_a_thought_comes_out_however_the_text_is_cut(thought, said, size):
    text = answer_text({"role": "assistant", "content": said, "reasoning_content": thought})
    assert fed(text, size) == (thought, said) and without_thought(text) == said
    assert fed(text.removeprefix("<think>\n"), size, inside=True) == (thought, said)


@given(text=words.filter(lambda text: not text.lstrip().startswith("<think>")), size=st.integers(1, 9))
def test_a_text_without_a_thought_is_said(text, size):
    assert fed(text, size) == ("", text) and without_thought(text) == text


def test_a_thought_that_never_ends_is_all():
    assert fed("<think>\n甲</thi", 3) == ("甲</thi", "") and without_thought("<think>甲") == ""


@given(said=st.just("") | plain, thought=st.none() | plain, calls=st.lists(st.just(CALL), max_size=2))
def test_an_answer_is_read_as_it_was_written(said, thought, calls):
    message = {"role": "assistant", "content": said}
    message |= {} if thought is None else {"reasoning_content": thought}
    message |= {"tool_calls": calls} if calls else {}
    assert read_answer(answer_text(message)) == message


def test_what_a_prompt_offers():
    tools = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
    assert offered(f"{system_text('你好', tools)}<|user|>x") == {"f", "g"} and offered("f") == frozenset()
