"""The reward model's loss and gradient beside TRL's RewardTrainer on the same model and pairs.

CONTRIBUTING.md says how to run this, in an environment that has `trl`.
"""

from __future__ import annotations

import pytest
import torch
from exported import need_trl, save, sharp, vocabulary

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.model.checkpoint import load_model
from babyllama.model.transformer import with_reward_head
from babyllama.train.losses.reward import RewardModel

pytestmark = pytest.mark.slow
PAIRS = [("你好！", "你好，很高兴见到你。", "不知道"), ("The quick fox?", "jumps over", "the lazy dog sleeps"),
         ("一加一等于几？", "一加一等于二。", "一加一等于三，大概。")]  # fmt: skip


def our_batch(ids, kept):
    """TRL's padded rows, all better ones first, as one packed row of pairs."""
    order = [i for pair in range(len(PAIRS)) for i in (pair, pair + len(PAIRS))]
    texts = [ids[i][kept[i].bool()] for i in order]
    lengths = torch.tensor([len(text) for text in texts])
    tokens, label = torch.cat(texts), torch.zeros(int(lengths.sum()), dtype=torch.int64)
    label[: len(texts)] = torch.tensor([1, -1] * len(PAIRS))
    segments = torch.repeat_interleave(torch.arange(len(texts)), lengths)
    positions = torch.cat([torch.arange(n) for n in lengths.tolist()])
    targets = torch.full_like(tokens, IGNORE)  # scores look at no target
    return Batch(tokens[None], targets[None], positions[None], segments[None], extras={"label": label[None]})


@pytest.mark.parametrize("centre", [0.0, 0.3])
def test_loss_and_gradient_are_trls(tmp_path, centre):
    need_trl()
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer  # pyright: ignore[reportMissingImports]

    tokenizer = vocabulary("own", tmp_path)
    folder = save(with_reward_head(sharp(tokenizer.vocab_size, max_position_embeddings=256), 5), tokenizer,
                  tmp_path / "model")  # fmt: skip
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    rows = [{"prompt": [{"role": "user", "content": q}], "chosen": [{"role": "assistant", "content": a}],
             "rejected": [{"role": "assistant", "content": b}]} for q, a, b in PAIRS]  # fmt: skip
    config = RewardConfig(output_dir=str(tmp_path / "trl"), per_device_train_batch_size=len(PAIRS), report_to=[],
                          use_cpu=True, bf16=False, save_strategy="no",
                          center_rewards_coefficient=centre or None)  # fmt: skip
    trainer = RewardTrainer(theirs, args=config, train_dataset=Dataset.from_list(rows),
                            processing_class=AutoTokenizer.from_pretrained(folder))  # fmt: skip
    (given,) = trainer.get_train_dataloader()
    batch = our_batch(given["input_ids"], given["attention_mask"])
    theirs.eval()
    theirs.model.embed_tokens.padding_idx = None  # its row would get no gradient
    wanted = trainer.compute_loss(theirs, dict(given))
    wanted.backward()
    mine, objective = load_model(folder).float().requires_grad_(True), RewardModel(centre=centre)
    loss = objective(mine, batch)[0] / objective.weight(batch)
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5, rel=1e-5)
    named = dict(theirs.named_parameters())
    for name, parameter in mine.named_parameters():
        other = named["score.weight" if name == "lm_head.weight" else f"model.{name}"].grad
        assert (parameter.grad - other).norm() <= 1e-4 * other.norm() + 1e-7, name
