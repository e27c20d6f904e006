"""Who holds and who reads what; that trainings come out alike is in tests/laws/test_law6_world.py."""

import pytest

from babyllama.train.engines.mesh import Mesh


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
