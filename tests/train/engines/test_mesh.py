"""Who holds and who reads what; that trainings come out alike is in tests/laws/test_law6_world.py."""

import pytest

from babyllama.errors import InputError
from babyllama.model.config import Moe
from babyllama.train.engines.mesh import Mesh
from conftest import tiny_config


def test_neighbours_read_the_same_rows_and_one_of_them_counts():
    mesh = Mesh(replicate=2, shard=4, context=2)
    assert mesh.size == 8 and mesh.readers == 4
    assert [mesh.reader(rank) for rank in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [rank for rank in range(8) if mesh.counts(rank)] == [0, 2, 4, 6]


@pytest.mark.parametrize("mesh,said", [
    (Mesh(), ""), (Mesh(4), "replicate 4"), (Mesh(1, 4), "shard 4"), (Mesh(2, 4), "replicate 2 × shard 4"),
    (Mesh(2, 4, 2), "replicate 2 × shard 4, context 2"), (Mesh(2, 1, 2), "replicate 2, context 2"),
])  # fmt: skip
def test_its_words_name_what_has_more_than_one_process(mesh, said):
    assert str(mesh) == said


@pytest.mark.parametrize("size,changed,halved,tokens,objective,said", [
    (3, {}, False, 12, "next_token", "of a model with 4 heads: they share these out; choose a divisor"),
    (4, {}, True, 16, "next_token", "of a model with 4 heads halved by attend.kind=shifted_sparse"),
    (2, {}, False, 13, "next_token", "of 13 tokens; give a multiple of 2 in plan.context"),
    (2, {"moe": Moe(experts=3, active=2)}, False, 12, "next_token", "of a model with experts"),
    (2, {}, False, 12, "dpo", "of objective.kind=dpo, whose loss goes by whole answers"),
])  # fmt: skip
def test_what_cannot_be_shared_out_is_one_clear_line(size, changed, halved, tokens, objective, said):
    config = tiny_config()
    assert config.num_attention_heads == 4
    with pytest.raises(InputError, match=rf"^engine\.context: {size} processes cannot share a row {said}"):
        Mesh(size, context=size).check(config.model_copy(update=changed), tokens, objective, halved)
    Mesh(2, context=2).check(config, 12, "next_token", True)
    Mesh(size).check(config.model_copy(update=changed), tokens, objective, halved)
