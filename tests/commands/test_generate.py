"""The verb generate: continuations, samples by seed, one question in the chat template."""

from __future__ import annotations

import json
import re

import pytest
import sentencepiece
import torch
from small import sentencepiece_model
from transformers import LlamaConfig, LlamaForCausalLM

from babyllama.commands.generate import GenerateRecipe, main
from babyllama.errors import InputError
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.model.checkpoint import save_model
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer
from babyllama.recipe import load_recipe
from babyllama.tokenizer.tokenizer import Tokenizer

from .small_run import CHATS, save_taught, small_tokenizer, taught_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_taught(tmp_path_factory.mktemp("generate") / "model")


def generate(capsys, folder, *overrides: str) -> str:
    main(load_recipe(GenerateRecipe, None, [f"model={folder}", "device=cpu", *overrides]))
    return capsys.readouterr().out


def test_continuation(capsys, folder):
    prompt = "小小的"
    shown = generate(capsys, folder, f"prompt={prompt}", "temperature=0", "max_tokens=12", "repetition_penalty=1")
    tokenizer = small_tokenizer()
    end = tokenizer.eos_id  # texts of the training data stand after one
    engine = Engine(taught_model(), tokenizer.vocab_size)
    tokens = engine.generate([[end, *tokenizer.encode(prompt)]], Sampling(temperature=0.0), 12, [0, 1, 2, 3, 4, 5])[0]
    assert shown == prompt + tokenizer.decode(tokens) + "\n"


def test_draws_as_said_then_as_the_models_folder_says(capsys, tmp_path):
    """As `chat` and `serve`; a temperature of 100 draws from all tokens alike."""
    folder = save_taught(tmp_path / "model")
    file = folder / "generation_config.json"
    said = json.loads(file.read_text())
    greedy = generate(capsys, folder, "prompt=小", "temperature=0", "max_tokens=12")
    file.write_text(json.dumps({**said, "temperature": 0}))
    assert generate(capsys, folder, "prompt=小", "max_tokens=12") == greedy
    assert generate(capsys, folder, "prompt=小", "max_tokens=12", "temperature=100") != greedy


@pytest.mark.parametrize("llama", [False, True], ids=["ours", "llama"])
def test_sentencepiece_begins_and_goes_on_as_its_model_was_trained(capsys, tmp_path, llama):
    """A LLaMA folder's text begins with bos, ours after an end token; the blank of the first new word is shown.

    The oracle is transformers' own loop over the ids of SentencePiece's own processor.
    """
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    if llama:
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = Tokenizer.load(tmp_path)
    torch.manual_seed(3)
    shape = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=64,
                                          initializer_range=0.3, **shape)).eval()  # fmt: skip
    with torch.no_grad():  # no lone bytes: decoders differ in how many U+FFFD these become
        theirs.lm_head.weight[[i for i in range(len(pieces)) if pieces.is_byte(i)]] = 0
    theirs.save_pretrained(tmp_path)
    if not llama:
        tokenizer.save(tmp_path)
    start, blanks = pieces.bos_id() if llama else pieces.eos_id(), 0
    for prompt in ("The", "今天", "def", "fox", "模型", "Text"):
        ids = [start, *pieces.encode(prompt)]
        given = theirs.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                                max_new_tokens=6, do_sample=False, eos_token_id=2, pad_token_id=0)  # fmt: skip
        new = given[0, len(ids) :].tolist()
        cut = next((at for at, token in enumerate(new) if token in tokenizer.stop_ids), len(new))
        expected = pieces.decode([*ids[1:], *new[:cut]])
        blanks += expected[len(prompt) :].startswith(" ")
        capsys.readouterr()
        shown = generate(capsys, tmp_path, f"prompt={prompt}", "temperature=0", "max_tokens=6", "repetition_penalty=1")
        assert shown == expected + "\n"
    assert blanks


def test_samples_differ_and_repeat(capsys, folder):
    options = ("prompt=你", "samples=3", "temperature=2", "max_tokens=10")
    shown = generate(capsys, folder, *options, "seed=5")
    assert shown == generate(capsys, folder, *options, "sampling.seed=5")
    parts = shown.split("── seed ")[1:]
    assert [part[0] for part in parts] == ["5", "6", "7"] and len({part[1:] for part in parts}) == 3
    last = generate(capsys, folder, "prompt=你", "temperature=2", "max_tokens=10", "seed=7")
    assert parts[2][1:].strip() == last.strip()


def test_one_question_in_the_chat_template(capsys, folder):
    for question, answer in CHATS:
        options = (f"prompt={question}", "chat=true", "temperature=0", "repetition_penalty=1")
        assert generate(capsys, folder, *options) == answer + "\n"


def test_a_text_of_its_own(capsys, folder):
    shown = generate(capsys, folder, "samples=5", "temperature=3", "max_tokens=10")
    assert len(set(shown.splitlines())) > 5 and "Error" not in shown


def test_texts_of_a_given_form(capsys, folder, tmp_path):
    schema = {
        "type": "object",
        "properties": {"legs": {"enum": [2, 4]}},
        "required": ["legs"],
        "additionalProperties": False,
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    for given in (json.dumps(schema), tmp_path / "schema.json"):
        shown = generate(capsys, folder, "prompt=你好！", "chat=true", "samples=2", f"json_schema={given}")
        found = [json.loads(line) for line in shown.splitlines() if line.startswith("{")]
        assert len(found) == 2 and all(one["legs"] in (2, 4) for one in found)
    assert re.fullmatch("小小的(甲|乙){3}\n", generate(capsys, folder, "prompt=小小的", "regex=(甲|乙){3}"))
    (tmp_path / "list.json").write_text("[]")
    for form, fault in [(f"json_schema={tmp_path}/no", "cannot be read"), ("regex=(", "regex: "),
                        (f"json_schema={tmp_path}/list.json", "not a list; give a file"),
                        ("json_schema={type: x}", "json_schema: ")]:  # fmt: skip
        with pytest.raises(InputError, match=fault):
            generate(capsys, folder, "prompt=a", form)
    with pytest.raises(InputError, match="exclude each other"):
        generate(capsys, folder, "prompt=a", "regex=a", "json_schema={}")


def test_guesses_change_no_text(capsys, folder, tmp_path):
    """By n-grams and by a draft, which here is the model itself; a draft of another vocabulary is refused."""
    options = ("prompt=你好！", "chat=true", "temperature=1.5", "samples=3", "max_tokens=20")
    plain = generate(capsys, folder, *options)
    for kind in ("speculate={kind: ngram}", f"speculate={{kind: draft, model: {folder}, most: 3}}"):
        assert generate(capsys, folder, *options, kind) == plain
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    other = Tokenizer.load(tmp_path)
    model = Transformer(ModelConfig(vocab_size=other.vocab_size, hidden_size=16, intermediate_size=32,
                                    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                                    max_position_embeddings=32))  # fmt: skip
    save_model(model, tmp_path, **other.config_ids)
    other.save(tmp_path)
    with pytest.raises(InputError, match=r"speculate\.model: .* another tokenizer"):
        generate(capsys, folder, f"speculate={{kind: draft, model: {tmp_path}}}")
    with pytest.raises(InputError, match="speculate: guesses cannot be read with sinks"):
        generate(capsys, folder, "speculate={kind: ngram}", "sinks=4")


FAULTS = [("max_tokens=[1]", "max_tokens"), ("samples=0", "samples"), ("seed=-1", "seed")]


@pytest.mark.parametrize(("override", "fault"), FAULTS)
def test_bad_values(folder, override, fault):
    with pytest.raises(InputError, match=fault):
        load_recipe(GenerateRecipe, None, [f"model={folder}", "prompt=x", override])


def test_a_prompt_longer_than_the_context(capsys, folder):
    with pytest.raises(InputError, match="shorten the prompt"):
        generate(capsys, folder, f"prompt={'长' * 300}")
