"""TRL trains on the folder that `export to=hf` makes, and learns where an answer ends.

CONTRIBUTING.md says how to run this, in an environment that has `trl`.
"""

from __future__ import annotations

import json

import pytest
import torch
from exported import need_trl, published, sharp, vocabulary

pytestmark = pytest.mark.slow
CHATS = [("你好！", "你好，很高兴见到你。"), ("The quick fox?", "jumps over"), ("一加一等于几？", "一加一等于二。")]


@pytest.fixture(scope="module", autouse=True)
def library():
    need_trl()


@pytest.fixture(scope="module", params=["own", "sentencepiece"])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("trl")
    tokenizer = vocabulary(request.param, place)
    return published(sharp(tokenizer.vocab_size, max_position_embeddings=256), tokenizer, place / "out")


def settings(place):
    return {"output_dir": str(place), "max_steps": 3, "per_device_train_batch_size": 3, "report_to": [],
            "use_cpu": True, "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-3, "bf16": False,
            "model_init_kwargs": {"dtype": torch.float32}}  # fmt: skip


def three_steps(trainer):
    """The losses of three steps that change the weights."""
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 3 and all(map(torch.isfinite, map(torch.tensor, losses)))
    assert all(not torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())
    return losses


@pytest.mark.parametrize("only_answers", [False, True])
def test_sft(folder, tmp_path, only_answers):
    """Of every row the end of the answer is a label, padding is none."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in CHATS]
    trainer = SFTTrainer(str(folder), SFTConfig(**settings(tmp_path), assistant_only_loss=only_answers),
                         train_dataset=Dataset.from_list(rows))  # fmt: skip
    tokenizer = trainer.processing_class
    (batch,) = trainer.get_train_dataloader()
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        learned = labels[labels != -100].tolist()
        assert learned.count(tokenizer.eos_token_id) == 1 == ids[mask.bool()].tolist().count(tokenizer.eos_token_id)
        assert tokenizer.pad_token_id not in learned
        text = tokenizer.decode(learned, skip_special_tokens=True)
        assert any((answer in text) and (question in text) != only_answers for question, answer in CHATS)
    three_steps(trainer)


def test_dpo_on_votes_of_the_web_app(folder, tmp_path):
    """A file as "Save votes" of the page writes it (docs/web.md), as it is."""
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    said = [{"chosen": [{"role": "assistant", "content": a}], "rejected": [{"role": "assistant", "content": "不知道"}],
             "prompt": [{"role": "user", "content": q}], "chosen_model": "b", "rejected_model": "a"}
            for q, a in CHATS]  # fmt: skip
    votes = tmp_path / "votes.jsonl"
    votes.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in said), "utf-8")
    trainer = DPOTrainer(str(folder), args=DPOConfig(**settings(tmp_path)),
                         train_dataset=load_dataset("json", data_files=str(votes), split="train",
                                                    cache_dir=str(tmp_path / "cache")))  # fmt: skip
    tokenizer = trainer.processing_class
    (batch,) = trainer.get_train_dataloader()
    ids, learned = batch["input_ids"], batch["completion_mask"].bool()
    assert len(ids) == 6 and all(
        tokenizer.eos_token_id in row[mask].tolist() for row, mask in zip(ids, learned, strict=True)
    )
    losses = three_steps(trainer)
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # before the first step nothing is preferred
