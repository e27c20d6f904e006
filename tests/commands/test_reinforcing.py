"""train with answers that the model writes itself, as people call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_run import CHATS, by_heart, messages_of, save_taught

from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.commands.train import main as train
from babyllama.commands.train_recipe import TrainRecipe
from babyllama.errors import InputError
from babyllama.load import read_model
from babyllama.model.checkpoint import save_model
from babyllama.recipe import load_recipe
from babyllama.run import Run
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.train import train_bpe

WORDS = ("init.kind=from", "plan.steps=2", "plan.micro_batch_size=8", "plan.log_every=1", "plan.validate_every=1",
         "device=cpu", "optimizer={kind: adamw, lr: 0.001}")  # fmt: skip
LEARN = ("objective={kind: grpo, beta: 0.1}", "rewards=[{kind: exact}, {kind: ends, weight: 0.5}]",
         "rollouts={group: 4, max_tokens: 24}")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that knows four chats by heart, these chats and general texts."""
    folder = tmp_path_factory.mktemp("reinforcing")
    save_taught(folder / "model")
    lines = [{"messages": messages_of(*chat), "held_out": False} for chat in CHATS]
    lines += [{"messages": messages_of(*CHATS[0]), "held_out": True}]
    (folder / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": f"你好，再见。{n}"}) + "\n" for n in range(40)))
    for name in ("chats", "texts"):
        prepare(load_recipe(PrepareRecipe, None, [f"out={folder}/{name}", f"tokenizer={folder}/model",
                f"corpora=[{{path: {folder}/{name}.jsonl}}]", "workers=1", "validation=0.3"]))  # fmt: skip
    return folder


def recipe(folder: Path, out: Path, *more: str, data: str = "chats") -> TrainRecipe:
    return load_recipe(TrainRecipe, None, [f"out={out}", f"data.path={folder}/{data}", f"init.path={folder}/model",
                                           *WORDS, *more])  # fmt: skip


def test_a_run_says_what_its_answers_were_worth(folder, tmp_path, capsys):
    train(recipe(folder, tmp_path / "run", *LEARN, f"rollouts.general={folder}/texts"))
    run = Run.open(tmp_path / "run")
    steps = [m for m in run.metrics() if m["kind"] == "train"]
    looks = [m for m in run.metrics() if m["kind"] == "validation"]
    assert len(steps) == len(looks) == 2
    assert {"reward", "reward_exact", "reward_ends", "kl", "entropy", "ratio", "clipped", "answer_tokens",
            "flat_groups", "engine_gap"} <= set(steps[0])  # fmt: skip
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6) and steps[0]["engine_gap"] <= 1e-5
    answers = [json.loads(line) for line in (run.path / "rollouts.jsonl").read_text("utf-8").split("\n")[:-1]]
    known = dict(CHATS)
    assert len(answers) == 16 and all(answer["reference"] == known[answer["prompt"]] for answer in answers)
    for answer in answers:
        exact = float(answer["answer"] == answer["reference"])
        assert answer["parts"] == {"exact": exact, "ends": float(answer["ended"])}
        assert answer["reward"] == exact + 0.5 * answer["ended"]
    assert looks[0]["reward"] == 1.5 and looks[0]["exact"] == 1 and looks[0]["bits_per_byte"] > 0
    assert run.info["summary"]["validation_exact"] == 1 and (run.path / "best").is_dir()
    said = capsys.readouterr().out
    assert "4 prompts, 2 of them and 4 answers to each in a rollout" in said and "held-out reward 1.5" in said


def test_earlier_texts_are_read_beside_the_answers(folder, tmp_path):
    replay = (f"replay={{path: {folder}/texts, share: 0.5}}", f"rollouts.general={folder}/texts",
              "objective.beta=0", "optimizer.lr=0.01")  # fmt: skip
    with_texts, without = tmp_path / "with", tmp_path / "without"
    train(recipe(folder, with_texts, *LEARN, *replay))
    train(recipe(folder, without, *LEARN, *replay[1:]))
    found, plain = (Run.open(path).metrics() for path in (with_texts, without))
    first, second = (m["text_loss"] for m in found if m["kind"] == "train")
    assert second < first and "text_loss" not in plain[0]
    assert found[-1]["bits_per_byte"] < plain[-1]["bits_per_byte"]


def test_an_adapter_learns_too(folder, tmp_path):
    train(recipe(folder, tmp_path / "run", *LEARN, "adapter={kind: lora, rank: 2}"))
    metrics = Run.open(tmp_path / "run").metrics()
    assert metrics[0]["engine_gap"] <= 1e-5 and (tmp_path / "run" / "model" / "adapter_config.json").is_file()


def test_an_agent_calls_reads_and_goes_on(tmp_path):
    """From questions with their tools to an update: a model that knows two chats with calls by heart."""
    tool = {"type": "function", "function": {"name": "calculator", "parameters": {}}}

    def chat(a, b):
        call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": f"{a}*{b}"}}}
        return [{"role": "user", "content": f"{a}乘以{b}？"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": str(a * b)}, {"role": "assistant", "content": f"得{a * b}"}]  # fmt: skip

    chats = [chat(3, 4), chat(5, 7)]
    lines = [json.dumps({"messages": messages, "tools": [tool], "held_out": held}, ensure_ascii=False)
             for messages in chats for held in (False, True)]  # fmt: skip
    (tmp_path / "chats.jsonl").write_text("\n".join(lines), "utf-8")
    tokenizer = train_bpe(lines, 360)
    rendered = [render_chat(tokenizer, messages, tools=[tool]) for messages in chats]
    (tmp_path / "model").mkdir()
    save_model(by_heart(tokenizer, rendered, 192, 500), tmp_path / "model", **tokenizer.config_ids)
    tokenizer.save(tmp_path / "model")
    prepare(load_recipe(PrepareRecipe, None, [f"out={tmp_path}/chats", f"tokenizer={tmp_path}/model",
            f"corpora=[{{path: {tmp_path}/chats.jsonl}}]", "workers=1"]))  # fmt: skip
    train(recipe(tmp_path, tmp_path / "run", "objective={kind: grpo}", "rewards=[{kind: exact}, {kind: valid_calls}]",
                 "optimizer.lr=0.00001", "rollouts={group: 4, max_tokens: 40, tools: {kind: toolworld}}"))  # fmt: skip
    looks = [m for m in Run.open(tmp_path / "run").metrics() if m["kind"] == "validation"]
    assert looks[0]["exact"] == looks[0]["reward_valid_calls"] == 1
    drawn = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text("utf-8").splitlines()]
    right = [one for one in drawn if one["reward"] == 2]
    assert len(right) > 8 and all(one["calls"] == one["answered"] == 1 for one in right)
    assert all(f"<|tool|>{one['reference'][1:]}<|assistant|>{one['reference']}</s>" in one["answer"] for one in right)
    assert Run.open(tmp_path / "run").metrics()[0]["engine_gap"] <= 1e-5


def test_ppo_s_value_head_is_in_checkpoints_and_in_no_model(folder, tmp_path):
    words = (*LEARN, "objective={kind: ppo}", "plan.save_every=1")
    train(recipe(folder, tmp_path / "run", *words))
    steps = [m for m in Run.open(tmp_path / "run").metrics() if m["kind"] == "train"]
    assert len(steps) == 2 and all(step["value_loss"] > 0 for step in steps)
    assert read_model(tmp_path / "run" / "model").config.vocab_size > 300
    with pytest.raises(InputError, match="ppo trains a value head beside a whole model"):
        recipe(folder, tmp_path / "b", *words, "adapter.kind=lora")


def test_a_teacher_reads_the_students_own_answers(folder, tmp_path):
    """On-policy distillation: no reward, one answer a prompt; from itself there is nothing to learn at first."""
    words = (f"objective={{kind: distil, alpha: 0, divergence: reverse, teacher: {folder}/model}}",
             "rollouts={group: 1, max_tokens: 24}")  # fmt: skip
    train(recipe(folder, tmp_path / "run", *words))
    first, second = (m for m in Run.open(tmp_path / "run").metrics() if m["kind"] == "train")
    assert abs(first["loss"]) < 1e-5 and first["answer_tokens"] == first["targets"] / 8 and abs(second["loss"]) < 1e-3
    drawn = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text("utf-8").splitlines()]
    assert len(drawn) == 16 and all(line["answer"] and not line["parts"] for line in drawn)


@pytest.mark.parametrize("words,said", [
    (("objective={kind: distil}", "rewards=[{kind: exact}]"), r"rewards: objective.kind=distil learns from"),
    ((*LEARN, "rollouts.group=1"), r"rollouts.group: 1 answer has no other to be compared with"),
    (("objective.kind=grpo",), r"rewards: objective.kind=grpo needs to be told"),
    (("rewards=[{kind: exact}]",), r"rewards: objective.kind=next_token learns from the data's own answers"),
    (("rollouts.group=4",), r"rollouts: objective.kind=next_token learns from"),
    ((*LEARN, "init={kind: new}"), r"objective.kind: grpo needs a model that answers already"),
    ((*LEARN, "replay.path={}/texts", "engine.kind=ddp"), r"replay: beside the model's own answers"),
    ((*LEARN, "compile=true"), r"compile: not with objective.kind=grpo"),
    ((*LEARN, "rollouts.group=3"), r"rollouts.group: 3 answers to each prompt do not divide the 8 rows"),
    ((*LEARN, "rollouts.max_tokens=96"), r"rollouts.max_tokens: 96 leave no room for a prompt in 96 tokens"),
    ((*LEARN, "rollouts.max_tokens=95"), r"no prompt fits into 1 tokens beside an answer"),
    ((*LEARN, "rewards=[{kind: idiom_chain, words: nowhere.txt}]"), r"nowhere.txt cannot be read"),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(folder, tmp_path, words, said):
    with pytest.raises(InputError, match=said) as error:
        train(recipe(folder, tmp_path / "run", *(word.replace("{}", str(folder)) for word in words)))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_texts_are_no_prompts(folder, tmp_path):
    with pytest.raises(InputError, match="holds texts; answers are drawn to the questions of chats"):
        train(recipe(folder, tmp_path / "run", *LEARN, data="texts"))
