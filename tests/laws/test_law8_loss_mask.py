"""Law 8: the loss covers the assistant's text and its end token, nothing else; from files to the summed loss.

Oracle: labels made by looking for the answers' own tokens in each conversation, alone in its row.
"""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import IGNORE, DataRecipe, Stream
from babyllama.model.config import ModelConfig
from babyllama.recipe import load_recipe
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import train_bpe
from babyllama.train.losses.objectives import NextToken
from conftest import sharp_model

CHATS = [
    [("系统", ""), ("问：一？", "答一。"), ("再问二？", "答二！")],
    [("", ""), ("你好", "你也好。")],
    [("", ""), ("你是谁？", "我是小羊驼。"), ("真的吗？", "真的。"), ("再见", "再见。")],
]


def messages(chat):
    (system, _), *turns = chat
    found = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        found += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return found


@pytest.fixture(params=["roles", "bos"])
def packed(request, tmp_path):
    text = [m["content"] for chat in CHATS for m in messages(chat)]
    train_bpe(iter(text * 3), 330).save(tmp_path / "tok")
    lines = "".join(json.dumps({"messages": messages(chat)}, ensure_ascii=False) + "\n" for chat in CHATS)
    (tmp_path / "chats.jsonl").write_text(lines, "utf-8")
    given = [f"out={tmp_path / 'out'}", f"tokenizer={tmp_path / 'tok'}", f"template={request.param}", "validation=0",
             f"corpora=[{{path: {tmp_path / 'chats.jsonl'}}}]", "workers=1"]  # fmt: skip
    prepare(load_recipe(PrepareRecipe, None, given))
    data = DataRecipe(path=tmp_path / "out", packing="documents")
    stream = Stream(Prepared.open(tmp_path / "out"), "train", data, 64, seed=1)
    return Tokenizer.load(tmp_path / "tok"), request.param, stream.batch(0, stream.rows)


def test_targets_are_the_answers_and_their_ends(packed):
    tokenizer, _, batch = packed
    kept = batch.targets[batch.targets != IGNORE].tolist()
    expected = sorted(answer for chat in CHATS for _, answer in chat[1:])
    ends = [i for i, token in enumerate(kept) if token == tokenizer.eos_id]
    answers = [tokenizer.decode(kept[a + 1 : b]) for a, b in zip([-1, *ends], ends, strict=False)]
    assert sorted(answers) == expected and kept[-1] == tokenizer.eos_id


def test_packed_loss_is_the_sum_of_the_conversations_alone(packed):
    tokenizer, template, batch = packed
    model = sharp_model(ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64))  # fmt: skip
    total = sum(lonely_loss(model, tokenizer, template, chat) for chat in CHATS)
    loss, _ = NextToken()(model, batch)
    assert loss.item() == pytest.approx(total, rel=1e-5)


def lonely_loss(model, tokenizer, template, chat):
    """Tokens and labels written down by hand, one conversation in one row."""
    (system, _), *turns = chat
    tokens, labels = [], []

    def add(ids, counts):
        tokens.extend(ids)
        labels.extend(ids if counts else [IGNORE] * len(ids))

    if template == "roles":
        if system:
            add([tokenizer.role_ids["system"], *tokenizer.encode(system)], False)
        for question, answer in turns:
            add([tokenizer.role_ids["user"], *tokenizer.encode(question), tokenizer.role_ids["assistant"]], False)
            add([*tokenizer.encode(answer), tokenizer.eos_id], True)
    else:
        for number, (question, answer) in enumerate(turns):
            prompt = f"{system}\n{question}" if system and number == 0 else question
            add([*tokenizer.encode(prompt), tokenizer.bos_id], False)
            add([*tokenizer.encode(answer), tokenizer.eos_id], True)
    logits = model(torch.tensor([tokens]))[0, :-1]
    return cross_entropy(logits, torch.tensor(labels[1:]), ignore_index=IGNORE, reduction="sum").item()
