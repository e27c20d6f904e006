"""Rollouts: who draws, what is kept of them, what goes wrong."""

import json
import math

import pytest
import torch
from small_rollouts import LETTERS, OBJECTIVE, Early, hidden_twins, practised, prompts, tokenizer
from small_training import finished, setting_of, small_trainer

from babyllama.data.streams.batches import IGNORE
from babyllama.errors import InputError
from babyllama.infer.prompts import Prompts
from babyllama.model.transformer import Transformer
from babyllama.train.engines.worker import Worker
from babyllama.train.losses.policy import Grpo
from babyllama.train.optimizers.optim import AdamW
from babyllama.train.rl.groups import Rollouts
from babyllama.train.rl.heldout import HeldOut
from babyllama.train.rl.marks import BadReward
from babyllama.train.rl.rewards import Reward
from babyllama.train.rl.sampler import Sampler


@pytest.fixture
def worker(tmp_path) -> Worker:
    return Worker(setting_of(small_trainer(tmp_path / "run").model))


class Flat(Reward):
    """Only answers to prompts whose second token is even, every other one, differ in worth."""

    kind: str = "flat"

    def __call__(self, answer):
        return float(LETTERS.index(answer.prompt[1]) % 2 == 0 and answer.text[:1] < "m")


class Broken(Reward):
    """Raises for answers that begin early, is no number for some others."""

    kind: str = "broken"

    def __call__(self, answer):
        if answer.text[:1] < "g":
            raise RuntimeError("no idea")
        return math.nan if answer.text[:1] > "x" else len(answer.text)


def test_rows_are_the_answers_and_their_worth(tmp_path, worker):
    rows = practised(tmp_path)
    rows.prepare(0, worker)
    rows.meanwhile()
    lines = list(map(json.loads, (tmp_path / "rollouts.jsonl").read_text().splitlines()))
    batches = [rows.batch(first, 32) for first in (0, 32)]  # two passes over the same answers
    assert [len(b.tokens) for b in batches] == [32, 32] and not torch.equal(batches[0].tokens, batches[1].tokens)
    decode = tokenizer().decode
    for batch in batches:
        found = []
        for row in range(32):
            kept = batch.targets[row] != IGNORE
            first = int(kept.nonzero()[0])
            prompt, answer = batch.tokens[row, : first + 1].tolist(), batch.targets[row][kept].tolist()
            found.append((decode(prompt), decode(answer), round(batch.extras["advantages"][row].item(), 5)))
        kept, places = (batch.targets != IGNORE).flatten(), batch.extras["answered"].flatten()
        count = int(kept.sum())
        assert torch.equal(places[:count], kept.nonzero()[:, 0]) and not kept[places[count:]].any()
        assert sorted(found) == sorted((x["prompt"], x["answer"], round(x["advantage"], 5)) for x in lines)
    for start in range(0, 32, 4):  # by hand: how much better than its group
        rewards = torch.tensor([x["reward"] for x in lines[start : start + 4]], dtype=torch.float64)
        wanted = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        assert [x["advantage"] for x in lines[start : start + 4]] == pytest.approx(wanted.tolist(), abs=1e-6)
    assert rows.figures["reward"] == pytest.approx(sum(x["reward"] for x in lines) / 32)
    single = [rows.batch(row, 1) for row in range(3, 7)]
    together = rows.batch(3, 4)
    for row, one in enumerate(single):
        width = one.tokens.shape[1]
        assert torch.equal(one.targets[0], together.targets[row, :width])


@pytest.mark.parametrize(("packs", "size"), [(True, 4), (None, 1)])
def test_whole_groups_share_a_row_where_that_pays(worker, packs, size):
    """The laws of rollouts are tried with rows that do."""
    rows = practised()
    assert rows.packs
    rows.packs, worker.setting.objective = packs, OBJECTIVE
    rows.prepare(0, worker)
    assert [len(rows.batch(first, 8).tokens) for first in (0, 8, 1)] == [8 // size, 8 // size, 8]
    assert len(rows.batch(0, 8).targets) == 8


def test_old_and_reference_logprobs_are_the_models(worker):
    """The oracle: a plain forward pass and log-softmax. And the engine agrees with it."""
    rows = practised()
    rows.prepare(0, worker)
    batch = rows.batch(0, 32)
    kept = batch.targets != IGNORE
    for name, model in {"old": worker.model, "reference": rows.reference}.items():
        with torch.no_grad():
            log_p = model(batch.tokens).log_softmax(-1).gather(2, batch.targets.clamp(min=0)[..., None])[..., 0]
        torch.testing.assert_close(batch.extras[name], log_p.where(kept, torch.zeros(())), atol=1e-6, rtol=1e-5)
    assert 0 < rows.figures["engine_gap"] <= 1e-5


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_the_gap_is_of_the_model_itself_at_any_temperature(worker, temperature):
    rows = practised(temperature=temperature, passes=1, prompts=4)
    rows.prepare(0, worker)
    assert rows.figures["engine_gap"] <= 1e-5 and "old" not in rows.batch(0, 4).extras


def test_a_gap_would_be_seen(monkeypatch, worker):
    rows = practised()
    drawn = Sampler.__call__

    def off(self, *args, **kwargs):
        return [d._replace(logprobs=[p + 0.01 for p in d.logprobs]) for d in drawn(self, *args, **kwargs)]

    monkeypatch.setattr(Sampler, "__call__", off)
    rows.prepare(0, worker)
    assert rows.figures["engine_gap"] == pytest.approx(0.01, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_after_the_weights_change_nothing_old_is_drawn_from(tmp_path, dtype):
    """The same prompts again: their keys, values and compiled norms are of other weights."""
    worker = Worker(setting_of(small_trainer(tmp_path / "run").model, dtype=dtype))
    sampler, asked = Sampler(37, {0}, 8), [(list(range(1, 5 + n % 3)), n) for n in range(6)]
    with worker.policy() as model:
        before = sampler(model, asked, 1.0, told=True)
    for change in (worker.model.parameters(), [worker.model.norm.weight]):
        with torch.no_grad():
            for parameter in change:
                parameter.add_(torch.randn_like(parameter), alpha=0.5)
        with worker.policy() as model:
            after = sampler(model, asked, 1.0, told=True)
            fresh = Sampler(37, {0}, 8)(hidden_twins(model).to(dtype).eval(), asked, 1.0, told=True)
        assert after == fresh and after != before
        before = after


def test_later_turns_read_what_is_new_and_draw_the_same(tmp_path, monkeypatch):
    """Three turns; fewer conversations in each, in another order of rows; answers end early here and there."""
    config = small_trainer(tmp_path / "run").model.config.model_copy(update={"max_position_embeddings": 256})
    model, read = Transformer(config).eval().requires_grad_(False), list[int]()
    hidden = Prompts.hidden

    def counted(self, starts, pieces, rows, lengths):
        read.append(sum(map(len, pieces)))
        return hidden(self, starts, pieces, rows, lengths)

    def played(in_step, reuses):
        sampler = Sampler(37, {0}, 60)
        sampler.in_step = in_step
        texts = [([*range(1, 20), 20 + n % 4], n) for n in range(24)]
        turns, numbers = [], None
        for turn in range(3):
            drawn = sampler(model, texts, 1.0, goes_on=numbers if reuses else None)
            turns.append([(one.tokens, one.ended) for one in drawn])
            numbers = [n for n in range(len(texts)) if n % 3 != turn % 3]
            texts = [(texts[n][0] + drawn[n].tokens + [6, 7], 100 * turn + n) for n in numbers]
        return turns

    monkeypatch.setattr("babyllama.infer.prompts.native", lambda model: None)  # all through `hidden`
    monkeypatch.setattr(Prompts, "hidden", counted)
    whole = played(False, False)
    assert {ended for turn in whole for _, ended in turn} == {True, False}
    for in_step in (False, True):
        read.clear()
        assert played(in_step, False) == whole
        first, later = read[0], sum(read[1:])
        read.clear()
        assert played(in_step, True) == whole and read[0] == first and sum(read[1:]) < later / 5


def test_half_precision_is_lent_as_training_computes(tmp_path):
    worker = Worker(setting_of(small_trainer(tmp_path / "run").model, dtype=torch.bfloat16))
    with worker.policy() as model:
        first = model.norm.weight.data_ptr()
        assert model is not worker.model and not model.training
        for mine, theirs in zip(model.parameters(), worker.model.parameters(), strict=True):
            assert torch.equal(mine, theirs.bfloat16())
    with torch.no_grad():
        worker.model.norm.weight.mul_(2)
    with worker.policy() as model:
        assert model.norm.weight.data_ptr() == first and torch.equal(
            model.norm.weight, torch.full((16,), 2.0).bfloat16()
        )


def test_prompts_without_spread_give_way_to_others(worker):
    plain, redrawn = (practised(rewards=(Flat(),), prompts=8, redraws=n, rows=32) for n in (0, 20))
    for rows in (plain, redrawn):
        rows.prepare(0, worker)
    assert plain.figures["flat_groups"] >= 0.5 and plain.figures["redrawn"] == 0 and plain.groups.cursor == 8
    assert redrawn.figures["redrawn"] > 0 and redrawn.groups.cursor == 8 + redrawn.figures["redrawn"]
    advantages = redrawn.rollout.tensors["advantages"].view(8, 4)
    assert (advantages.abs().amax(1) > 0).all() and (plain.rollout.tensors["advantages"].view(8, 4) == 0).all(1).any()
    flat = practised(rewards=(Flat(weight=0.0),), redraws=2)
    flat.prepare(0, worker)  # nothing differs however often it is drawn: it goes on
    assert (
        flat.figures["flat_groups"] == 1
        and flat.groups.cursor == 24
        and not flat.batch(0, 32).extras["advantages"].any()
    )


def test_a_rollout_of_one_step_is_written_while_the_next_is_drawn(tmp_path, worker):
    """Or before a checkpoint is made; in their order, each once."""
    rows = practised(tmp_path, rows=32, passes=1)

    def written() -> list[int]:
        path = tmp_path / "rollouts.jsonl"
        return [json.loads(line)["rollout"] for line in path.read_text().splitlines()] if path.exists() else []

    for step in range(3):
        rows.prepare(step, worker)
        rows.meanwhile()
        assert written() == [n for n in range(step) for _ in range(32)]
    state = rows.state
    assert written() == [n for n in range(3) for _ in range(32)]
    assert int(state["bytes"]) == (tmp_path / "rollouts.jsonl").stat().st_size
    rows.prepare(3, worker)
    rows.restore(state)
    rows.prepare(3, worker)
    rows.prepare(4, worker)
    assert written() == [n for n in range(4) for _ in range(32)]


def test_answers_that_go_in_step_are_the_same(worker):
    """As they do on a GPU."""
    plain, stepped = (practised(check_every=2) for _ in range(2))
    stepped.groups.agents.sampler.in_step = True
    for number in range(3):
        for rows in (plain, stepped):
            rows.prepare(number * rows.steps, worker)
        assert all(torch.equal(plain.state[name], value) for name, value in stepped.state.items()
                   if name != "figure.engine_gap")  # fmt: skip


def test_bad_rewards_stop_or_are_left_out(tmp_path, worker):
    with pytest.raises(BadReward, match=r"reward broken (raised RuntimeError: no idea|is nan) for the answer .* to "):
        practised(rewards=(Broken(),)).prepare(0, worker)
    rows = practised(tmp_path, rewards=(Broken(), Early()), on_bad_reward="skip")
    rows.groups.say = (said := []).append
    rows.prepare(0, worker)
    rows.meanwhile()
    lines = list(map(json.loads, (tmp_path / "rollouts.jsonl").read_text().splitlines()))
    bad = [line for line in lines if "fault" in line]
    assert 0 < len(bad) == rows.figures["bad_rewards"] < 32 and "left out" in said[0]
    assert all(line["reward"] is None and line["advantage"] == 0 for line in bad)
    batch = rows.batch(0, 32)
    assert OBJECTIVE.weight(batch) == 32 - len(bad)
    assert rows.figures["reward"] == pytest.approx(sum(x["reward"] for x in lines if x not in bad) / (32 - len(bad)))


def test_steps_and_groups_come_out_even():
    assert Rollouts(group=4).count(32) == 8 and Rollouts(prompts=16, group=4).count(32) == 16
    with pytest.raises(InputError, match=r"rollouts.group: 8 answers .* do not divide the 12 rows"):
        Rollouts(group=8).count(12)
    with pytest.raises(InputError, match=r"rollouts.prompts: 24 answers .* no whole number of steps of 16 rows"):
        Rollouts(prompts=6, group=4).count(16)


def test_a_bandit_finds_its_best_arm(tmp_path):
    """One token an answer, worth 1 if it is "f": by REINFORCE's theory π(f) rises to 1."""

    class Arm(Reward):
        kind: str = "arm"

        def __call__(self, answer):
            return float(answer.text == "f")

    method = Grpo()
    trainer = finished(tmp_path / "run", steps=60, objective=method.of(1.0, 1), optimizer=AdamW(lr=3e-2), seed=1,
                       micro_batch_size=32, validate_every=99, save_every=99,
                       stream=lambda: practised(method=method, rewards=(Arm(),), rows=32, chunk=32, passes=1,
                                                max_tokens=1))  # fmt: skip
    rewards = [m["reward"] for m in trainer.run.metrics()]
    assert rewards[0] < 0.2 and min(rewards[-10:]) > 0.95


def test_held_out_prompts(worker):
    """The oracle: the greedy continuation by plain forward passes."""
    asked = prompts().taken(0, 5)
    found = HeldOut(asked, (Early(weight=2.0),), tokenizer(), 4).measure(worker.model.eval())
    texts, counts = [], []
    for prompt in asked:
        tokens = list(prompt.tokens)
        while len(tokens) < len(prompt.tokens) + 4 and (tokens[-1] or len(tokens) == len(prompt.tokens)):
            tokens.append(int(worker.model(torch.tensor([tokens]))[0, -1].argmax()))
        answer = tokens[len(prompt.tokens) :]
        counts.append(len(answer))
        texts.append(tokenizer().decode(answer))
    early = sum(sum(letter < "m" for letter in text) / max(1, len(text)) for text in texts) / 5
    figures = found.figures
    assert figures["reward"] == pytest.approx(2 * early) and figures["reward_early"] == pytest.approx(early)
    assert figures["answer_tokens"] == sum(counts) / 5 and found.loss == -figures["reward"]
    assert "of 5 answers" in found.words and (found + found).figures == figures | {"answers": 10}
