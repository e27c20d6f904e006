"""score against a float64 log-softmax loop of transformers' LLaMA, pair by pair; what is shared is read once."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from babyllama.evals import beginnings, scoring
from babyllama.evals.branches import Branches
from babyllama.evals.scoring import Pair, Score, score
from babyllama.model.config import extended
from babyllama.model.laws import DynamicNtkRope
from babyllama.model.transformer import make_rope
from conftest import sharp_model, tiny_config, transformers_twin


def random_tokens(count: int, seed: int) -> list[int]:
    return torch.randint(67, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def few_shot() -> list[Pair]:
    """Two subjects' examples, questions after them, options after those: of one token, of several, one twice."""
    pairs = []
    for subject in range(2):
        examples = random_tokens(19 + subject, subject)
        for question in range(3):
            prompt = examples + random_tokens(2 + 9 * question, 10 + question)
            options = [[5], [6], random_tokens(3, 20), [5, *random_tokens(2, 21)], [5]]
            pairs += [Pair(prompt, option) for option in options]
    pairs += [Pair([3], [9]), Pair([3], random_tokens(40, 30)), Pair([*pairs[0].prompt, 5], random_tokens(17, 31))]
    return pairs


def by_hand(model, pairs: list[Pair]) -> list[Score]:
    found = []
    for prompt, completion in pairs:
        logprobs = model(torch.tensor([[*prompt, *completion]])).logits[0].double().log_softmax(-1)
        total, greedy = 0.0, True
        for i, token in enumerate(completion, start=len(prompt) - 1):
            total += logprobs[i, token].item()
            greedy = greedy and int(logprobs[i].argmax()) == token
        found.append(Score(total, len(completion), greedy))
    return found


def told_greedily(model, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def as_on_other_devices(monkeypatch, row: int) -> None:
    monkeypatch.setattr(Branches, "_by_spans", Branches._by_mask)
    monkeypatch.setattr(scoring._Reader, "one_by_one", False)
    monkeypatch.setattr(scoring, "ROW", row)


@pytest.mark.parametrize("row", [0, 1, 30, 100], ids=lambda row: f"rows of {row}" if row else "on a CPU")
@pytest.mark.parametrize("batch", [1, 100, scoring.BATCH])
@pytest.mark.parametrize("shared", [1, 4, beginnings.SHARED, 10_000])
def test_equals_the_loop_by_hand(monkeypatch, shared, batch, row):
    monkeypatch.setattr(beginnings, "SHARED", shared)
    if row:
        as_on_other_devices(monkeypatch, row)
    model = sharp_model(tiny_config())
    twin, pairs = transformers_twin(model), few_shot()
    pairs += [Pair(p.prompt, told_greedily(twin, list(p.prompt), 4)) for p in pairs[::5]]
    expected = by_hand(twin, pairs)
    assert {one.greedy for one in expected} == {True, False}
    found = score(model, pairs, batch)
    assert [one[1:] for one in found] == [one[1:] for one in expected]
    assert [one.loglikelihood for one in found] == pytest.approx([one.loglikelihood for one in expected], abs=2e-4)
    assert score(model, pairs, batch) == found  # to the bit


def test_threads_read_rows_of_their_own():
    """To the bit what one thread computes, and the model attends as before afterwards."""
    model, pairs, threads = sharp_model(tiny_config()), few_shot(), torch.get_num_threads()
    attend = model.layers[0].self_attn.attend
    try:
        torch.set_num_threads(1)
        alone = score(model, pairs, 60)
        torch.set_num_threads(3)
        assert score(model, pairs, 60) == alone
        assert torch.get_num_threads() == 3 and model.layers[0].self_attn.attend is attend
    finally:
        torch.set_num_threads(threads)


def test_each_beginning_is_read_once(monkeypatch):
    model, read = sharp_model(tiny_config()), []
    hidden = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda tokens, *a, **k: (read.append(tokens.shape), hidden(tokens, *a, **k))[1]
    )
    prompt, other = random_tokens(30, 1), random_tokens(30, 2)
    score(model, [Pair(p, [option]) for p in (prompt, other) for option in range(4)])
    assert read == [(1, 2 * 30)]  # the options' letters stand at the same place
    read.clear()
    score(model, [Pair(prompt, [option, *random_tokens(4, option)]) for option in range(4)])
    assert read == [(1, 30 + 4 * 4)]


def test_texts_lie_side_by_side_where_a_row_is_not_one_text(monkeypatch):
    as_on_other_devices(monkeypatch, 64)
    model, read = sharp_model(tiny_config()), []
    hidden = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda tokens, *a, **k: (read.append(tuple(tokens.shape)), hidden(tokens, *a, **k))[1]
    )
    sizes = (200, 20, 21, 22, 60, 40, 41, 90)  # some longer than a row, one longer than all that is read at a time
    pairs = [Pair(random_tokens(size, size), [option]) for size in sizes for option in range(4)]
    found = score(model, pairs, 160)
    assert sum(rows * width for rows, width in read) < 1.25 * sum(sizes)
    assert read[0] == (1, 200) and max(rows for rows, _ in read) > 1
    assert all(rows * width <= 160 for rows, width in read[1:])
    expected = by_hand(transformers_twin(model), pairs)
    assert [one.loglikelihood for one in found] == pytest.approx([one.loglikelihood for one in expected], abs=2e-4)


def test_beginnings_within_beginnings(monkeypatch):
    """A text's prefixes are one row to read."""
    model, tokens, read = sharp_model(tiny_config()), random_tokens(60, 1), []
    hidden = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda tokens, *a, **k: (read.append(tokens.shape), hidden(tokens, *a, **k))[1]
    )
    pairs = [Pair(tokens[:n], [tokens[n]]) for n in range(20, 60)]
    found = score(model, pairs)
    assert read == [(1, 59)]
    expected = by_hand(transformers_twin(model), pairs)
    assert [one.loglikelihood for one in found] == pytest.approx([one.loglikelihood for one in expected], abs=2e-4)


def test_a_chain_of_branches_is_scored(monkeypatch):
    monkeypatch.setattr(beginnings, "SHARED", 1)
    model, tokens = sharp_model(tiny_config()), random_tokens(60, 2)
    pairs = [Pair(tokens[:n], [option, 3]) for n in range(2, 58) for option in (5, 6, tokens[n])]
    expected = by_hand(transformers_twin(model), pairs)
    for batch in (1, scoring.BATCH):
        found = [one.loglikelihood for one in score(model, pairs, batch)]
        assert found == pytest.approx([one.loglikelihood for one in expected], abs=2e-4)


def test_frequencies_that_go_by_the_length_go_by_each_pairs_own():
    model = sharp_model(tiny_config())
    model.config = extended(model.config.model_copy(update={"max_position_embeddings": 16}), DynamicNtkRope(factor=4.0))
    model.rope = make_rope(model.config)
    pairs = few_shot()
    expected = []
    for prompt, completion in pairs:  # the model alone, on exactly what predicts
        logprobs = model(torch.tensor([[*prompt, *completion[:-1]]]))[0, len(prompt) - 1 :].double().log_softmax(-1)
        expected.append(sum(logprobs[i, token].item() for i, token in enumerate(completion)))
    assert [one.loglikelihood for one in score(model, pairs)] == pytest.approx(expected, abs=2e-4)


def test_padding_rows_of_the_head_do_not_count():
    model, padded = sharp_model(tiny_config()), sharp_model(tiny_config())
    with torch.no_grad():  # 60 rows are the vocabulary's; the others would win everywhere
        padded.embed_tokens.weight[60:] = 50 * padded.embed_tokens.weight[:7].sign()
    pairs = [Pair([token % 60 for token in p.prompt], [token % 60 for token in p.completion]) for p in few_shot()]
    twin = transformers_twin(model)
    pairs += [Pair([1, 2, 3], told_greedily(lambda tokens: Cut(twin(tokens).logits[..., :60]), [1, 2, 3], 4))]
    expected = by_hand(lambda tokens: Cut(twin(tokens).logits[..., :60]), pairs)
    found = score(padded, pairs, vocab_size=60)
    assert [one[1:] for one in found] == [one[1:] for one in expected] and found[-1].greedy
    assert [one.loglikelihood for one in found] == pytest.approx([one.loglikelihood for one in expected], abs=2e-4)
    assert not score(padded, pairs)[-1].greedy


class Cut(NamedTuple):
    logits: torch.Tensor


def test_nothing_to_predict_is_an_error():
    model = sharp_model(tiny_config())
    assert score(model, []) == []
    for pair in (Pair([], [1]), Pair([1], [])):
        with pytest.raises(ValueError, match="pair 1: prompt and completion need at least one token each"):
            score(model, [Pair([1], [2]), pair])
