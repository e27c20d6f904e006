"""llama.cpp reads our files: the same ids, the same logits, the same answers. CONTRIBUTING.md says how to run this."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from exported import hostile, pack, sharp, talker, vocabulary

from babyllama.export.blocks import Type
from babyllama.export.gguf_file import write_gguf, write_lora
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.model.config import extended
from babyllama.model.laws import ByPartsRope, LinearRope, NtkRope, YarnRope
from babyllama.model.lora import Lora, attach, merge
from babyllama.model.transformer import make_rope
from babyllama.quant.grid import Grid
from babyllama.tokenizer.chat import render_chat

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def library():
    """With llama.cpp's plain kernels: those that repack weights for one CPU need instructions that it may lack."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.fail("llama-cpp-python is not installed here; CONTRIBUTING.md says how")
    from llama_cpp import llama_cpp

    def plain(given=llama_cpp.llama_model_default_params):
        found = given()
        found.use_extra_bufts = False
        return found

    llama_cpp.llama_model_default_params = plain


def opened(path, **options):
    """With a float32 cache and one thread."""
    from llama_cpp import Llama

    return Llama(str(path), n_ctx=512, verbose=False, type_k=0, type_v=0, n_threads=1, n_threads_batch=1, **options)


def logits(llama, tokens) -> np.ndarray:
    llama.reset()
    llama.eval(tokens)
    return np.ctypeslib.as_array(llama._ctx.get_logits(), (llama.n_vocab(),)).copy()


@pytest.fixture(scope="module", params=["own", "digits", "gpt2", "sentencepiece"])
def tokenizer(request, tmp_path_factory):
    return vocabulary(request.param, tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture
def file(tmp_path, tokenizer):
    def write(model, type: Type = "F32"):
        write_gguf(model, tokenizer, tmp_path / "model.gguf", type, "a name")
        return tmp_path / "model.gguf"

    return write


def test_ids_of_hostile_strings(tokenizer, file):
    llama = opened(file(sharp(tokenizer.vocab_size + 3)))
    wrong = [text for text in hostile(5000)
             if llama.tokenize(text.encode(), add_bos=False, special=False) != tokenizer.encode(text)]  # fmt: skip
    assert not wrong, (len(wrong), wrong[:3])


def test_chats_and_answers(tokenizer, file):
    """Its own rendering of the template, its own greedy choice, its own end."""
    model = sharp(tokenizer.vocab_size, max_position_embeddings=512)
    llama = opened(file(model))
    engine = Engine(model, tokenizer.vocab_size)
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    formatter = Jinja2ChatFormatter(llama.metadata["tokenizer.chat_template"], eos_token="</s>", bos_token="<s>")
    questions = [text for text in hostile(400, seed=7) if not set("<|[") & set(text)][:50]
    for question in questions:
        chat = [{"role": "user", "content": question}]
        ours = render_chat(tokenizer, chat, True).tokens
        text = formatter(messages=chat).prompt
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == ours, question
        answer = engine.generate([ours], Sampling(temperature=0.0), 16, tokenizer.stop_ids)[0]
        theirs = []
        llama.reset()
        for token in llama.generate(ours, temp=0.0, repeat_penalty=1.0):
            theirs.append(token)
            if len(theirs) == 16 or token in tokenizer.stop_ids:
                break
        assert theirs == answer, question


LAWS = [LinearRope(factor=4.0), NtkRope(factor=4.0), ByPartsRope(factor=4.0), YarnRope(factor=4.0),
        YarnRope(factor=4.0, alpha=2.0, beta=9.0, attention_factor=1.3),
        YarnRope(factor=4.0, ramp="rotations")]  # fmt: skip


@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{law.kind}-{getattr(law, 'ramp', '')}")
def test_scaled_rope_at_four_times_the_trained_length(law, tokenizer, file):
    model = sharp(tokenizer.vocab_size)
    model.config = extended(model.config, law)
    model.rope = make_rope(model.config)
    tokens = torch.randint(tokenizer.vocab_size, (1, 256), generator=torch.Generator().manual_seed(2))
    found = logits(opened(file(model)), tokens[0].tolist())
    np.testing.assert_allclose(found, model(tokens)[0, -1].numpy(), rtol=0, atol=1e-4)


def test_lora(tokenizer, file, tmp_path):
    """On the base's file, with a rank and a scale that differ by matrix."""
    model = sharp(tokenizer.vocab_size)
    base = file(model)
    attach(model, Lora(rank=4, ranks={"v_proj": 2}, alpha=24.0, scaling="sqrt_rank"), seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    write_lora(model, tmp_path / "lora.gguf", "a LoRA")
    tokens = torch.randint(tokenizer.vocab_size, (1, 40), generator=torch.Generator().manual_seed(2))
    plain = logits(opened(base), tokens[0].tolist())
    found = logits(opened(base, lora_path=str(tmp_path / "lora.gguf")), tokens[0].tolist())
    merge(model)
    expected = model(tokens)[0, -1].detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.abs(plain - expected).max() > 1


@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_codes_mean_what_they_do_here(symmetric, tokenizer, file):
    """What is left is llama.cpp's own rounding of inputs to 8 bits."""
    model = sharp(tokenizer.vocab_size)
    pack(model, Grid(group_size=32, symmetric=symmetric))
    tokens = torch.randint(tokenizer.vocab_size, (1, 40), generator=torch.Generator().manual_seed(2))
    found, expected = (
        logits(opened(file(model, "Q4_0" if symmetric else "Q4_1")), tokens[0].tolist()),
        model(tokens)[0, -1],
    )
    assert np.abs(found - expected.numpy()).max() < 0.05 * float(expected.std())


def test_verify_finds_all_200_the_same(tokenizer, tmp_path):
    """The verb's own way, from the file that it would write."""
    from babyllama.export.compare import compared
    from babyllama.export.peers import in_llamacpp, ours
    from babyllama.export.prompts import prompts

    model = talker(tokenizer)
    write_gguf(model, tokenizer, tmp_path / "a.gguf", "F32", "a")
    chats = [[{"role": "user", "content": text}] for text in prompts(200)]
    mine, theirs = (peer(chats, 12) for peer in (ours(model, tokenizer), in_llamacpp(tmp_path / "a.gguf")))
    found = compared(mine, theirs, str, 1e-3)
    assert (found.prompts, found.answers, found.ends, found.first < 1e-4) == (200, 200, 200, True), found
