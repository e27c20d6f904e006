"""Law 3: packed documents = separate documents. The oracle reads each document alone, in transformers."""

from __future__ import annotations

import pytest
import torch

LENGTHS = (5, 1, 9, 7)  # a one-token document among them


def packed_rows(tokens):
    """Two rows of the same tokens, cut at different places → positions and segments."""
    rows = [LENGTHS, (22,)]
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in rows])
    segments = torch.stack([torch.cat([torch.full((n,), i) for i, n in enumerate(row)]) for row in rows])
    return rows, positions, segments


@pytest.mark.parametrize("restart", [True, False], ids=["positions-restart", "positions-run-on"])
def test_packed_equals_separate(model, twin, tokens, restart):
    rows, positions, segments = packed_rows(tokens)
    # RoPE sees differences of positions only, so documents are as good at any offset
    logits = model(tokens, positions if restart else None, segments)
    for row, lengths in enumerate(rows):
        alone = [twin(document[None]).logits[0] for document in tokens[row].split(lengths)]
        torch.testing.assert_close(logits[row], torch.cat(alone), rtol=0, atol=2e-5)


def test_without_segments_documents_leak(model, tokens):
    """The law above would be empty if tokens of other documents changed nothing."""
    _, positions, segments = packed_rows(tokens)
    kept, leaked = model(tokens, positions, segments), model(tokens, positions)
    assert (kept[0, 5:] - leaked[0, 5:]).abs().max() > 1e-2
    torch.testing.assert_close(kept[0, :5], leaked[0, :5], rtol=0, atol=1e-5)


def test_another_document_changes_nothing_bit_for_bit(model, tokens):
    _, positions, segments = packed_rows(tokens)
    changed = tokens.clone()
    changed[0, :5] = (changed[0, :5] + 1) % model.config.vocab_size
    before, after = (model(t, positions, segments) for t in (tokens, changed))
    assert torch.equal(before[0, 5:], after[0, 5:])
    assert not torch.equal(before[0, :5], after[0, :5])
