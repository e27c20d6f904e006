"""What somebody sees whose pairs, prompts, rewards or teachers do not suit: one line, and never silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_run import CHATS, messages_of, save_taught, small_tokenizer

from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.commands.train import main as train
from babyllama.commands.train_recipe import TrainRecipe
from babyllama.errors import InputError
from babyllama.model.checkpoint import save_model
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise, with_reward_head
from babyllama.recipe import load_recipe

LEARN = ("rollouts={group: 4, max_tokens: 24}", "rewards=[{kind: exact}]")


def save(folder: Path, positions: int, score: float | None = None) -> None:
    """A random model; with `score` a reward model that finds nothing else."""
    model = Transformer(ModelConfig(
        vocab_size=small_tokenizer().vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=positions))  # fmt: skip
    initialise(model, 0)
    if score is not None:
        model = with_reward_head(model, 1)
        with torch.no_grad():
            model.lm_head.weight.fill_(score)
    folder.mkdir()
    save_model(model, folder, **small_tokenizer().config_ids)
    small_tokenizer().save(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("faults")
    save_taught(place / "model")
    save(place / "short", 24)
    save(place / "judge", 16, 0.5)
    save(place / "broken", 96, float("nan"))
    chats = [{"messages": messages_of(*chat), "held_out": held} for chat in CHATS for held in (False, True)]
    pairs = [{"prompt": f"{q}{n}", "chosen": a, "rejected": "不知道。"} for q, a in CHATS for n in range(4)]
    for name, records in (("chats", chats), ("pairs", pairs)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        prepare(load_recipe(PrepareRecipe, None, [f"out={place}/{name}", f"tokenizer={place}/model",
                f"corpora=[{{path: {place}/{name}.jsonl}}]", "workers=1", "validation=0.3"]))  # fmt: skip
    return place


@pytest.fixture
def said(folder, tmp_path, capsys):
    """What a training says, in lines of any width."""

    def run(data: str, *words: str) -> str:
        capsys.readouterr()
        train(load_recipe(TrainRecipe, None, [
            f"out={tmp_path}/run", f"data.path={folder}/{data}", "init.kind=from", f"init.path={folder}/model",
            "plan.steps=2", "plan.micro_batch_size=8", "plan.log_every=1", "device=cpu", "optimizer.lr=0.0001",
            "optimizer.kind=adamw", *(word.replace("HERE", str(folder)) for word in words)]))  # fmt: skip
        return " ".join(capsys.readouterr().out.split())

    return run


@pytest.mark.parametrize(("data", "words", "fault"), [
    ("pairs", ("objective={kind: dpo, reference: HERE/short}",),
     "short has 24 positions, and answers here may have 96 tokens with their prompt; give plan.context=24"),
    ("chats", ("objective={kind: distil, alpha: 0, teacher: HERE/short}", "rollouts={group: 1, max_tokens: 24}"),
     "short has 24 positions, and rows here have 28 tokens"),
    ("chats", ("objective={kind: distil, teacher: HERE/short}",),
     "short has 24 positions, and rows here have 96 tokens; give plan.context=24"),
])  # fmt: skip
def test_a_teacher_or_reference_that_is_too_short(said, data, words, fault):
    """Beyond its positions it would say something, or NaN, and nobody would know."""
    with pytest.raises(InputError, match=fault):
        said(data, *words)


def test_answers_that_are_all_worth_the_same(said):
    """Once, not for each rollout; a value head learns all the same."""
    words = ("rewards=[{kind: length, high: 1000}]", "rollouts={group: 4, max_tokens: 24}")
    told = said("chats", "objective={kind: grpo}", *words)
    assert told.count("rollout 0: to each prompt all answers are worth the same") == 1 and "rollout 1:" not in told


def test_a_value_head_learns_from_them(said):
    words = ("rewards=[{kind: length, high: 1000}]", "rollouts={group: 4, max_tokens: 24}")
    assert "worth the same" not in said("chats", "objective={kind: ppo}", *words)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_a_reward_model_that_says_nothing(said, kind):
    told = said("chats", f"objective={{kind: {kind}}}", "rewards=[{kind: model, path: HERE/broken}]",
                "rollouts={group: 4, max_tokens: 24, on_bad_reward: skip}")  # fmt: skip
    assert "reward model is nan for the answer" in told and "(7 more of this rollout); left out" in told
    assert "nothing is learned from it" in told and "worth the same" not in told


def test_a_reward_model_that_cannot_read_all(said):
    told = said("chats", "objective={kind: grpo}", LEARN[0], "rewards=[{kind: model, path: HERE/judge}]")
    assert "the reward model has 16 positions; of longer answers, prompt included, it reads the end alone" in told


def test_an_agent_without_tools(said):
    told = said("chats", "objective={kind: grpo}", *LEARN, "rollouts.tools={kind: toolworld}")
    assert "rollouts.tools: none of the first 4 prompts lists a tool" in told
