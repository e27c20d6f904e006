"""RoPE against complex multiplication, typed here from the paper; float32 whatever the model's dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from babyllama.model.laws import PlainRope, from_hugging_face_rope
from babyllama.model.rope import Rope, rotate

D = 12


def reference(x, positions, theta):
    """(z_i · exp(i·m·θ_i)) in complex128, z_i = x_i + i·x_{i+D/2} (arXiv 2104.09864, eq. 14–15)."""
    x = x.double().numpy()
    angles = positions.numpy()[:, None, :, None] * theta ** (-2 * np.arange(D // 2) / D)
    z = (x[..., : D // 2] + 1j * x[..., D // 2 :]) * np.exp(1j * angles)
    return torch.from_numpy(np.concatenate([z.real, z.imag], axis=-1)).float()


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_rotation_equals_complex_multiplication(theta):
    x = torch.randn(2, 3, 5, D, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 0, 300, 41, 1023]])
    rotated = rotate(x, *Rope(PlainRope(theta=theta), D)(positions))
    torch.testing.assert_close(rotated, reference(x, positions, theta), rtol=0, atol=2e-4)
    assert torch.equal(rotated[0, :, 0], x[0, :, 0])  # position 0 turns nothing


def test_scores_depend_on_the_distance_only():
    q, k = torch.randn(2, 1, 1, 1, D, generator=torch.Generator().manual_seed(1))
    rope = Rope(PlainRope(), D)

    def score(m, n):
        at = [rotate(x, *rope(torch.tensor([[p]]))) for x, p in ((q, m), (k, n))]
        return (at[0] * at[1]).sum()

    torch.testing.assert_close(score(9, 4), score(109, 104), rtol=0, atol=1e-4)
    assert (score(9, 4) - score(9, 3)).abs() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frequencies_stay_float32(model, dtype):
    before = model.rope.frequencies.clone()
    model.to(dtype)
    assert model.embed_tokens.weight.dtype == dtype
    assert model.rope.frequencies.dtype == torch.float32
    assert torch.equal(model.rope.frequencies, before)
    cos, sin = model.rope(torch.tensor([[10_000]]))
    exact = torch.from_numpy(np.cos(10_000 * 10_000.0 ** (-np.arange(4) / 4))).float()
    assert cos.dtype == sin.dtype == torch.float32
    torch.testing.assert_close(cos[0, 0, 0, :4], exact, rtol=0, atol=1e-3)


def test_frequencies_are_no_part_of_the_weights(model):
    assert not [name for name in model.state_dict() if "rope" in name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rotate_keeps_the_dtype(dtype):
    x = torch.randn(1, 2, 3, D).to(dtype)
    assert rotate(x, *Rope(PlainRope(), D)(torch.arange(3)[None])).dtype == dtype


@pytest.mark.parametrize(
    "more", [{}, {"mscale": 1.0, "mscale_all_dim": 0.7}, {"mscale": 0.707}, {"attention_factor": 1.5}]
)
def test_a_file_with_yarn_turns_as_transformers_turns_it(more):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    found = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64, **more}
    config = LlamaConfig(
        hidden_size=24, num_attention_heads=2, max_position_embeddings=256, rope_parameters=dict(found)
    )
    positions = torch.tensor([[0, 1, 100, 255]])
    expected = LlamaRotaryEmbedding(config)(torch.zeros(1, 4, 24), positions)
    rope, longest = from_hugging_face_rope(found, 256, "config.json")
    assert longest == 256
    for ours, theirs in zip(Rope(rope, D)(positions), expected, strict=True):
        torch.testing.assert_close(ours[:, 0], theirs, rtol=0, atol=2e-5)
