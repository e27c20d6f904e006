"""transformers reads the folder that `export to=hf` makes: 200 greedy answers equal, each alone and all as one batch.

CONTRIBUTING.md says how this runs with another version of transformers.
"""

from __future__ import annotations

import pytest
import torch
from exported import published, talker, vocabulary
from transformers import AutoModelForCausalLM, AutoTokenizer

from babyllama.export.peers import ours
from babyllama.export.prompts import prompts

pytestmark = pytest.mark.slow
LONGEST = 12


@pytest.mark.parametrize("kind", ["own", "gpt2", "sentencepiece"])
def test_answers_alone_and_as_one_left_padded_batch(kind, tmp_path):
    mine = vocabulary(kind, tmp_path)
    model = talker(mine)
    folder = published(model, mine, tmp_path / "out")
    chats = [[{"role": "user", "content": text}] for text in prompts(200)]
    expected = ours(model, mine)(chats, LONGEST)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    told = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}

    def answers(asked):
        """Of a batch as the folder itself says: padding, ends, everything."""
        made = theirs.generate(**asked, max_new_tokens=LONGEST, do_sample=False)[:, asked["input_ids"].shape[1] :]
        ends = theirs.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        rows = made.tolist()
        return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]

    batch = tokenizer.apply_chat_template(chats, padding=True, **told)
    batch.pop("token_type_ids", None)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) > 10 and bool(
        batch["attention_mask"][:, -1].all()
    )  # rows of many lengths, padded on the left
    alone = []
    for chat, answer in zip(chats, expected, strict=True):
        one = tokenizer.apply_chat_template([chat], **told)
        assert one["input_ids"][0].tolist() == answer.prompt
        alone += answers({"input_ids": one["input_ids"], "attention_mask": one["attention_mask"]})
    wanted = [answer.tokens for answer in expected]
    assert [sum(map(list.__eq__, found, wanted)) for found in (alone, answers(batch))] == [200, 200]
