"""PPO beside TRL's trainer on the same model and answers: advantages, both losses with their clips, gradients.

TRL has no PPO since 1.13. So this runs the training loop of `trl.experimental.ppo` as 1.12 has it, whole and untouched,
and looks at what it computes; later versions are compared in the part of the policy, which GRPO's trainer still has.
CONTRIBUTING.md says how to run this, in an environment that has `trl`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exported import beginner, need_trl

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.load import read_model
from babyllama.model.transformer import attach_value_head
from babyllama.train.losses.policy import Ppo
from babyllama.train.rl.rollouts import RolloutRows

pytestmark = pytest.mark.slow
LONGEST, ANSWERS = 9, 4
METHOD = Ppo(epsilon=0.02, value_epsilon=0.05, value_weight=0.7, gamma=0.97, trace=0.9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    need_trl()
    return beginner(tmp_path_factory.mktemp("trl"))


def whole_trainer():
    """TRL's PPO, as far as this version has it."""
    try:
        from trl.experimental.ppo import ppo_trainer  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return ppo_trainer


class Seen:
    """What a training of theirs told: tokens, what answers were worth, and of each pass the model before it, the loss
    and the gradient."""

    def __init__(self) -> None:
        self.tokens, self.scores, self.passes = torch.empty(0), torch.empty(0), []


def their_training(module, folder, place, monkeypatch) -> Seen:
    """Two passes over one rollout with a step so large that ratios and values are cut in the second."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    def classifier(seed):
        torch.manual_seed(seed)
        found = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
        torch.nn.init.normal_(found.score.weight, std=0.3)
        return found.eval()

    tokenizer = AutoTokenizer.from_pretrained(folder)
    policy, value, reward = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), *map(classifier, (1, 2))
    value.model = policy.model  # one trunk, two heads, as ours
    config = module.PPOConfig(
        output_dir=str(place), per_device_train_batch_size=ANSWERS, total_episodes=ANSWERS, num_ppo_epochs=2,
        num_mini_batches=1, response_length=LONGEST, temperature=1.0, kl_coef=0.0, cliprange=METHOD.epsilon,
        cliprange_value=METHOD.value_epsilon, vf_coef=METHOD.value_weight, gamma=METHOD.gamma, lam=METHOD.trace,
        whiten_rewards=False, missing_eos_penalty=None, num_sample_generations=0, report_to=[], use_cpu=True,
        bf16=False, save_strategy="no", gradient_checkpointing=False,
        local_rollout_forward_batch_size=ANSWERS)  # fmt: skip
    parameters = list(dict.fromkeys([*policy.parameters(), *value.parameters()]))
    descent = torch.optim.SGD(parameters, lr=0.3)
    rows = Dataset.from_list([{"input_ids": [7 + i, 9, 11 + 2 * i]} for i in range(ANSWERS)])
    trainer = module.PPOTrainer(
        config, tokenizer, policy, None, reward, rows, value,
        optimizers=(descent, torch.optim.lr_scheduler.LambdaLR(descent, lambda _: 1.0)))  # fmt: skip
    seen, drawn, worth, backward = Seen(), module.batch_generation, module.get_reward, trainer.accelerator.backward

    def generation(*args):
        # none of the answers may end early: theirs has a value after the end too, and takes ended ones for padding
        args[-1].bad_words_ids = [[tokenizer.eos_token_id], [tokenizer.pad_token_id]]
        found = drawn(*args)
        seen.tokens = found[0].clone()
        logits = policy(found[0]).logits[:, -LONGEST - 1 : -1]  # theirs leave out what may not be drawn
        return found[0], logits

    def scores(model, *args):
        found = worth(model, *args)
        if model is reward:
            seen.scores = found[1].clone()
        return found

    def backwards(loss):
        before = {name: p.detach().clone() for name, p in named(policy, value).items()}
        backward(loss)
        seen.passes.append((before, loss.item(), {name: p.grad.clone() for name, p in named(policy, value).items()}))

    monkeypatch.setattr(module, "batch_generation", generation)
    monkeypatch.setattr(module, "get_reward", scores)
    monkeypatch.setattr(trainer.accelerator, "backward", backwards)
    trainer.train()
    return seen


def named(policy, value):
    """Their parameters by our names."""
    found = {name.removeprefix("model."): p for name, p in policy.named_parameters()}
    return {**found, "value.weight": value.score.weight}


def ours_with(folder, weights):
    model = read_model(folder).float()
    attach_value_head(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model.requires_grad_(True)


def test_a_whole_training_is_trls(folder, tmp_path, monkeypatch):
    module = whole_trainer()
    if module is None:
        pytest.fail("this trl has no PPO any more; 1.12 is the last that has")
    seen = their_training(module, folder, tmp_path, monkeypatch)
    assert len(seen.passes) == 2
    tokens, width = seen.tokens, seen.tokens.shape[1]
    drawer = ours_with(folder, seen.passes[0][0])
    rollout = {"tokens": tokens.int(), "first": torch.full((ANSWERS,), width - LONGEST),
               "stop": torch.full((ANSWERS,), width), "counted": torch.ones(ANSWERS, dtype=torch.bool),
               "advantages": seen.scores}  # fmt: skip
    rows: Any = SimpleNamespace(answers=ANSWERS, chunk=2)
    worker: Any = SimpleNamespace(device=torch.device("cpu"))
    found = RolloutRows._expected(rows, METHOD, drawer, rollout, worker)
    targets = tokens[:, 1:].clone()
    targets[:, : width - LONGEST - 1] = IGNORE
    with torch.no_grad():
        old = drawer(tokens[:, :-1]).log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    batch = Batch(tokens[:, :-1].contiguous(), targets, extras={**found, "old": old.where(targets != IGNORE, 0)})
    objective, cut = METHOD.of(1.0, LONGEST), []
    for before, wanted, gradients in seen.passes:
        mine = ours_with(folder, before)
        loss, metrics = objective(mine, batch)
        (loss / objective.weight(batch)).backward()
        assert (loss / objective.weight(batch)).item() == pytest.approx(wanted, abs=1e-5)
        for name, parameter in mine.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-3, msg=name)
        cut.append(metrics["clipped"].item())
    assert cut[0] == 0 < cut[1]


def test_the_policys_part_is_trls(folder, tmp_path):
    """GRPO's trainer with an advantage for each token, which its subclasses may give."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    config = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], loss_type="dapo",
                        epsilon=METHOD.epsilon, max_completion_length=LONGEST, num_generations=ANSWERS,
                        per_device_train_batch_size=ANSWERS, model_init_kwargs={"dtype": torch.float32})  # fmt: skip
    trainer = GRPOTrainer(str(folder), reward_funcs=lambda completions, **_: [0.0] * len(completions), args=config,
                          train_dataset=Dataset.from_list([{"prompt": "一加一等于几？"}]))  # fmt: skip
    theirs, mine = trainer.model.eval(), read_model(folder).float()
    attach_value_head(mine)
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(5, mine.config.vocab_size, (ANSWERS, 3 + LONGEST), generator=generator)
    mask = (torch.arange(LONGEST) < torch.tensor([9, 1, 4, 6])[:, None]).long()
    kept = torch.cat([torch.zeros(ANSWERS, 2), mask], 1).bool()  # by target
    with torch.no_grad():
        log_p = mine(tokens[:, :-1]).log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    old, advantages = (0.05 * torch.randn(kept.shape, generator=generator) + log_p,
                       torch.randn(kept.shape, generator=generator))  # fmt: skip
    wanted = trainer._compute_loss(theirs, {
        "prompt_ids": tokens[:, :3], "prompt_mask": torch.ones(ANSWERS, 3).long(), "completion_ids": tokens[:, 3:],
        "completion_mask": mask, "advantages": advantages[:, 2:], "old_per_token_logps": old[:, 2:],
        "num_items_in_batch": mask.sum()})  # fmt: skip
    wanted.backward()
    extras = {"advantages": advantages, "old": old, "values": torch.zeros(kept.shape),
              "returns": torch.zeros(kept.shape)}  # fmt: skip
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].where(kept, IGNORE), extras=extras)
    objective = METHOD.model_copy(update={"value_weight": 0.0}).of(1.0, LONGEST)
    loss, metrics = objective(mine, batch)
    (loss / objective.weight(batch)).backward()
    assert metrics["clipped"] > 0
    assert (loss / objective.weight(batch)).item() == pytest.approx(wanted.item(), abs=1e-5)
    others = dict(theirs.named_parameters())
    for name, parameter in mine.named_parameters():
        if name != "value.weight":
            other = others[name if name in others else f"model.{name}"].grad
            torch.testing.assert_close(parameter.grad, other, atol=1e-5, rtol=1e-3, msg=name)
