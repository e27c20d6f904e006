"""What an answer is worth, without a judge: frozen values, each a pure function of one answer → a number, 1 at best.

Not here: how several add up (marks.py), rewards by a model (judge.py), which answers are drawn (groups.py), what
follows from a reward (losses/policy.py), forms of verse (verse.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from babyllama.atomic import parse_json
from babyllama.errors import InputError, cause
from babyllama.marking import exact, last_number
from babyllama.recipe import Recipe
from babyllama.train.rl.verse import form, lines_of, rhymed

_HANZI = re.compile(r"[\u4e00-\u9fff]+")
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class Answer(NamedTuple):
    """One answer to be marked: texts without special tokens and thoughts. `ended`: by itself, not because room ran out.

    `calls`: of tools, before the text; `answered`: how many of them could be. `tokens`: of prompt and answer, as the
    model read and wrote them.
    """

    prompt: str
    text: str
    reference: str
    ended: bool = True
    calls: int = 0
    answered: int = 0
    tokens: tuple[int, ...] = ()


class Reward(Recipe):
    """`weight`: what its value is multiplied with; below 0 it is a punishment."""

    weight: float = Field(default=1.0, description="what its marks are multiplied by")

    @property
    def name(self) -> str:
        """Its kind, by which it is logged."""
        return str(getattr(self, "kind", type(self).__name__.lower()))

    def check(self) -> None:
        """Raise InputError where something that it needs is missing; called once, before the training."""

    def ahead(self, answers: Sequence[Answer]) -> None:
        """Before these are marked one by one: what can be done for all at once."""

    def __call__(self, answer: Answer) -> float:
        raise NotImplementedError


class Exact(Reward):
    """The answer is the reference, but for white space at the ends."""

    kind: Literal["exact"] = "exact"

    def __call__(self, answer: Answer) -> float:
        return float(exact(answer.text, answer.reference))


class Number(Reward):
    """The last number of the answer is the reference's last."""

    kind: Literal["number"] = "number"

    def __call__(self, answer: Answer) -> float:
        wanted = last_number(answer.reference)
        return float(bool(wanted) and last_number(answer.text) == wanted)


class Poem(Reward):
    """A poem's form: as many lines as asked for and of that many characters (half of the value, by the share of lines
    that fit), and even lines that rhyme (the other half, by the share that does; needs pypinyin)."""

    kind: Literal["poem"] = "poem"
    lines: int | None = Field(default=None, ge=2, description="default: as the reference has")
    characters: int | None = Field(default=None, ge=1, description="of a line, 5 or 7; default: as the reference has")
    rhyme: bool = Field(default=True, description="whether even lines have to rhyme")

    def check(self) -> None:
        """pypinyin is there."""
        if self.rhyme:
            rhymed(["春眠不觉晓", "处处闻啼鸟"])

    def __call__(self, answer: Answer) -> float:
        like = lines_of(answer.reference)
        lines = self.lines or len(like)
        characters = self.characters or max(map(len, like), default=0)
        found = lines_of(answer.text)
        fit = form(found, lines, characters)
        return (fit + rhymed(found[:lines])) / 2 if self.rhyme else fit


class IdiomChain(Reward):
    """成语接龙: a known idiom that begins with the last character of the prompt's last one. Half the value for four
    characters that begin so and are no known idiom; none for the prompt's own idiom."""

    kind: Literal["idiom_chain"] = "idiom_chain"
    words: Path | None = Field(default=None, description="known idioms, one a line; default: the corpus idioms'")

    def check(self) -> None:
        """The list can be read."""
        known_idioms(self.words)

    def __call__(self, answer: Answer) -> float:
        said = _HANZI.findall(answer.text)
        asked = [word for word in _HANZI.findall(answer.prompt) if len(word) == 4]
        if not said or not asked or said[0][0] != asked[-1][-1] or said[0] == asked[-1]:
            return 0.0
        if len(said) > 1:  # one idiom is asked for, not a choice of them
            return 0.0
        return 1.0 if said[0] in known_idioms(self.words) else 0.5 * (len(said[0]) == 4)


@lru_cache(maxsize=4)
def known_idioms(path: Path | None) -> frozenset[str]:
    """Of a file, or those of the embedded corpus."""
    if path is None:
        from babyllama.data.sources.knowledge import idiom_words

        return frozenset(idiom_words())
    try:
        words = frozenset(path.read_text("utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"rewards: words: {path} cannot be read ({cause(error)}); give a text file, one idiom a line"
                         ) from None  # fmt: skip
    if not words:
        raise InputError(f"rewards: words: {path} is empty; give a text file, one idiom a line")
    return words


class Json(Reward):
    """Valid JSON that says what the reference says, whatever its order and blanks; a third of the value where it is
    valid but says something else. A reference that is no JSON asks for validity alone."""

    kind: Literal["json"] = "json"

    def __call__(self, answer: Answer) -> float:
        said, wanted = _json(answer.text), _json(answer.reference)
        if said is None:
            return 0.0
        return 1.0 if wanted is None or said == wanted else 1 / 3


def _json(text: str) -> tuple[Any] | None:
    """In a tuple, since null is a value too."""
    try:
        return (parse_json(text),)
    except ValueError:
        return None


class ToolCall(Reward):
    """The same tools as the reference calls, in its order, with the same arguments; of each a third for a call of the
    right form, a third for the name, a third for the arguments. Where it calls none, none may be called."""

    kind: Literal["tool_call"] = "tool_call"

    def __call__(self, answer: Answer) -> float:
        said, wanted = (_CALL.findall(text) for text in (answer.text, answer.reference))
        if not wanted:
            return float(not said)
        pairs = zip(said, wanted, strict=False)
        return sum(map(_alike, pairs)) / max(len(said), len(wanted))


def _alike(pair: tuple[str, str]) -> float:
    said, wanted = (found[0] if (found := _json(part)) else None for part in pair)
    if not (isinstance(said, dict) and isinstance(wanted, dict) and isinstance(said.get("name"), str)):
        return 0.0
    name = said["name"] == wanted.get("name")
    return (1 + name + (name and said.get("arguments") == wanted.get("arguments"))) / 3


class ValidCalls(Reward):
    """The share of its calls that the tools could answer; a call in its last words, which was none, counts as one that
    they could not. 1 where nothing was called."""

    kind: Literal["valid_calls"] = "valid_calls"

    def __call__(self, answer: Answer) -> float:
        calls = answer.calls + answer.text.count("<tool_call>")
        return answer.answered / calls if calls else 1.0


class Ends(Reward):
    """The answer ends by itself."""

    kind: Literal["ends"] = "ends"

    def __call__(self, answer: Answer) -> float:
        return float(answer.ended)


class Repetition(Reward):
    """The share of its runs of n characters that are new: 1 where none comes twice."""

    kind: Literal["no_repetition"] = "no_repetition"
    n: int = Field(default=4, ge=1, description="characters of a run")

    def __call__(self, answer: Answer) -> float:
        runs = [answer.text[i : i + self.n] for i in range(len(answer.text) - self.n + 1)]
        return len(set(runs)) / len(runs) if runs else 1.0


class Length(Reward):
    """1 where the answer has `low` to `high` characters; below it falls to 0 at none, above to 0 at twice `high`."""

    kind: Literal["length"] = "length"
    low: int = Field(default=0, ge=0, description="characters at least")
    high: int = Field(ge=1, description="characters at most")

    def __call__(self, answer: Answer) -> float:
        count = len(answer.text.strip())
        return count / self.low if count < self.low else min(1.0, max(0.0, 2 - count / self.high))
