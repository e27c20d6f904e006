"""The engine: batches equal single prompts, streams equal batches, and both equal transformers' greedy search."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from babyllama.errors import InputError
from babyllama.infer.engine import Engine, finish_reason
from babyllama.infer.request import Request
from babyllama.infer.sampling import Sampling
from babyllama.model.checkpoint import save_model
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise

GREEDY = Sampling(temperature=0.0)
SAMPLINGS = [
    GREEDY,
    Sampling(temperature=0.0, repetition_penalty=1.3),
    Sampling(temperature=0.9, seed=3),
    Sampling(temperature=1.2, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2, seed=8),
]
PROMPTS = [[5, 9, 2], [7], [11, 3, 3, 8, 60, 21, 4, 4, 9, 17, 2], [1, 2, 3, 4, 5], [8, 8]]


def make_model(vocab_size: int = 67, context: int = 48, seed: int = 1, **fields) -> Transformer:
    """Two layers with weights large enough that the likeliest tokens vary."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "tie_word_embeddings": False}  # fmt: skip
    config = ModelConfig(vocab_size=vocab_size, max_position_embeddings=context, **{**shape, **fields})
    model = Transformer(config)
    initialise(model, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 8
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(make_model(), 67)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "penalised", "sampled", "everything"])
@pytest.mark.parametrize("stop", [(), (0, 13, 30, 40, 41, 42, 50, 55, 60)], ids=["unstopped", "stopped"])
def test_batch_equals_single_equals_stream(engine, sampling, stop):
    together = engine.generate(PROMPTS, sampling, 30, stop)
    for i, prompt in enumerate(PROMPTS):
        seed = sampling.seed + i
        assert engine.generate([prompt], sampling, 30, stop, seeds=[seed]) == [together[i]]
        assert list(engine.stream(prompt, sampling, 30, stop, seed)) == together[i]
        assert all(token not in stop for token in together[i][:-1])
        assert len(together[i]) == 30 or together[i][-1] in stop
    if stop:
        assert len({len(answer) for answer in together}) > 2  # rows ended at different times
    assert len({token for answer in together for token in answer}) > 10


def test_seeds_decide(engine):
    sampling = Sampling(seed=4)
    same = [PROMPTS[0]] * 4
    answers = engine.generate(same, sampling, 20)
    assert len(set(map(tuple, answers))) == 4
    assert answers == engine.generate(same, sampling, 20)
    assert answers[1:] == engine.generate(same[1:], Sampling(seed=5), 20)
    assert [a[:9] for a in answers] == engine.generate(same, sampling, 9)  # the limit changes no draw


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_greedy_equals_transformers_generate(tmp_path, tied, kv_heads):
    model = make_model(tie_word_embeddings=tied, num_key_value_heads=kv_heads)
    save_model(model, tmp_path, bos_id=0, eos_id=13)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path)
    ours = Engine(model, 67).generate(PROMPTS, GREEDY, 30, stop=[13])
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=13)
        assert answer == expected[0, len(prompt) :].tolist()


def test_padded_vocabulary_rows_are_never_drawn():
    model = make_model(vocab_size=96)
    with torch.no_grad():
        model.lm_head.weight[64:] *= 50  # the padding would win by far
    for sampling in (GREEDY, Sampling(temperature=5.0)):
        answers = Engine(model, 64).generate(PROMPTS, sampling, 30)
        assert max(token for answer in answers for token in answer) < 64


def test_the_context_is_the_end(engine):
    for prompt in ([3], [3] * 46, [3] * 47):
        for sampling in SAMPLINGS:
            answer = engine.generate([prompt, [5]], sampling)[0]
            assert len(prompt) + len(answer) == 48
            assert list(engine.stream(prompt, sampling)) == answer
    assert finish_reason(answer, [99]) == "length" and finish_reason([4, 9], {9}) == "stop"
    with pytest.raises(InputError, match="48 tokens and the model's context is 48: shorten the prompt to at most 47"):
        engine.generate([[1], [3] * 48], GREEDY)
    with pytest.raises(InputError, match="60 tokens"):
        engine.stream([3] * 60, GREEDY)  # before the first token is asked for
    with pytest.raises(InputError, match="empty"):
        engine.generate([[]], GREEDY)
    assert engine.generate([], GREEDY) == []


def fed_tokens(monkeypatch, engine: Engine) -> list[int]:
    """How many tokens each forward pass is given."""
    counts: list[int] = []
    hidden = engine.model.hidden

    def counting(tokens, *args, **kwargs):
        counts.append(tokens.shape[1])
        return hidden(tokens, *args, **kwargs)

    monkeypatch.setattr(engine.model, "hidden", counting)
    return counts


def test_the_next_turn_prefills_only_what_is_new(monkeypatch):
    engine = Engine(make_model(), 67)
    counts = fed_tokens(monkeypatch, engine)
    first = list(engine.stream([5, 9, 2, 7], GREEDY, 6))
    assert counts == [4, 1, 1, 1, 1, 1]
    turn = [5, 9, 2, 7, *first, 33, 34, 35]
    fresh = Engine(make_model(), 67)
    counts.clear()
    assert list(engine.stream(turn, GREEDY, 6)) == list(fresh.stream(turn, GREEDY, 6))
    assert counts == [4, 1, 1, 1, 1, 1]  # the last token of the first answer was never fed; 3 are new
    counts.clear()
    assert list(engine.stream(turn, GREEDY, 6)) == list(fresh.stream(turn, GREEDY, 6))
    assert counts[0] == 1  # the same prompt again: its last token gives the logits
    changed = [5, 9, 40, 41]
    counts.clear()
    assert list(engine.stream(changed, GREEDY, 40)) == list(fresh.stream(changed, GREEDY, 40))
    assert counts[0] == 2


def test_tables_are_there_once_a_request_asks_for_them():
    engine = Engine(make_model(), 67)
    engine.generate([[5, 9]], GREEDY, 3)
    assert all(getattr(engine.rows, name) is None for name in ("seen", "counts", "bias", "mask"))
    engine.generate([[5, 9]], Sampling(temperature=0, logit_bias={3: 1.0}), 3)
    assert engine.rows.bias is not None and engine.rows.seen is None and engine.rows.mask is None


def test_streams_may_overlap_and_be_left():
    engine = Engine(make_model(), 67)
    expected = engine.generate(PROMPTS[:2], GREEDY, 10)
    one, two = (engine.stream(prompt, GREEDY, 10) for prompt in PROMPTS[:2])
    mixed = [(next(one), next(two)) for _ in range(10)]
    assert [list(answer) for answer in zip(*mixed, strict=True)] == expected
    left = engine.stream(PROMPTS[2], GREEDY, 10)
    next(left), next(left)
    left.close()
    again = engine.generate([PROMPTS[2]], GREEDY, 10)[0]
    assert list(engine.stream(PROMPTS[2], GREEDY, 10)) == again


def test_interrupted_in_the_middle_of_a_forward_pass(monkeypatch):
    engine = Engine(make_model(), 67)
    expected = engine.generate([PROMPTS[2]], GREEDY, 10)[0]
    layer, calls = engine.model.layers[1], iter(range(100))
    forward = layer.forward

    def breaking(*args):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(layer, "forward", breaking)
    with pytest.raises(KeyboardInterrupt):
        list(engine.stream(PROMPTS[2], GREEDY, 10))
    assert list(engine.stream(PROMPTS[2], GREEDY, 10)) == expected


def test_no_gradients_and_the_caller_keeps_its_mode(engine):
    model = make_model().requires_grad_(True)
    stream = Engine(model, 67).stream([5], GREEDY, 3)
    for _ in stream:
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    model(torch.tensor([[1, 2]])).sum().backward()  # nothing of the cache clings to the model


def test_ending_is_no_repetition(engine):
    """The prompt of a chat holds an end token a turn; the penalty must not make each answer longer than the last."""
    plain = engine.generate([[5, 9, 2]], GREEDY, 30)[0]
    end = plain[10]
    cut = plain[: plain.index(end) + 1]
    penalised = Sampling(temperature=0.0, repetition_penalty=1.0001)  # too weak to change any other choice
    assert engine.generate([[5, 9, 2]], penalised, 30, [end])[0] == cut
    harsh = Sampling(temperature=0.0, repetition_penalty=10.0)
    seen = [engine.rows._seen(Request(row, harsh, stop={end})) for row in ([end, 3, 5], [4, 3, 5])]
    assert [row.sum().item() for row in seen] == [2, 3] and not seen[0][end]


def test_broken_weights_are_reported():
    model = make_model()
    model.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        Engine(model, 67).generate([[1, 2]], GREEDY, 3)


def test_an_answer_that_breaks_leaves_nothing_behind():
    """Its slots hold NaN, which a mask does not undo where more slots are read than are in use."""
    model = make_model()
    model.embed_tokens.weight[13] = float("nan")
    engine = Engine(model, 67)
    list(engine.stream([1, 2, 3], GREEDY, 3))
    with pytest.raises(InputError, match="not finite"):
        list(engine.stream([1, 2, 3, 13], GREEDY, 3))
    list(engine.stream([1, 2], GREEDY, 1))
    assert engine.cache.keys.isfinite().all() and engine.cache.values.isfinite().all()
