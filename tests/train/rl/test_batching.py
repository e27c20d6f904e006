"""Answers in rows of their own, and behind their prompt in one row: the same loss, fewer tokens."""

import pytest
import torch
from small_rollouts import reference

from babyllama.data.streams.batches import IGNORE
from babyllama.train.losses.policy import Dapo, Grpo, Gspo, Ppo
from babyllama.train.rl import batching
from babyllama.train.rl.batching import batch_of, packed_of, rounded


def test_batches_have_few_shapes():
    """A GPU records a graph for each, so what they are filled up to grows with them: by an eighth at most."""
    assert [rounded(n, 8) for n in (0, 1, 8, 9, 65, 129, 1000)] == [8, 8, 8, 16, 72, 144, 1024]
    assert all(n <= rounded(n, 8) <= max(n + 7, 1.125 * n) for n in range(1, 3000))
    assert len({rounded(n, 8) for n in range(1, 4097)}) == 16 + 8 * 5


def rollout(size=3, groups=4, given=False, by_token=False):
    """Prompts of 1 to 4 tokens, answers of 1 to 4, of which one counts for nothing."""
    generator = torch.Generator().manual_seed(3)
    count, width = size * groups, 9
    first = torch.arange(1, groups + 1).repeat_interleave(size)
    stop = first + torch.randint(1, 5, (count,), generator=generator)
    tokens = torch.randint(1, 37, (count, width), generator=generator, dtype=torch.int32)
    prompts = tokens[::size].repeat_interleave(size, 0)
    tokens = torch.where(torch.arange(width) < first[:, None], prompts, tokens)
    values = torch.randn(3, count, width - 1, generator=generator)
    return {"tokens": tokens, "first": first, "stop": stop, "counted": torch.arange(count) != 4,
            "advantages": values[0] if by_token else values[0, :, 0],
            **({"given": torch.rand(count, width, generator=generator) < 0.3} if given else {}),
            "old": -values[1].abs(), "values": values[2], "returns": values[0]}  # fmt: skip


@pytest.mark.parametrize("method", [Grpo(), Dapo(), Gspo(epsilon=0.1), Ppo()])
@pytest.mark.parametrize("given", [False, True])
def test_a_prompt_that_is_read_once_changes_nothing(method, given):
    model, loss = reference().requires_grad_(True), method.of(0.8, 5)
    if isinstance(method, Ppo):
        model.add_module("value", torch.nn.Linear(16, 1, bias=False))
    tensors, found = rollout(given=given, by_token=isinstance(method, Ppo)), []
    rows, taken = torch.tensor([6, 7, 8, 0, 1, 2, 3, 4, 5]), ("old", "values", "returns")
    plain, packed = batch_of(tensors, rows, taken), packed_of(tensors, rows, 3, taken)
    assert packed.tokens.shape == (3, 8 + 3 * 4) and packed.targets.shape == (9, 4)
    assert sorted(plain.targets[plain.targets != IGNORE]) == sorted(packed.targets[packed.targets != IGNORE])
    assert plain.count == packed.count and loss.weight(plain) == loss.weight(packed)
    for batch in (plain, packed):
        model.zero_grad()
        total, means = loss(model, batch)
        total.backward()
        found.append([total, *means.values(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)


def test_rows_that_would_be_too_long_and_single_answers_stay_apart(monkeypatch):
    tensors, rows = rollout(), torch.arange(6)
    assert packed_of(tensors, rows, 3).tokens.shape == (2, 20)
    assert packed_of(tensors, rows, 1).tokens.shape == batch_of(tensors, rows).tokens.shape
    monkeypatch.setattr(batching, "LONGEST", 19)
    assert torch.equal(packed_of(tensors, rows, 3).tokens, batch_of(tensors, rows).tokens)
