"""Law 1 for S²-Attn: no group, shifted or not, lets a token see a later one; fault 9: it shifts, without a leak."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from babyllama.model.attention import ShiftedSparse, documents, documents_for

GROUPS = [2, 4, 6, 8, 10, 22, 24, 44]  # T = 22: one group, half a group, no divisor of T, longer than T


def attending(model, group_size):
    for block in model.layers:
        block.self_attn.attend = ShiftedSparse(group_size=group_size)
    return model


@pytest.mark.parametrize("packed", [False, True], ids=["square", "segments"])
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("length", [22, 16, 8])
def test_the_past_does_not_see_the_future(model, tokens, group_size, packed, length):
    model, tokens = attending(model, group_size), tokens[:, :length]
    segments = (torch.arange(length) >= 5).long()[None].expand(2, -1) if packed else None
    before = model(tokens, segments=segments)
    for t in range(1, length):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % model.config.vocab_size
        after = model(changed, segments=segments)
        assert torch.equal(after[:, :t], before[:, :t])
        assert (after[:, t] - before[:, t]).abs().max() > 1e-4


def definition(q, k, v, group_size, segments=None):
    """The mask of each half typed out: same group, not later, same document."""
    H, T, D = q.shape[1:]
    k, v = (x.repeat_interleave(H // x.shape[1], 1) for x in (k, v))
    out = torch.empty_like(q)
    for head in range(H):
        shift = group_size // 2 if head >= H // 2 else 0
        for i in range(T):
            seen = [j for j in range(i + 1) if (j + shift) // group_size == (i + shift) // group_size
                    and (segments is None or segments[j] == segments[i])]  # fmt: skip
            weights = (q[:, head, i : i + 1] @ k[:, head, seen].transpose(1, 2) / math.sqrt(D)).softmax(-1)
            out[:, head, i] = (weights @ v[:, head, seen])[:, 0]
    return out


@pytest.mark.parametrize("packed", [False, True], ids=["square", "segments"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1), (6, 3)], ids=str)
@pytest.mark.parametrize("group_size", [2, 6, 8, 16, 40])
@pytest.mark.parametrize("length", [8, 16, 21])
def test_it_is_the_definition(heads, group_size, length, packed):
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(2, count, length, 8, generator=generator) for count in (heads[0], heads[1], heads[1]))
    segments = (torch.arange(length) >= 5).long()
    attend = ShiftedSparse(group_size=group_size)
    wanted = definition(q, k, v, group_size, segments if packed else None)
    rows = segments.expand(2, -1)
    for mask in (documents(rows), documents_for(attend, rows)) if packed else (None,):
        torch.testing.assert_close(attend(q, k, v, mask), wanted, rtol=0, atol=1e-5)


def test_what_groups_of_packed_rows_see_is_worked_out_once_for_all_layers(model, tokens, monkeypatch):
    made, work = [], ShiftedSparse.within
    monkeypatch.setattr(ShiftedSparse, "within", lambda *given: made.append(given) or work(*given))
    attending(model, 8)(tokens, segments=(torch.arange(22) >= 5).long()[None].expand(2, -1))
    assert len(model.layers) > 1
    assert len(made) == 1


def test_half_of_the_heads_is_shifted():
    """Fault 9: a shift that never happens. Token 4 and 3 meet in the second half of the heads only."""
    q, k, v = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    other = v.clone()
    other[:, :, 3] += 1
    attend = ShiftedSparse(group_size=4)
    changed = (attend(q, k, v, None) - attend(q, k, other, None))[0, :, 4].abs().amax(-1)
    assert (changed[:2] == 0).all() and (changed[2:] > 1e-3).all()


@pytest.mark.parametrize("group_size", [0, 1, 3, 7])
def test_odd_groups_are_refused(group_size):
    with pytest.raises(ValidationError, match=r"multiple of 2|greater than or equal to 2"):
        ShiftedSparse(group_size=group_size)
