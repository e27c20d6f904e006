"""The reward model against transformers' sequence classification and its formula in float64; its folder, both ways."""

import json
import math

import pytest
import torch
from small_preferences import PAIRS, Memory, PairRows
from small_training import VOCAB
from transformers import AutoModelForSequenceClassification

from babyllama.errors import InputError
from babyllama.model.checkpoint import load_model, save_model
from babyllama.model.transformer import with_reward_head
from babyllama.train.losses.reward import RewardModel, pair_scores, score
from conftest import sharp_model, tiny_config


@pytest.fixture
def model():
    return with_reward_head(sharp_model(tiny_config()), 5).eval().requires_grad_(True)


def texts_of(batch_rows):
    """The answers of some rows as lists of ids, read from the store itself."""
    store, rows = Memory(), PairRows(whole=True)
    offsets = store.document_offsets
    documents = [document for row in batch_rows for document in rows.corpora[0].documents(row).tolist()]
    return [store.tokens(*offsets[d : d + 2].tolist()).tolist() for d in documents]


def test_loss_and_gradient_are_the_formula_and_scores_are_transformers(tmp_path, model):
    """Each answer alone through LlamaForSequenceClassification, its last token the end token; packed, the same."""
    assert VOCAB <= 67
    save_model(model, tmp_path, bos_id=1, eos_id=0)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).double().eval()
    theirs.model.embed_tokens.padding_idx = None  # its row would get no gradient
    assert type(theirs).__name__ == "LlamaForSequenceClassification" and theirs.num_labels == 1
    batch, texts = PairRows(whole=True).batch(0, 3), texts_of(range(3))
    scores = torch.cat([theirs(torch.tensor([text])).logits[0] for text in texts]).view(-1, 2)
    torch.testing.assert_close(pair_scores(model, batch).double(), scores, atol=1e-5, rtol=1e-5)
    assert score(model, texts) == pytest.approx(scores.flatten().tolist(), abs=1e-5)

    objective = RewardModel(centre=0.3)
    loss, metrics = objective(model, batch)
    wanted = sum(-(1 / (1 + torch.exp(b - a))).log() + 0.3 * (a + b) ** 2 for a, b in scores)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6, abs=1e-5)
    assert objective.weight(batch) == len(scores) < PAIRS
    assert metrics["accuracy"] == sum(a > b for a, b in scores) and metrics["margin"].item() == pytest.approx(
        sum(a - b for a, b in scores).item(), abs=1e-4)  # fmt: skip
    loss.backward()
    wanted.backward()
    named = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        other = named["score.weight" if name == "lm_head.weight" else f"model.{name}"].grad
        torch.testing.assert_close(parameter.grad.double(), other, atol=1e-5 * other.norm().item() + 1e-9, rtol=1e-4)


def test_at_the_start_a_pair_costs_log_2(model):
    with torch.no_grad():
        model.lm_head.weight.zero_()
    batch = PairRows(whole=True).batch(0, 2)
    loss, _ = RewardModel()(model, batch)
    assert loss.item() / RewardModel().weight(batch) == pytest.approx(math.log(2))


def test_the_folder_is_read_strictly(tmp_path, model):
    save_model(model, tmp_path, bos_id=1, eos_id=0)
    again = load_model(tmp_path)
    assert again.config == model.config and again.config.reward and again.lm_head.weight.shape == (1, 32)
    for mine, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, other)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(InputError, match="classifies into 2 labels"):
        load_model(tmp_path)
    path.write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(InputError, match="has shape"):
        load_model(tmp_path)
