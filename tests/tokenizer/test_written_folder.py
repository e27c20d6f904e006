"""The folder that others read: batches and collators of transformers, several end tokens, tokens beside a model."""

import json
from pathlib import Path

import pytest
import torch
from small import SMALL_TEXT, sentencepiece_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

from babyllama.errors import InputError
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.load import check_vocabulary, load
from babyllama.model.checkpoint import save_model
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import train_bpe


def sharp_model(vocab_size: int) -> Transformer:
    """Weights far from the start, so that a wrong mask or position changes the likeliest token."""
    model = Transformer(ModelConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96))  # fmt: skip
    initialise(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 6
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["own", "sentencepiece"])
def folder(request, tmp_path_factory) -> Path:
    """A model with its tokenizer, as the verbs write them."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "own":
        tokenizer = train_bpe(SMALL_TEXT, 460)
    else:
        (folder / "source.model").write_bytes(sentencepiece_model())
        tokenizer = Tokenizer.load(folder / "source.model")
    save_model(sharp_model(tokenizer.vocab_size), folder, **tokenizer.config_ids)
    tokenizer.save(folder)
    return folder


def test_a_batch_straight_from_the_folder_is_ours_row_by_row(folder: Path) -> None:
    """50 prompts of many lengths, padded as the folder says, greedy: every row as our engine answers it alone."""
    theirs = AutoTokenizer.from_pretrained(folder)
    prompts = [SMALL_TEXT[i % 5].replace("\n", " ")[: 1 + (7 * i) % 23] for i in range(50)]
    batch = theirs(prompts, padding=True, return_tensors="pt", return_token_type_ids=False)
    assert (batch.attention_mask == 0).any() and batch.attention_mask[:, -1].all()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    made = model.generate(**batch, max_new_tokens=12, do_sample=False)[:, batch.input_ids.shape[1] :].tolist()
    loaded = load(folder, torch.device("cpu"), "fp32")
    end, pad = loaded.tokenizer.eos_id, loaded.tokenizer.pad_id
    engine = Engine(loaded.model, loaded.tokenizer.vocab_size)
    mine = [loaded.tokenizer.encode(prompt) for prompt in prompts]
    ours = [engine.generate([prompt], Sampling(temperature=0.0), 12, [end])[0] for prompt in mine]
    same = [row == answer + [pad] * (len(row) - len(answer)) for row, answer in zip(made, ours, strict=True)]
    assert sum(same) == 50, [i for i, equal in enumerate(same) if not equal]
    assert len({tuple(answer) for answer in ours}) > 20


def test_a_collator_keeps_the_labels_of_ends(folder: Path) -> None:
    """It hides the labels of every pad: one that is the end token would never be learned."""
    theirs = AutoTokenizer.from_pretrained(folder)
    texts = [theirs(text)["input_ids"] + [theirs.eos_token_id] for text in ("今天", "天空是蓝色的，云是白色的。")]
    batch = DataCollatorForLanguageModeling(theirs, mlm=False)([{"input_ids": text} for text in texts])
    for row, text in zip(batch["labels"].tolist(), texts, strict=True):
        assert [label for label in row if label != -100] == text and row[-1] == theirs.eos_token_id
    assert (batch["labels"] == -100).any()


def test_a_foreign_folder_may_name_several_ends(folder: Path, tmp_path: Path) -> None:
    """As LLaMA 3's generation_config.json; they end our answers too, and a folder that we write keeps them."""
    tokenizer = Tokenizer.load(folder)
    word, plain = tokenizer.encode("天")[-1], tokenizer.encode("的")[-1]
    assert tokenizer.stop_ids.isdisjoint({word, plain})
    tokenizer.save(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.eos_id, word, plain]}))
    found = Tokenizer.load(tmp_path)
    assert found.stop_ids == tokenizer.stop_ids | {word, plain} and found.special_ids == tokenizer.special_ids
    save_model(sharp_model(found.vocab_size), tmp_path, **found.config_ids)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
    assert sorted(theirs.eos_token_id) == sorted({tokenizer.eos_id, tokenizer.role_ids["user"], word, plain})
    assert Tokenizer.load(tmp_path).stop_ids == found.stop_ids
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(InputError, match=r"generation_config\.json: eos_token_id must be ids, got '</s>'"):
        Tokenizer.load(tmp_path)


def test_added_tokens_beside_a_llama_model(tmp_path: Path) -> None:
    """added_tokens.json gives them their ids after the pieces; another id than the next is refused."""
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    pieces = Tokenizer.load(tmp_path).vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": pieces + 1, "<sep>": pieces}))
    tokenizer = Tokenizer.load(tmp_path)
    assert [tokenizer.backend.token_to_id(name) for name in ("<sep>", "<pad>")] == [pieces, pieces + 1]
    assert tokenizer.vocab_size == pieces + 2 and tokenizer.pad_id == pieces + 1
    assert {pieces, pieces + 1}.isdisjoint(tokenizer.encode("<sep>天<pad>"))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<sep>": pieces + 7}))
    with pytest.raises(InputError, match=rf"'<sep>' should have id {pieces + 7}"):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_larger_than_the_model_is_named(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    model = sharp_model(tokenizer.vocab_size - 2)
    last = [tokenizer.vocab_size - back for back in (2, 1)]
    names = [repr(tokenizer.decode([token], skip_special=False)) for token in last]  # characters, not a piece's bytes
    with pytest.raises(InputError) as error:
        check_vocabulary(model, tokenizer, folder)
    said = str(error.value)
    assert f"the tokenizer has {tokenizer.vocab_size} ids, the model has rows for {tokenizer.vocab_size - 2}" in said
    assert f": {', '.join(names)} came with" in said
    assert f"resize_token_embeddings({tokenizer.vocab_size})" in said and "\n" not in said
    check_vocabulary(sharp_model(tokenizer.vocab_size), tokenizer, folder)
