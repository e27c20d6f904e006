"""Text in pieces and stop strings, against str.find on the text as it grows."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import CHATS, small_tokenizer, taught_model

from babyllama.infer.engine import Engine
from babyllama.infer.request import Event, Request
from babyllama.infer.sampling import Sampling
from babyllama.infer.text import Text, pieces
from babyllama.tokenizer.chat import render_chat

ALPHABET = "ab，。你😀 "


def fed(text: str, stop: list[str], finish: str = "cancelled", run: int = 1) -> tuple[list[str], Text]:
    """In events of `run` tokens."""
    tokenizer = small_tokenizer()
    tokens, found = tokenizer.encode(text), Text(tokenizer, stop)
    events = [Event(0, tokens[at : at + run]) for at in range(0, len(tokens), run)]
    events.append(Event(0, [tokenizer.eos_id] if finish == "stop" else [], finish))  # type: ignore[arg-type]
    return [found.feed(event) for event in events], found


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(ALPHABET, max_size=14), st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3),
       st.integers(1, 9))  # fmt: skip
def test_the_text_ends_before_the_first_stop_string(text, stop, run):
    parts, found = fed(text, stop)
    at_once, same = fed(text, stop, run=run)
    assert "".join(at_once) == "".join(parts)
    assert (same.finish, same.matched, same.tokens) == (found.finish, found.matched, found.tokens)
    # The first that is complete ends it; of several that end with the same token, the one that begins first.
    tokens = small_tokenizer().encode(text)
    grown = [small_tokenizer().decode(tokens[: n + 1]) for n in range(len(tokens))]
    grown = [part for part in grown if not part.endswith("\ufffd")]
    told = next((part for part in grown if any(word in part for word in stop)), None)
    ends = [] if told is None else [at for word in stop if (at := told.find(word)) >= 0]
    assert "".join(parts) == text[: min(ends, default=len(text))]
    assert found.finish == ("stop" if ends else "cancelled")
    if ends:
        assert found.matched in stop and text.startswith(found.matched, min(ends))


def test_nothing_is_held_back_that_cannot_begin_a_stop_string():
    parts, _ = fed("ababab", ["zab"])
    assert parts[-1] == "" and "".join(parts[:-1]) == "ababab"
    parts, found = fed("ab", ["bbb"], finish="stop")
    assert "".join(parts) == "ab" and found.finish == "stop" and found.matched is None


def test_half_a_character_is_no_text_where_the_tokens_end():
    """Of what a limit cut off; a client that has it gone on with sends the text back. Bytes that the model ended with
    itself are shown as what they are."""
    tokens = small_tokenizer().encode("好😀")
    for finish, shown in (("length", "好"), ("stop", "好\ufffd")):
        found = Text(small_tokenizer())
        assert found.feed(Event(0, tokens[:-1])) + found.feed(Event(0, (), finish)) == shown  # type: ignore[arg-type]


def test_a_stop_string_frees_the_row():
    question, answer = CHATS[0]
    tokenizer = small_tokenizer()
    engine = Engine(taught_model(), tokenizer.vocab_size)
    prompt = render_chat(tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True).tokens
    request = Request(prompt, Sampling(temperature=0.0), 40, {tokenizer.eos_id})
    whole, cut = Text(tokenizer), Text(tokenizer, ["高兴"])
    assert "".join(pieces(engine, request, whole)) == answer and whole.finish == "stop"
    assert whole.tokens == len(tokenizer.encode(answer)) + 1  # and the end token
    assert "".join(pieces(engine, request, cut)) == answer[: answer.index("高兴")] and cut.tokens < whole.tokens
    assert not engine.busy
