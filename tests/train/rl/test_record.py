"""What rollouts.jsonl says of an answer, token by token."""

from __future__ import annotations

import math

from small import SMALL_TEXT

from babyllama.data.streams.prompts import Prompt
from babyllama.tokenizer.train import train_bpe
from babyllama.train.rl.agents import Played
from babyllama.train.rl.groups import Group
from babyllama.train.rl.marks import Marked
from babyllama.train.rl.record import Pieces, lines_of

TOKENIZER = train_bpe(SMALL_TEXT, 400)
END, PIECES = TOKENIZER.eos_id, Pieces(TOKENIZER)


def test_pieces_put_together_are_the_text():
    text = "你好，龘😀 fox\n\n好"
    tokens = [*TOKENIZER.encode(text), END]
    found = PIECES(tokens)
    assert len(found) == len(tokens) > len(text) and "".join(found) == text + TOKENIZER.decode(
        [END], skip_special=False
    )
    broken = PIECES(TOKENIZER.encode("龘")[:-1])
    assert "".join(broken) == "\ufffd" and broken[:-1] == [""] * (len(broken) - 1)
    assert PIECES([]) == []


def test_pieces_that_are_known_are_what_a_stream_gives():
    """Token by token, of texts that begin, break off and go on after a marker anywhere."""
    text = "你好，龘😀 fox\n\n好 你好 😀"
    tokens = TOKENIZER.encode(text)
    for start in range(len(tokens)):
        some = [*tokens[start:], END, *tokens[: start + 1]]
        stream, wanted = TOKENIZER.stream(), []
        for token in some:
            special = TOKENIZER.decode([token], skip_special=False)
            wanted.append(stream.flush() + special if token == END else stream.push(token))
        wanted[-1] += stream.flush()
        assert PIECES(some) == PIECES(some) == Pieces(TOKENIZER)(some) == wanted


def test_tools_words_have_no_figures_of_their_own():
    tokens = [*TOKENIZER.encode("好"), *TOKENIZER.encode("你"), END]
    played = Played(tokens, [True, False, True], [END], True, [-0.123456, -2.0], 1, 1)
    silent = Played(tokens[:1], [True], tokens[:1], False, [])
    group = Group(0, Prompt(TOKENIZER.encode("好"), TOKENIZER.encode("你")), [played, silent],
                  [Marked({"exact": 1.0}, 1.0), Marked({}, math.nan, "raised")])  # fmt: skip
    first, second = lines_of(group, PIECES, True, [0.5, 0.0], [[0.25, 7.0, 0.333333], [0.0]])
    assert first["logprobs"] == [-0.1235, None, -2.0] and first["advantages"] == [0.25, None, 0.3333]
    assert first["pieces"][:2] == ["好", "你"] and (first["calls"], first["advantage"]) == (1, 0.5)
    assert "logprobs" not in second and (second["reward"], second["fault"]) == (None, "raised")
    (plain, _) = lines_of(group, PIECES, False, [0.5, 0.0])
    assert "advantages" not in plain and "calls" not in plain and plain["answer"] == "好你"
