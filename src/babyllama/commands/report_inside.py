"""Two pictures of what a model computes on a short sentence, for the report: where it looks, and what each depth would
say next. Inline SVG and table cells in the page's own colours. Not here: the figures (inside.py), the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from babyllama.errors import InputError

MOST = 14  # tokens: more cannot be read on a phone
LAYERS = 3  # first, middle and last
DEPTHS = 6  # of the lens at most
CELL, LEFT = 20, 46  # units of the SVG
LABEL = Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>')
SQUARE = Markup('<rect x="{0}" y="{1}" width="{2}" height="{2}" fill="var(--first)" fill-opacity="{3}">'
                "<title>{4} → {5}: {6} %</title></rect>")  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What a depth would say: its likeliest token, and how sure it is (0 … 1). `right`: so it goes on in the text."""

    token: str
    share: float
    right: bool


@dataclass(frozen=True)
class Inside:
    """`maps`: (layer from 1, picture of its heads' mean); `lens`: (depth, a cell for each token), depth 0 first."""

    tokens: list[str]
    maps: list[tuple[int, Markup]]
    lens: list[tuple[int, list[Cell]]]


def look(folder: Path, sentence: str) -> Inside | None:
    """None where the model cannot be read: a page about other things need not fail for that."""
    import torch

    from babyllama import inside
    from babyllama.load import load

    try:
        loaded = load(folder, torch.device("cpu"), "fp32")
        model, tokenizer = loaded.model, loaded.tokenizer
        ids = [*tokenizer.start_ids, *tokenizer.encode(sentence)][:MOST]
        layers = _some(len(model.layers), LAYERS)
        weights = [inside.attention(model, ids, layer).mean(0).tolist() for layer in layers]
        lens = inside.logit_lens(model, ids, tokenizer.vocab_size, top=1)
    except (InputError, OSError):
        return None
    tokens = [_shown(tokenizer, id) for id in ids]
    maps = [(layer + 1, _map(tokens, held)) for layer, held in zip(layers, weights, strict=True)]
    said, shares = lens.top[..., 0].tolist(), lens.top_logprobs[..., 0].exp().tolist()
    rows = [(depth, [Cell(_shown(tokenizer, token), share, place + 1 < len(ids) and token == ids[place + 1])
                     for place, (token, share) in enumerate(zip(said[depth], shares[depth], strict=True))])
            for depth in _some(len(said), DEPTHS)]  # fmt: skip
    return Inside(tokens, maps, rows)


def _some(count: int, most: int) -> list[int]:
    """At most so many of 0 … count − 1, evenly from the first to the last."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _shown(tokenizer: Any, token: int) -> str:
    """A token's text; a part of a character, or a marker, by its name in the vocabulary."""
    text = tokenizer.decode([token])
    if not text or "\ufffd" in text:
        return (tokenizer.backend.id_to_token(token) or "")[:6] if not text else "�"
    return text.replace("\n", "⏎").replace(" ", "␣")


def _map(tokens: list[str], weights: list[list[float]]) -> Markup:
    """Row: the token that looks; column: what it looks at; the darker, the more."""
    size = LEFT + CELL * len(tokens)
    parts = [Markup('<svg role="img" viewBox="0 0 {0} {0}" font-size="11" fill="var(--muted)">').format(size)]
    for place, token in enumerate(tokens):
        at, name = LEFT + CELL * place + CELL // 2, token[:4]
        parts += [LABEL.format(LEFT - 5, at + 4, "end", name), LABEL.format(at, LEFT - 8, "middle", name)]
        for other in range(place + 1):
            share = weights[place][other]
            parts.append(SQUARE.format(LEFT + CELL * other, LEFT + CELL * place, CELL - 1, f"{max(0.04, share):.2f}",
                                       token, tokens[other], f"{100 * share:.0f}"))  # fmt: skip
    return Markup("").join([*parts, Markup("</svg>")])
