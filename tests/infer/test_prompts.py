"""A pass over pieces of prompts in the form that a CUDA graph takes, beside the model's own forward pass."""

from __future__ import annotations

import pytest
import torch

from babyllama.infer import prompts
from babyllama.infer.engine import Engine
from babyllama.infer.passes import MANY, RECORDED, SHORT, Passes, fits
from babyllama.infer.rows import Rows
from babyllama.infer.sampling import Sampling
from babyllama.model.cache import KVCache
from conftest import sharp_model, tiny_config

WINDOW = 64


@pytest.mark.parametrize("kv_heads", [1, 4])
@torch.inference_mode()
def test_filled_up_pieces_give_the_logits_of_their_texts(kv_heads):
    model = sharp_model(tiny_config(kv_heads, tied=False))
    cache = KVCache(model.config, 6, WINDOW, "cpu", torch.float32)
    passes = Passes(model, Rows(60, 6, torch.device("cpu")), cache)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(60, (length,), generator=generator).tolist() for length in (5, 30, WINDOW - 1, 17)]
    model.hidden(torch.tensor([texts[0] * 6] * 6)[:, :30], cache=cache.part(slice(0, 6), 30))
    rows, begun = [4, 1, 5, 2], [0, 0, 0, 0]
    before = [kept.clone() for kept in (cache.keys, cache.values)]
    for ends in ([3, 10, 20, 1], [5, 30, 40, 17], [5, 30, WINDOW - 1, 17]):  # pieces of three, or fewer, of the rows
        at = [i for i in range(4) if ends[i] > begun[i]]
        pieces = [texts[i][begun[i] : ends[i]] for i in at]
        cache.reserve(max(ends))
        logits = passes(pieces, [begun[i] for i in at], [rows[i] for i in at], None)
        assert logits is not None
        for i, row in zip(at, logits, strict=True):
            want = model(torch.tensor([texts[i][: ends[i]]]))[0, -1, :60]
            torch.testing.assert_close(row, want, rtol=1e-4, atol=1e-4)
        begun = ends
    for kept, old in zip((cache.keys, cache.values), before, strict=True):
        assert torch.equal(kept[:, [0, 3]], old[:, [0, 3]])  # rows that are not asked for


def test_a_large_pass_is_left_alone():
    model = sharp_model(tiny_config())
    cache = KVCache(model.config, 2, WINDOW, "cpu", torch.float32)
    passes = Passes(model, Rows(60, 2, torch.device("cpu")), cache)
    assert passes([[1] * (MANY + 1)], [0], [0], None) is None
    assert fits(1, RECORDED, 256) and fits(128, SHORT, 256)
    assert not fits(128, SHORT, 4096)  # would copy more of the cache than it computes
    assert fits(256, 32, 32) and not fits(256, 32, 256)  # so many tokens only where little comes before them
    assert not fits(512, 32, 32)


@torch.inference_mode()
def test_no_pass_waits_to_be_recorded_on_a_warm_engine(monkeypatch):
    """Small bounds, so that every kind of pass is tried; what large ones compute is right, too."""
    for name, value in {"SHORT": 4, "SLOTS": 16, "RECORDED": 16, "MANY": 64, "COPIED": 128}.items():
        monkeypatch.setattr(f"babyllama.infer.passes.{name}", value)
    model = sharp_model(tiny_config())
    cache = KVCache(model.config, 6, WINDOW, "cpu", torch.float32)
    passes = Passes(model, Rows(60, 6, torch.device("cpu")), cache)
    passes.warm()
    recorded, large = set(passes.graphs), 0
    cache.reserve(WINDOW)
    for count in range(1, 7):
        for length in (1, 4, 7, 13, 30):
            for start in (0, 1, 12, WINDOW - length):
                text = [(count + 3 * i) % 60 for i in range(start + length)]
                if start:
                    model.hidden(
                        torch.tensor([text[:start]]), torch.arange(start)[None], cache=cache.part(slice(0, 1), start)
                    )
                pieces = [text[start:], *([5] * length for _ in range(count - 1))]
                logits = passes(pieces, [start, *[0] * (count - 1)], list(range(count)), None)
                if logits is not None:
                    large += count * length > 16
                    torch.testing.assert_close(logits[0], model(torch.tensor([text]))[0, -1, :60], rtol=1e-4, atol=1e-4)
    assert large > 10 and set(passes.graphs) == recorded


@pytest.mark.parametrize("recorded", [False, True])
def test_equal_prompts_that_come_together_are_read_once(monkeypatch, recorded):
    """In company and in whatever order; long ones in pieces. `recorded`: by the passes that a GPU has graphs of."""
    monkeypatch.setattr(prompts, "LEAST", 8)
    monkeypatch.setattr(prompts, "ALONE", 40)
    model = sharp_model(tiny_config(2, tied=False))
    texts = [[1, 2, 3], [4] * 21, [1, 2, 4], list(range(30))]
    asked = [texts[n] for n in (3, 0, 1, 0, 2, 1, 3, 3, 0)]
    many, after = Engine(model, 60), prompts.Prompts._after
    if recorded:
        many.prompts.passes = Passes(model, many.rows, many.cache)
    drawn, read = Sampling(temperature=1.0), list[int]()

    def counted(self, slots, pieces, rows, ended, lengths):
        begun = [(slot.job.request.prompt, len(slot.tokens)) for slot in slots]
        assert all(one not in begun[:n] for n, one in enumerate(begun))
        read.append(sum(map(len, pieces)))
        return after(self, slots, pieces, rows, ended, lengths)

    alone = [Engine(model, 60).generate([prompt], drawn, 6, seeds=[n])[0] for n, prompt in enumerate(asked)]
    monkeypatch.setattr(prompts.Prompts, "_after", counted)
    assert many.generate(asked, drawn, 6, seeds=range(len(asked))) == alone
    assert len({tuple(found) for found in alone}) > 6
    assert sum(read) == sum(map(len, texts))


def test_pieces_in_which_no_prompt_ends(monkeypatch):
    """Recorded passes over a long prompt's first pieces: there is nothing to draw after them."""
    monkeypatch.setattr(prompts, "ALONE", 8)
    monkeypatch.setattr(prompts, "LEAST", 4)
    monkeypatch.setitem(prompts.BESIDE, "cpu", 4)
    model, greedy = sharp_model(tiny_config()), Sampling(temperature=0.0)
    texts = [[7, 3, 1, 6, 5, 4, 2, 9, 8, 30, 12, 11, 13], [20, 21]]
    monkeypatch.setattr(prompts, "native", lambda _: None)
    plainly = Engine(model, 60).generate(texts, greedy, 6)
    engine = Engine(model, 60)
    engine.prompts.passes = Passes(model, engine.rows, engine.cache)
    assert engine.generate(texts, greedy, 6) == plainly
