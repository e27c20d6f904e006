"""Looking inside packed models and adapters gives the figures of the same weights held whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from small_run import CHATS, small_tokenizer, taught_model

from babyllama.model.checkpoint import load_model, save_model
from babyllama.model.lora import Lora, attach, linears, merge
from babyllama.model.surgery import replace_modules
from babyllama.quant.grid import Grid
from babyllama.quant.linear import GroupedLinear, PackedEmbedding
from babyllama.serve import inside

GRID = Grid(group_size=16, bits=8)
VIEWS = {
    "text": (inside.text_view, inside.Look, {}),
    "attention": (inside.attention_view, inside.AttentionLook, {"layer": 1}),
    "lens": (inside.lens_view, inside.Look, {}),
    "sampling": (inside.sampling_view, inside.SamplingLook, {"temperature": 0.7, "top_p": 0.9}),
}


def copied(folder):
    tokenizer = small_tokenizer()
    save_model(taught_model(), folder, **tokenizer.config_ids)
    return load_model(folder).eval().requires_grad_(False)


def packed(folder):
    """(packed, whole): blocks and the tied embedding on a grid."""
    made, whole = copied(folder), copied(folder)
    for _, module in linears(whole):
        module.weight.data = GRID.nearest(module.weight).dense()
    whole.embed_tokens.weight.data = GRID.nearest(whole.embed_tokens.weight).dense()
    chosen = {path for path, _ in linears(made)}
    replace_modules(made, lambda path, _: path in chosen,
                    lambda _, module: GroupedLinear.of(GRID.nearest(module.weight)))  # fmt: skip
    made.embed_tokens = PackedEmbedding(GroupedLinear.of(GRID.nearest(made.embed_tokens.weight)), torch.float32)
    made.lm_head = made.embed_tokens.packed
    return made, whole, ""


def adapted(folder):
    """(with an adapter that is switched on by its name, merged)."""
    both = copied(folder), copied(folder)
    for model in both:
        attach(model, Lora(rank=2), 0, "mine")
        with torch.no_grad():
            model.layers[0].mlp.up_proj.lora_B += 0.3
    merge(both[1])
    return *both, "mine"


@pytest.mark.parametrize("kind", [packed, adapted])
def test_views(kind, tmp_path):
    made, whole, adapter = kind(tmp_path)
    tokenizer = small_tokenizer()
    served = SimpleNamespace(tokenizer=tokenizer, context=96, adapter=adapter)
    engines = [SimpleNamespace(model=model, vocab_size=tokenizer.vocab_size) for model in (made, whole)]
    for view, asks, more in VIEWS.values():
        asked = asks(model="m", text=CHATS[0][1], **more)
        found, expected = (inside.watched(served, view, asked)(engine) for engine in engines)
        assert close(found, expected), view
    asked = inside.NeighboursLook(model="m", token="你", count=4)
    found, expected = (inside.watched(served, inside.neighbours_view, asked)(engine) for engine in engines)
    assert close(found, expected)


def close(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == pytest.approx(b, abs=2e-4) if isinstance(a, float) and isinstance(b, float) else a == b
