"""Policy losses beside TRL's on the same model and batch. CONTRIBUTING.md says how to run this, where `trl` is."""

from __future__ import annotations

import pytest
import torch
from exported import beginner, need_trl

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.load import read_model
from babyllama.train.losses.policy import Cispo, Dapo, DrGrpo, Grpo, Gspo, Rloo

pytestmark = pytest.mark.slow
LONGEST = 9
METHODS = {
    "grpo": (Grpo(beta=0.3), {"loss_type": "grpo"}),
    "dr_grpo": (DrGrpo(beta=0.1), {"loss_type": "dr_grpo"}),
    "dapo": (Dapo(beta=0.2), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "gspo": (Gspo(epsilon=0.02, epsilon_high=0.03, beta=0.1),
             {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02, "epsilon_high": 0.03}),
    # TRL cuts the weight at epsilon_high itself.
    "cispo": (Cispo(epsilon_high=0.1), {"loss_type": "cispo", "epsilon_high": 1.1}),
    "rloo": (Rloo(), {}),  # theirs takes the divergence off the reward, so beta is 0
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    need_trl()
    return beginner(tmp_path_factory.mktemp("trl"))


def their_trainer(kind, folder, place, beta, words):
    """For answers that are given to it: its rewards are never asked."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer  # pyright: ignore[reportMissingImports]

    trainer, config = (RLOOTrainer, RLOOConfig) if kind == "rloo" else (GRPOTrainer, GRPOConfig)
    if kind != "rloo":
        words = {**words, "use_bias_correction_kl": False}
    args = config(output_dir=str(place), use_cpu=True, bf16=False, report_to=[], beta=beta, num_generations=4,
                  max_completion_length=LONGEST, per_device_train_batch_size=4, **words,
                  model_init_kwargs={"dtype": torch.float32})  # fmt: skip
    return trainer(str(folder), reward_funcs=lambda completions, **_: [0.0] * len(completions), args=args,
                   train_dataset=Dataset.from_list([{"prompt": "一加一等于几？"}]))  # fmt: skip


@pytest.mark.parametrize("kind", METHODS)
def test_loss_and_gradient_are_trls(folder, tmp_path, kind):
    method, words = METHODS[kind]
    trainer = their_trainer(kind, folder, tmp_path, method.beta, words)
    theirs, mine = trainer.model.eval(), read_model(folder).float()
    generator = torch.Generator().manual_seed(5)
    prompts = torch.randint(5, mine.config.vocab_size, (4, 3), generator=generator)
    answers = torch.randint(5, mine.config.vocab_size, (4, LONGEST), generator=generator)
    mask = (torch.arange(LONGEST) < torch.tensor([9, 1, 4, 6])[:, None]).long()
    tokens = torch.cat([prompts, answers], 1)
    kept = torch.cat([torch.zeros(4, 2), mask], 1).bool()  # by target
    with torch.no_grad():
        log_p = mine(tokens[:, :-1]).log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    old, reference = (
        (log_p + 0.25 * torch.randn(log_p.shape, generator=generator)).where(kept, torch.zeros(())) for _ in range(2)
    )
    advantages = torch.tensor([1.3, -0.4, 0.7, -1.6])
    loss = trainer._compute_loss(theirs, {
        "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": answers,
        "completion_mask": mask, "advantages": advantages, "old_per_token_logps": old[:, 2:],
        "old_logps": old.sum(1), "ref_per_token_logps": reference[:, 2:],
        "num_items_in_batch": mask.sum()})  # fmt: skip
    loss.backward()
    objective = method.of(1.0, LONGEST)
    extras = {"advantages": advantages, "old": old, "reference": reference}
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].where(kept, IGNORE), extras=extras)
    found, metrics = objective(mine, batch)
    (found / objective.weight(batch)).backward()
    assert metrics["clipped"] > 0
    assert (found / objective.weight(batch)).item() == pytest.approx(loss.item(), abs=1e-5)
    named = dict(theirs.named_parameters())
    for name, parameter in mine.named_parameters():
        other = named[name if name in named else f"model.{name}"].grad
        torch.testing.assert_close(parameter.grad, other, atol=1e-5, rtol=1e-3, msg=name)
