"""Models, cards and steps that the tests of forecasts and budgets share."""

from __future__ import annotations

from hypothesis import strategies as st

from babyllama.foresight.forecast import (
    Workload,
)
from babyllama.hardware import find_card
from babyllama.model.config import ModelChoice, ModelConfig
from babyllama.train.engines.mesh import Mesh

V = 64_793
SEED, BASE = ModelChoice(preset="seed").build(V), ModelChoice(preset="base-218m").build(V)
H100, RTX3060 = find_card("H100"), find_card("RTX 3060")


def workload(config: ModelConfig = SEED, context: int = 512, **other) -> Workload:
    return Workload(config, context, **other)


SHAPES = st.builds(
    Workload,
    config=st.builds(
        lambda depth, layers, vocab, kv: ModelChoice(
            depth=depth, num_hidden_layers=layers, num_key_value_heads=kv or depth).build(vocab),
        st.integers(1, 24), st.integers(2, 24), st.integers(300, 70_000), st.integers(0, 1)),
    context=st.sampled_from([64, 512, 1024]), micro_batch_size=st.integers(1, 300), micro_batches=st.integers(1, 4),
    optimizer=st.sampled_from(["muon", "adamw"]), half=st.booleans(), compiled=st.booleans(), recompute=st.booleans(),
    mesh=st.sampled_from([Mesh(), Mesh(8), Mesh(1, 8), Mesh(2, 4), Mesh(4, context=2), Mesh(2, 2, 4)]))  # fmt: skip
