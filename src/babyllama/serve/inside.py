"""Looking inside a model over HTTP: the figures of babyllama.inside as JSON with the tokens' texts.

Not here: the figures themselves, requests (protocol.py), routes (pages.py).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import babyllama
from babyllama import inside
from babyllama.infer import choosing
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.model import attention, rope, transformer
from babyllama.model.laws import KINDS, law_of, settle
from babyllama.model.lora import only
from babyllama.model.wrappers import Adapted
from babyllama.serve.faults import Refused
from babyllama.serve.models import Served
from babyllama.serve.prompts import rendered
from babyllama.serve.protocol import AttentionLook, Look, NeighboursLook, RopeLook, SamplingLook
from babyllama.tokenizer.token_bytes import token_bytes
from babyllama.tokenizer.tokenizer import Tokenizer

MOST = {"text": 1024, "attention": 160, "lens": 160}  # tokens of one view
Json = dict[str, Any]
# What each view's link shows.
SOURCES: dict[str, Any] = {
    "text": inside.expectations, "attention": attention.attend_eager, "lens": inside.logit_lens,
    "sampling": choosing.scores, "rope": rope.parted_frequencies, "neighbours": inside.neighbours,
    "block": transformer.Block,
}  # fmt: skip


def ids_of(served: Served, asked: Look, most: int) -> list[int]:
    """The tokens of what is asked. Raises Refused (400) for none, or more than `most`."""
    if (asked.text is None) == (asked.messages is None):
        raise Refused(400, "text: give either text or messages", "text")
    if asked.text is not None:
        ids = [*served.tokenizer.start_ids, *served.tokenizer.encode(asked.text)]
    else:
        messages = asked.messages or []
        ids = rendered(served.tokenizer, messages, answering=bool(messages) and messages[-1].role != "assistant")
    most = min(most, served.context)
    if not 0 < len(ids) <= most:
        raise Refused(400, f"text: has {len(ids)} tokens; this view takes 1 to {most}", "text")
    return ids


# ── the views ──────────────────────────────────────────────────────────────────────────────────────────────────────
def text_view(served: Served, asked: Look, engine: Engine) -> Json:
    """Each token with what was expected in its place; `next`: what may follow."""
    ids, tokenizer = ids_of(served, asked, MOST["text"]), served.tokenizer
    found = inside.expectations(engine.model, ids, engine.vocab_size, asked.top)
    rows = list(zip(found.top.tolist(), found.top_logprobs.tolist(), strict=True))
    tokens = [{**token(tokenizer, id), "logprob": number(found.logprobs[t].item()), "rank": int(found.ranks[t]),
               "entropy": number(found.entropies[t].item()), "top": candidates(tokenizer, *rows[t]) if t else []}
              for t, id in enumerate(ids)]  # fmt: skip
    after = {"entropy": number(found.entropies[-1].item()), "top": candidates(tokenizer, *rows[-1])}
    return {"tokens": tokens, "next": after}


def attention_view(served: Served, asked: AttentionLook, engine: Engine) -> Json:
    """Of one layer: for every head, row t has t + 1 weights."""
    ids = ids_of(served, asked, MOST["attention"])
    weights = inside.attention(engine.model, ids, asked.layer).tolist()
    cut = [[[round(w, 4) for w in row[: t + 1]] for t, row in enumerate(head)] for head in weights]
    return {"tokens": [token(served.tokenizer, id) for id in ids], "layer": asked.layer,
            "layers": len(engine.model.layers), "weights": cut}  # fmt: skip


def lens_view(served: Served, asked: Look, engine: Engine) -> Json:
    """Depth 0 is the embedding; the last is the model's own prediction."""
    ids, tokenizer = ids_of(served, asked, MOST["lens"]), served.tokenizer
    found = inside.logit_lens(engine.model, ids, engine.vocab_size, min(asked.top, 5))
    rows = zip(found.top.tolist(), found.top_logprobs.tolist(), found.came.tolist(), strict=True)
    depths = [[{"top": candidates(tokenizer, top, logprobs), "came": number(came)}
               for top, logprobs, came in zip(*row, strict=True)] for row in rows]  # fmt: skip
    return {"tokens": [token(tokenizer, id) for id in ids], "depths": depths}


def sampling_view(served: Served, asked: SamplingLook, engine: Engine) -> Json:
    """The likeliest next tokens before and after the rules; `kept`: how many may still be drawn."""
    ids = ids_of(served, asked, served.context - 1)
    logits = inside.next_logits(engine.model, ids, engine.vocab_size)
    rules = Sampling(temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p, min_p=asked.min_p,
                     repetition_penalty=asked.repetition_penalty)  # fmt: skip
    before, after = logits.softmax(-1), inside.reshaped(logits, rules, ids)
    shown = before.topk(min(asked.top, len(before))).indices.tolist()
    shown += [i for i in after.topk(min(asked.top, len(after))).indices.tolist() if i not in shown and after[i] > 0]
    return {"candidates": [{**token(served.tokenizer, i), "before": before[i].item(), "after": after[i].item()}
                           for i in shown],
            "kept": int((after > 0).sum()), "vocabulary": len(before), "entropy_before": _entropy(before),
            "entropy_after": _entropy(after)}  # fmt: skip


def rope_view(served: Served, asked: RopeLook, engine: Engine) -> Json:
    """Radians a token of each pair of dimensions, for each RoPE scaling at a factor, at the length that it reaches."""
    config = engine.model.config
    own = config.rope
    trained = round(config.max_position_embeddings / own.reach)
    length = round(trained * asked.factor)
    kinds = {}
    for kind in (kind for kind in KINDS if kind != "clex"):  # CLEX's are learned
        law = settle(law_of({"kind": kind, **({} if kind == "none" else {"factor": asked.factor})}, "rope"),
                     own.base, trained)  # fmt: skip
        kinds[kind] = inside.rope_frequencies(law, config.head_dim, length).tolist()
    return {"own": own.kind, "theta": own.base, "trained": trained, "length": length, "head_dim": config.head_dim,
            "frequencies": kinds}  # fmt: skip


def neighbours_view(served: Served, asked: NeighboursLook, engine: Engine) -> Json:
    """By the embedding, and by the head where that is another matrix. Raises Refused for a token that is not there."""
    model, tokenizer = engine.model, served.tokenizer
    found = asked.token if isinstance(asked.token, int) else next(iter(tokenizer.encode(asked.token)), -1)
    if not 0 <= found < tokenizer.vocab_size:
        raise Refused(400, f"token: {asked.token!r:.40} is none; ids are 0 … {tokenizer.vocab_size - 1}", "token")
    tables = {"embedding": _rows(model.embed_tokens, tokenizer)}
    if not model.config.tie_word_embeddings:
        tables["head"] = _rows(model.lm_head, tokenizer)
    near = {}
    for name, weight in tables.items():
        ids, cosines = inside.neighbours(weight, found, asked.count)
        near[name] = [{**token(tokenizer, i), "cosine": c} for i, c in zip(ids.tolist(), cosines.tolist(), strict=True)]
    return {"token": token(tokenizer, found), "near": near}


def watched(served: Served, view: Callable[..., Json], asked: Any) -> Callable[[Engine], Json]:
    """The view for the engine's thread, with the adapter that the model's name stands for."""

    def look(engine: Engine) -> Json:
        wrappers = [module for module in engine.model.modules() if isinstance(module, Adapted)]
        with only(wrappers, served.adapter or ""):
            return view(served, asked, engine)

    return look


VIEWS: dict[str, Callable[..., Json]] = {
    "text": text_view, "attention": attention_view, "lens": lens_view, "sampling": sampling_view, "rope": rope_view,
    "neighbours": neighbours_view,
}  # fmt: skip


# ── parts ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def token(tokenizer: Tokenizer, id: int) -> Json:
    """``{id, text, bytes, special}``; bytes in hexadecimal: some tokens are parts of a character."""
    raw = token_bytes(tokenizer, id)
    return {"id": id, "text": raw.decode("utf-8", "replace"), "bytes": raw.hex(" "),
            "special": id in tokenizer.special_ids}  # fmt: skip


def candidates(tokenizer: Tokenizer, ids: Sequence[int], logprobs: Sequence[float]) -> list[Json]:
    return [{**token(tokenizer, i), "logprob": number(p)} for i, p in zip(ids, logprobs, strict=True)]


def number(value: float) -> float | None:
    """NaN and infinity have no JSON."""
    return value if math.isfinite(value) else None


def source(view: str) -> Json:
    """The file and line of the code that computes a view, with the file's text. Raises Refused (404)."""
    if view not in SOURCES:
        raise Refused(404, f"there is no view {view!r:.40}; there are: {', '.join(SOURCES)}")
    code = inspect.unwrap(SOURCES[view])
    lines, first = inspect.getsourcelines(code)
    line = first + next(i for i, text in enumerate(lines) if text.startswith(("def ", "class ")))  # after decorators
    file = Path(inspect.getsourcefile(code) or "")
    name = "src/babyllama/" + file.relative_to(Path(babyllama.__file__).parent).as_posix()
    return {"file": name, "line": line, "text": file.read_text("utf-8")}


def _entropy(probabilities: Tensor) -> float:
    """Nats."""
    return -(probabilities * probabilities.clamp(min=1e-38).log()).sum().item()


def _rows(module: Any, tokenizer: Tokenizer) -> Tensor:
    """(V, C) of an embedding or a head, packed ones unpacked."""
    weight = module.dense_weight() if hasattr(module, "dense_weight") else module.weight
    return weight[: tokenizer.vocab_size]
