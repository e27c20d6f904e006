"""LISA: which blocks are awake, that they alone learn, and that it is a training that freezes by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from small_training import finished, small_trainer
from spread_training import settings

from babyllama.train.lisa import Lisa

LISA = Lisa(layers=1, every=2)


def test_lisa_is_a_function_of_seed_and_step():
    lisa = Lisa(layers=3, every=5)
    draws = [lisa.awake(step, 8, seed=1) for step in range(500)]
    assert all(len(draw) == 3 and draw <= set(range(8)) for draw in draws)
    assert all(len(set(draws[start : start + 5])) == 1 for start in range(0, 500, 5))
    assert draws == [lisa.awake(step, 8, seed=1) for step in range(500)]
    assert draws != [lisa.awake(step, 8, seed=2) for step in range(500)]
    often = [sum(n in draw for draw in draws[::5]) for n in range(8)]
    assert min(often) > 15 and max(often) < 65  # of 100, 37.5 expected


def test_lisa_changes_and_remembers_only_who_is_awake(tmp_path):
    trainer = small_trainer(tmp_path / "run", steps=2, adapter=LISA)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    (awake,) = LISA.awake(0, 2, seed=1)
    for name, parameter in trainer.model.named_parameters():
        asleep = name.startswith("layers.") and not name.startswith(f"layers.{awake}.")
        assert torch.equal(parameter, before[name]) == asleep, name
    remembered = {n for n, p in trainer.model.named_parameters() if p in trainer.worker.optimizers[0].state}
    assert not any(n.startswith(f"layers.{1 - awake}.") for n in remembered) and "embed_tokens.weight" in remembered
    assert len(remembered) == 1 + 1 + 9  # the tied embedding, the last norm, one block


@pytest.mark.parametrize("steps,every", [(6, 2)])
def test_lisa_equals_a_training_that_freezes_by_hand(tmp_path, steps, every):
    """The oracle: plain autograd and a new AdamW for each block that wakes up."""
    from babyllama.model.transformer import Transformer

    lisa = Lisa(layers=1, every=every)
    kwargs = settings("adamw", 1, steps=steps, adapter=lisa)
    trainer = finished(tmp_path / "run", **kwargs)
    plain = small_trainer(tmp_path / "plain", **settings("adamw", 1, steps=steps))
    model: Transformer = plain.model.train()
    stream, objective = plain.stream, plain.objective
    rest = [p for n, p in model.named_parameters() if not n.startswith("layers.")]
    blocks = [list(block.parameters()) for block in model.layers]
    own: dict = {}
    recipe = kwargs["optimizer"]

    def adam(parameters):
        decay = {2: recipe.weight_decay, 1: 0.0}
        return [torch.optim.AdamW([p], recipe.lr, recipe.betas, recipe.eps, decay[p.ndim]) for p in parameters]

    always = adam(rest)
    for step in range(steps):
        (awake,) = lisa.awake(step, 2, seed=1)
        own = {awake: own.get(awake) or adam(blocks[awake])}
        batch = stream.batch(step * 16, 16)
        loss, _ = objective(model, batch)
        (loss / batch.weight).backward()
        for p in blocks[1 - awake]:
            p.grad = None
        active = [*rest, *blocks[awake]]
        torch.nn.utils.clip_grad_norm_(active, 1.0)
        for optimizer in [*always, *own[awake]]:
            optimizer.param_groups[0]["lr"] = recipe.lr * plain.schedule(step, steps)
            optimizer.step()
        model.zero_grad()
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter, model.get_parameter(name), atol=2e-6, rtol=1e-5)


def test_lisa_compiled_learns_what_it_learns_eagerly(tmp_path, monkeypatch):
    """What is compiled while one block is awake must not be used, as it is, for another. Dynamo and AOTAutograd choose
    what is differentiated; Inductor, which takes minutes here, only how it is computed."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    eager, compiled = (small_trainer(tmp_path / name, adapter=Lisa(layers=1, every=2), steps=8)
                       for name in ("eager", "compiled"))  # fmt: skip
    compiled.compile = True
    eager.train()
    compiled.train()
    lisa = Lisa(layers=1, every=2)
    assert len({lisa.awake(step, 2, seed=1) for step in range(8)}) == 2  # both blocks have their turn
    for name, parameter in compiled.model.named_parameters():
        torch.testing.assert_close(parameter, eager.model.get_parameter(name), atol=2e-6, rtol=1e-5)
