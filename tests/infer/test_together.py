"""Answers that are drawn in step are those of the engine, token by token."""

from __future__ import annotations

import pytest
import torch

from babyllama.errors import InputError
from babyllama.infer import together
from babyllama.infer.engine import Engine
from babyllama.infer.passes import Passes
from babyllama.infer.rows import Sampled
from babyllama.infer.sampling import Sampling
from babyllama.infer.step import Launched, ModelForward
from conftest import sharp_model, tiny_config

PROMPTS = [[1, 2, 3], [4] * 9, [1, 2, 3], [7], [1, 2, 3], [4] * 9, [5, 6]]


class Several:
    """Steps of up to 16 tokens, which write over what they told before, as a GPU's graphs do."""

    most = 16

    def __init__(self, model, rows, cache):
        self.one, self.told = Launched(ModelForward(model, rows, cache), rows), list[torch.Tensor]()
        self.rows = list[int]()

    def __call__(self, which, end, uses, limit):
        for tokens in self.told:
            tokens.fill_(5)
        self.rows.append(which.stop)
        count = 1 << (min(limit, self.most).bit_length() - 1)
        self.told.append(torch.cat([self.one(which, end, uses, 1).tokens for _ in range(count)]))
        return Sampled(self.told[-1])


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize(("longest", "stop"), [(1, (13,)), (20, ()), (20, (13, 30, 40)), (50, range(0, 60, 7))])
def test_as_the_engine_one_by_one(monkeypatch, temperature, longest, stop):
    if longest == 50:  # so many would be on their way at once
        monkeypatch.setattr(together, "LOOK", 2)
        monkeypatch.setattr(Several, "most", 2)
    model, made = sharp_model(tiny_config(2, tied=False)), list[Several]()

    def make(*parts):
        made.append(Several(*parts))
        return made[-1]

    engine, plain, sampling = Engine(model, 60, make_step=make), Engine(model, 60), Sampling(temperature=temperature)
    engine.prompts.passes = Passes(model, engine.rows, engine.cache)
    plain.generate([[9, 9]], sampling, 3)
    for turn in range(2):  # the second time nothing is left of the first
        seeds, calls = range(turn, turn + len(PROMPTS)), []
        wanted = plain.generate(PROMPTS, sampling, longest, stop, seeds)
        assert together.suits(engine, PROMPTS, longest)
        found, _ = together.answers(engine, PROMPTS, sampling, longest, stop, seeds, lambda: calls.append(1))  # noqa: B023
        assert [tokens for tokens, _ in found] == wanted and calls == [1]
        assert [ended for _, ended in found] == [answer[-1] in stop for answer in wanted]
    assert engine.generate(PROMPTS, sampling, longest, stop) == plain.generate(PROMPTS, sampling, longest, stop)
    if longest == 50:  # most end early: fewer rows go on
        assert made[0].rows[0] == len(PROMPTS) > min(made[0].rows)


def test_what_does_not_suit_and_what_breaks():
    model = sharp_model(tiny_config(2, tied=False))
    engine = Engine(model, 60, slots=4)
    assert not together.suits(engine, [[1]] * 5, 4) and together.suits(engine, [[1]] * 4, 4)
    assert not together.suits(engine, [[1]], engine.window)
    assert not together.suits(Engine(model, 60, sinks=2), [[1]], 4)
    with torch.no_grad():
        model.embed_tokens.weight[7] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        together.answers(engine, [[1, 2], [7]], Sampling(), 4, (), [0, 1])
