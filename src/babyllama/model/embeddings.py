"""Other rows for a model's embedding and head, each a mean of rows that were there. Not here: of which."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from babyllama.model.transformer import Transformer


def change_rows(model: Transformer, sources: Sequence[Sequence[int]]) -> None:
    """Make it a model of ``len(sources)`` tokens: row i is the mean of the old rows ``sources[i]``.

    A single source is kept bit for bit; without any, a row is the mean of all. For dense embeddings and heads.
    """
    config = model.config.model_copy(update={"vocab_size": len(sources)})
    embedding, head = model.embed_tokens.weight, model.lm_head.weight
    with torch.device("meta"):
        model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        model.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    model.embed_tokens.weight = nn.Parameter(means(embedding.detach(), sources))
    tied = config.tie_word_embeddings
    model.lm_head.weight = model.embed_tokens.weight if tied else nn.Parameter(means(head.detach(), sources))
    model.config = config


def means(rows: Tensor, sources: Sequence[Sequence[int]]) -> Tensor:
    """(V, width) → (len(sources), width), added up in float32."""
    overall = rows.float().mean(0)
    found = torch.empty(len(sources), rows.shape[1])
    for i, some in enumerate(sources):
        found[i] = rows[list(some)].float().mean(0) if some else overall
    return found.to(rows.dtype)
