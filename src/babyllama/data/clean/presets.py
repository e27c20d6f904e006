"""Which filters there are, and lists of them by name. Adding a filter is one class and its name in `AnyFilter`.

A list in a recipe holds filters, names of filters with their defaults, and names of lists:
``clean=[zh-web, simplify, {kind: length, at_least: 200}]``. It is resolved when the recipe is read, so recipe.yaml
says every limit.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, get_args

from pydantic import Field

from babyllama.data.clean.markup import Boilerplate, Html, RepeatedLines
from babyllama.data.clean.measures import (
    DuplicateGrams,
    DuplicateLines,
    HanziShare,
    Length,
    LineBreaks,
    PunctuatedLines,
    SymbolShare,
)
from babyllama.data.clean.normalise import Mojibake, Normalise, Simplify
from babyllama.data.clean.perplexity import Perplexity
from babyllama.data.clean.personal import Personal
from babyllama.data.clean.quality import Quality
from babyllama.recipe import Recipe, validate

AnyFilter = Annotated[
    Normalise | Simplify | Mojibake | Html | Boilerplate | RepeatedLines | Length | HanziShare | SymbolShare
    | LineBreaks | PunctuatedLines | DuplicateLines | DuplicateGrams | Personal | Quality | Perplexity,
    Field(discriminator="kind"),
]  # fmt: skip

FILTERS: dict[str, type[Recipe]] = {one.model_fields["kind"].default: one for one in get_args(get_args(AnyFilter)[0])}
PRESETS: dict[str, tuple[Any, ...]] = {
    # pages of the web
    "zh-web": (Normalise(), Html(), Boilerplate(), RepeatedLines(), Length(), HanziShare(), SymbolShare(), LineBreaks(),
               PunctuatedLines(), DuplicateLines(), DuplicateGrams(), Personal()),
    # books, articles, encyclopedias: nothing is cut out of a text
    "zh-books": (Normalise(), Length(at_least=10), HanziShare(at_least=0.4), SymbolShare(), DuplicateGrams(at_most=0.5),
                 Personal()),
    # what is right for chats, too
    "characters": (Normalise(), Personal()),
}  # fmt: skip


def named(items: Any, kinds: dict[str, type[Recipe]], lists: dict[str, tuple[Any, ...]]) -> Any:
    """A list as a recipe writes it → its values; one item alone is a list of one. Any other thing comes back as it is.

    Args:
        kinds: name → class of every value that the list may hold.  lists: name → the values that it stands for.

    Raises:
        ValueError: a name that is none of a value or of a list; InputError: a value with a wrong key.
    """
    items = [items] if isinstance(items, str | dict) else items
    if not isinstance(items, list | tuple):
        return items
    return tuple(value for number, item in enumerate(items) for value in _values(item, number, kinds, lists))


def _values(
    item: Any, number: int, kinds: dict[str, type[Recipe]], lists: dict[str, tuple[Any, ...]]
) -> tuple[Any, ...]:
    if isinstance(item, Recipe):
        return (item,)
    said = item if isinstance(item, dict) else {"kind": item}
    name = said.get("kind")
    if name in lists and len(said) == 1:
        return lists[name]
    if name not in kinds:
        known = [*lists, *kinds]
        meant = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {meant[0]}? " if meant else ""
        raise ValueError(f"{name!r} is unknown; {hint}there are {', '.join(known)}")
    return (validate(kinds[name], said, f"item {number} ({name})"),)
