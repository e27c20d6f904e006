"""Law 3: packed documents = separate documents. The oracle reads each document alone, in transformers.

For every RoPE law: those that go by the length must go by each document's own, wherever it lies in a row. CLEX, which
transformers does not know, is read alone by our own model, whose frequencies law 4 tests.
"""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaForCausalLM

from babyllama.model.checkpoint import save_model
from babyllama.model.config import extended
from babyllama.model.laws import ByPartsRope, ClexRope, DynamicNtkRope, LinearRope, NtkRope, YarnRope
from babyllama.model.transformer import make_rope
from conftest import sharp_model, tiny_config

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


# ── every RoPE law ──────────────────────────────────────────────────────────────────────────────────────────────────
KNOWN = [LinearRope(factor=4.0), NtkRope(factor=4.0), DynamicNtkRope(factor=4.0), ByPartsRope(factor=4.0),
         YarnRope(factor=4.0)]  # fmt: skip
CLEX = ClexRope(max_t=4)


def stretched(law):
    """A model whose trained context of 6 ends inside two of the documents; the whole row is far beyond it."""
    model = sharp_model(tiny_config().model_copy(update={"max_position_embeddings": 6}))
    model.config = extended(model.config, law)
    model.rope = make_rope(model.config)
    with torch.no_grad():
        for parameter in model.rope.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return model


@pytest.mark.parametrize("restart", [True, False], ids=["positions-restart", "positions-run-on"])
@pytest.mark.parametrize("law", [*KNOWN, CLEX], ids=lambda law: law.kind)
def test_every_law_packed_equals_separate(tmp_path, tokens, law, restart):
    model = stretched(law)
    if law is CLEX:
        read_alone = model
    else:
        save_model(model, tmp_path, bos_id=0, eos_id=1)
        twin = LlamaForCausalLM.from_pretrained(tmp_path).eval()

        def read_alone(document):
            return copy.deepcopy(twin)(document).logits  # a dynamic one remembers the longest text it has read

    rows, positions, segments = packed_rows(tokens)
    with torch.no_grad():
        logits = model(tokens, positions if restart else None, segments)
        for row, lengths in enumerate(rows):
            alone = [read_alone(document[None])[0] for document in tokens[row].split(lengths)]
            torch.testing.assert_close(logits[row], torch.cat(alone), rtol=0, atol=5e-5)


@pytest.mark.parametrize("law", [DynamicNtkRope(factor=4.0), CLEX], ids=lambda law: law.kind)
def test_rows_of_a_ragged_batch_go_by_their_own_length(tokens, law):
    model, lengths = stretched(law), torch.tensor([9, 22])
    with torch.no_grad():
        together = model.lm_head(model.hidden(tokens, lengths=lengths))
        for row, length in enumerate(lengths.tolist()):
            alone = model(tokens[row : row + 1, :length])[0]
            torch.testing.assert_close(together[row, :length], alone, rtol=0, atol=5e-5)
        assert (together[0, :9] - model(tokens)[0, :9]).abs().max() > 1e-2


def test_what_clex_learns_from_packed_documents_is_what_it_learns_from_each_alone(tokens):
    rows, positions, segments = packed_rows(tokens)
    packed, apart = stretched(CLEX), stretched(CLEX)
    packed(tokens, positions, segments).square().sum().backward()
    for row, lengths in enumerate(rows):
        for document in tokens[row].split(lengths):
            apart(document[None]).square().sum().backward()
    for mine, expected in zip(packed.rope.parameters(), apart.rope.parameters(), strict=True):
        assert expected.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-3, atol=1e-3)
