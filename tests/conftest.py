"""What the tests share: one thread, the shapes that every law is tried on, a twin from transformers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

from babyllama import cli
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

torch.set_num_threads(1)
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started this in the background

VARIANTS = {
    f"{name}-{'tied' if tied else 'untied'}": (kv_heads, tied)
    for name, kv_heads in {"mha": 4, "gqa": 2, "mqa": 1}.items()
    for tied in (True, False)
}


def tiny_config(kv_heads: int = 2, tied: bool = True) -> ModelConfig:
    """A LLaMA of some thousand parameters; no two of its sizes are equal, so that a mixed-up axis cannot hide."""
    return ModelConfig(
        vocab_size=67, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=64, tie_word_embeddings=tied)  # fmt: skip


def sharp_model(config: ModelConfig, seed: int = 1) -> Transformer:
    """Weights far from the start (norms too), so that attention is not nearly uniform and a fault shows."""
    model = Transformer(config)
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 6
            else:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def transformers_twin(model: Transformer) -> LlamaForCausalLM:
    """transformers' LLaMA with the same weights, copied by name: the independent oracle."""
    from transformers import LlamaConfig, LlamaForCausalLM  # here: seven seconds that not every process needs

    config = model.config
    rope = {"rope_type": "default", "rope_theta": config.rope.theta}
    shape = config.model_dump(exclude={"rope"})
    twin = LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=rope, attn_implementation="eager"))
    names = {
        n: n if n.startswith("lm_head") else f"model.{n}" for n, _ in model.named_parameters(remove_duplicate=False)
    }
    twin.load_state_dict({names[n]: p for n, p in model.named_parameters(remove_duplicate=False)}, strict=True)
    return twin.eval().requires_grad_(False)


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """No test cuts the power, and what a killed process wrote stays. That the disk is asked: tests/test_atomic.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def config() -> ModelConfig:
    return tiny_config()


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def variants(request: pytest.FixtureRequest) -> ModelConfig:
    """Every variant of heads and tying in turn: MHA, GQA, MQA × tied, untied."""
    return tiny_config(*request.param)


@pytest.fixture(params=["gqa-tied", "mqa-untied"])
def two_variants(request: pytest.FixtureRequest) -> ModelConfig:
    """For modules whose `variants` it is: those to which heads and tying are shapes of matrices and nothing else."""
    return tiny_config(*VARIANTS[request.param])


@pytest.fixture
def model(variants: ModelConfig) -> Transformer:
    """A sharp model of every variant in turn."""
    return sharp_model(variants)


@pytest.fixture
def twin(model: Transformer) -> LlamaForCausalLM:
    return transformers_twin(model)


@pytest.fixture
def tokens() -> torch.Tensor:
    """(2, 22) random ids below 67."""
    return torch.randint(67, (2, 22), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def small_quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all runs of a quickstart, made small; to be read, not written."""
    from small_quickstart import quickstart_once

    return quickstart_once(tmp_path_factory) / "runs" / "quickstart"


@pytest.fixture(scope="module")
def theirs(folder: Path):
    """What transformers makes of a tokenizer's folder, which the module gives by its fixture `folder`."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def one_clear_line(words: list[str], expected: str, monkeypatch, capsys) -> None:
    """What the program says of a user's fault: one line, exit code 2. In this process, which saves seconds; that a
    process of its own ends so too is in tests/test_cli.py."""
    monkeypatch.setattr("sys.argv", ["babyllama", *words])
    capsys.readouterr()
    code, said = cli._run(), capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("babyllama: ")]
    assert code == 2 and len(lines) == 1 and expected in lines[0], said


# A busy machine may take a second for what takes a millisecond: no test goes by the clock.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
