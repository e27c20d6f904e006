"""Markers: the tokens of a vocabulary that no text may become, and encoding that keeps to it.

A marker is a special token, or an added one in brackets, ``<|im_start|>`` or ``[INST]``, also where a file calls it
not special. Other added tokens are words of the vocabulary and are found in texts, as everywhere else.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import tokenizers
from tokenizers import AddedToken

from babyllama.errors import InputError
from babyllama.tokenizer.messages import Vocabulary

_BRACKETED = re.compile(r"<.+>|\[.+\]", re.DOTALL)
# Unicode promises never to give these a meaning; one that a text does not hold stands for something else in it.
_NONCHARACTERS = [chr(plane << 16 | low) for plane in range(16, -1, -1) for low in (0xFFFE, 0xFFFF)]
_FIRST = 0x4E00  # a marker's stand-in is a noncharacter and one more, from here on


def markers_of(backend: tokenizers.Tokenizer) -> frozenset[str]:
    """The names of all markers."""
    added = backend.get_added_tokens_decoder().values()
    return frozenset(t.content for t in added if t.special or _BRACKETED.fullmatch(t.content))


def written_markers(vocabulary: Vocabulary, written: str) -> frozenset[str]:
    """The markers, and the added tokens that the template `written` names."""
    return vocabulary.markers | {name for name in vocabulary.added if name in written}


@contextmanager
def unicode_checked(texts: Sequence[str]) -> Iterator[None]:
    """What fails inside because a text holds half a surrogate pair, which is no character, is an InputError."""
    try:
        yield
    except (TypeError, RuntimeError, UnicodeEncodeError):
        for text in texts:
            half = next((i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
            if half is not None:
                where = f"U+{ord(text[half]):04X} at character {half}"
                raise InputError(f"text holds half a surrogate pair ({where}); remove it") from None
        raise


def free_character(text: str) -> str:
    """A noncharacter that `text` does not hold. Raises InputError where it holds all 34."""
    found = next((character for character in _NONCHARACTERS if character not in text), None)
    if found is None:
        raise InputError("the text holds every noncharacter of Unicode (U+FFFE, U+1FFFE, …); remove them")
    return found


def without(backend: tokenizers.Tokenizer, names: Collection[str]) -> tokenizers.Tokenizer:
    """A tokenizer that never finds the added tokens `names` in a text; the same one where it does not already."""
    added = backend.get_added_tokens_decoder().values()
    if {t.content for t in added if t.special} == set(names):
        backend.encode_special_tokens = True
        return backend
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] in names
    found = tokenizers.Tokenizer.from_str(json.dumps(content))
    found.encode_special_tokens = True
    return found


class RenderedEncoder:
    """Encodes what a template wrote: markers in its own words are tokens, in contents they are text.

    Each marker `names` has a stand-in that no text holds; the stand-ins are put where the template wrote the marker, so
    that one pass of the tokenizer gives what it gives everybody, pieces, blanks and all.
    """

    def __init__(self, backend: tokenizers.Tokenizer, names: Collection[str], lead: str) -> None:
        added = {t.content: (i, t) for i, t in backend.get_added_tokens_decoder().items() if t.content in names}
        self._lead = lead
        self._backend = tokenizers.Tokenizer.from_str(without(backend, names).to_str())
        self._backend.encode_special_tokens = True
        self._stand_ins = {name: lead + chr(_FIRST + k) for k, name in enumerate(added)}
        self._backend.add_tokens([
            AddedToken(self._stand_ins[name], lstrip=t.lstrip, rstrip=t.rstrip, normalized=t.normalized, special=False)
            for name, (_, t) in added.items()
        ])  # fmt: skip
        self._ids = {self._backend.token_to_id(self._stand_ins[name]): i for name, (i, _) in added.items()}
        longest_first = sorted(added, key=len, reverse=True)
        alone = {name: rf"(?<!\w){re.escape(name)}(?!\w)" for name, (_, t) in added.items() if t.single_word}
        self._pattern = re.compile("|".join(alone.get(name, re.escape(name)) for name in longest_first) or r"(?!)")

    def __call__(self, text: str, contents: Sequence[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
        """ids, and where in `text` each comes from; `contents` are the spans that are not the template's."""
        neutral = text
        for start, stop in contents:
            neutral = neutral[:start] + self._lead * (stop - start) + neutral[stop:]
        replaced, places, moved, at = "", [0], [0], 0  # from each place on, how far `text` lies ahead of `replaced`
        for match in self._pattern.finditer(neutral):
            replaced += text[at : match.start()] + self._stand_ins[match[0]]
            at = match.end()
            places.append(len(replaced))
            moved.append(at - len(replaced))

        def original(place: int) -> int:
            return place + moved[bisect_right(places, place) - 1]

        found = self._backend.encode(replaced + text[at:], add_special_tokens=False)
        return [self._ids.get(i, i) for i in found.ids], [(original(a), original(b)) for a, b in found.offsets]
