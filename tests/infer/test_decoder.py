"""Decoding step by step; what a GPU records is tested in tests/test_gpu.py."""

import torch

from babyllama.infer import decoder
from babyllama.infer.decoder import Decoder
from babyllama.model.attention import KVCache
from conftest import sharp_model, tiny_config


def test_where_nothing_can_be_recorded_steps_are_launched(monkeypatch):
    """More slots than are in use change nothing either."""

    def full(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", full)
    monkeypatch.setattr(decoder, "EAGER_STEPS", 2)
    monkeypatch.setattr(decoder, "SLOTS", 8)
    model, tokens = sharp_model(tiny_config()), torch.randint(67, (2, 20), generator=torch.Generator().manual_seed(0))
    cache = KVCache(model.config, 2, 20, "cpu", torch.float32)

    def step(new, positions):
        return model.lm_head(model.hidden(new[:, None], positions[:, None], cache=cache)[:, 0])

    with torch.inference_mode():
        decode, expected = Decoder(step, cache, captures=True), model(tokens)
        for i in range(20):
            found = decode(tokens[:, i], torch.full((2,), i), i + 1)
            torch.testing.assert_close(found, expected[:, i], atol=1e-5, rtol=1e-5)
            assert cache.used == (i + 1 if i < 2 else max(i + 1, 8))
    assert not decode.captures
