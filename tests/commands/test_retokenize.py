"""The verb, as typed: what it makes answers as before under another vocabulary of the same pieces; faults."""

import json
from pathlib import Path

import pytest
import torch
from small import SMALL_TEXT
from small_run import CHATS, messages_of, save_taught, small_tokenizer

from babyllama import verbs
from babyllama.errors import InputError
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.load import load
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import train_bpe


def answer(folder: Path, question: str) -> str:
    loaded = load(folder, torch.device("cpu"), "fp32")
    prompt = render_chat(loaded.tokenizer, messages_of(question, "")[:1], add_generation_prompt=True).tokens
    engine, greedy = Engine(loaded.model, loaded.tokenizer.vocab_size), Sampling(temperature=0)
    tokens = engine.generate([prompt], greedy, 60, loaded.tokenizer.stop_ids)[0]
    return loaded.tokenizer.decode(tokens)


def test_a_larger_vocabulary_of_the_same_pieces_answers_as_before(tmp_path: Path, capsys) -> None:
    """Tokens that are new are means; with the old tokens at other ids all that was learned is there still."""
    base = save_taught(tmp_path / "base")
    content = json.loads(small_tokenizer().backend.to_str())
    vocab, size = content["model"]["vocab"], len(content["model"]["vocab"])
    special = {token["content"] for token in content["added_tokens"]}
    kept = [piece for piece in vocab if piece not in special]
    moved = {piece: vocab[other] for piece, other in zip(kept, kept[::-1], strict=True)}
    content["model"]["vocab"] = {**vocab, **moved}
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "tokenizer.json").write_text(json.dumps(content))
    words = ["retokenize", str(base), f"tokenizer={tmp_path / 'new'}", f"out={tmp_path / 'out'}"]
    assert verbs.call(words) == 0 and verbs.call(words) == 0
    assert f"of {size:,} tokens {size:,} have the row of one old token" in capsys.readouterr().out
    assert Tokenizer.load(tmp_path / "out").hash != small_tokenizer().hash
    answers = [answer(tmp_path / "out", question) for question, _ in CHATS]
    assert answers == [said for _, said in CHATS]


def test_another_vocabulary_and_faults(tmp_path: Path) -> None:
    base = save_taught(tmp_path / "base")
    train_bpe(SMALL_TEXT, 420).save(tmp_path / "other")
    verbs.call(["retokenize", str(base), f"tokenizer={tmp_path / 'other'}", f"out={tmp_path / 'out'}"])
    made = load(tmp_path / "out", torch.device("cpu"), "fp32")
    assert made.model.config.vocab_size == made.tokenizer.vocab_size == 420
    facts = json.loads((tmp_path / "out" / "run.json").read_text())["summary"]
    assert facts["kept"] + facts["means"] + facts["without"] == 420 and facts["means"] > 20
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"is an adapter.*merge it first"):
        verbs.call(["retokenize", str(adapter), f"tokenizer={tmp_path / 'other'}", f"out={tmp_path / 'x'}"])
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(InputError, match="weights are packed"):
        verbs.call(["retokenize", str(base), f"tokenizer={tmp_path / 'other'}", f"out={tmp_path / 'y'}"])
    assert not (tmp_path / "y").exists()
