"""Who this process is, as launchers say it. What processes tell each other is in tests/laws/test_law6_world.py."""

import os

import pytest
import torch
import torch.distributed as dist

from babyllama.errors import InputError
from babyllama.train.engines.world import World


@pytest.fixture
def said(monkeypatch):
    def say(**variables):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return World.from_environment()

    return say


def test_no_launcher_is_one_process(said):
    assert said() == World(0, 1, 0) and said().first


def test_what_torchrun_accelerate_and_deepspeed_set(said):
    world = said(RANK="9", WORLD_SIZE="16", LOCAL_RANK="1")
    assert (world.rank, world.size, world.local_rank, world.first) == (9, 16, 1, False)


@pytest.mark.parametrize("name", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
@pytest.mark.parametrize(("local", "one"), [("4", True), ("2", False)])
def test_all_ranks_know_whether_they_share_a_machine(said, name, local, one):
    assert all(said(RANK=str(r), WORLD_SIZE="4", LOCAL_RANK="1", **{name: local}).one_machine is one for r in range(4))
    assert not said(RANK="1", WORLD_SIZE="4", LOCAL_RANK="1").one_machine  # nobody says so


@pytest.mark.parametrize(
    "variables", [{"RANK": "x"}, {"LOCAL_WORLD_SIZE": "all"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1"}]
)
def test_variables_that_are_no_ranks_are_one_clear_line(said, variables):
    with pytest.raises(InputError, match="use torchrun"):
        said(**variables)


def test_one_process_talks_to_itself():
    world = World()
    world.join(torch.device("cpu"))
    assert world.sum(1.0, 2) == [1.0, 2] and world.gather("a") == ["a"] and world.agree("b") == "b"
    assert world.reduce_(torch.ones(2)).tolist() == [1, 1] and world.second() is world
    world.wait()
    world.leave()


def test_what_an_engine_wants_is_set_before_they_meet_unless_the_user_did(monkeypatch):
    met = []
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: met.append((os.getenv("MINE"), os.environ["NEW"])))
    monkeypatch.setenv("MINE", "1")
    monkeypatch.setenv("NEW", "")  # so that it is gone afterwards
    monkeypatch.delenv("NEW")
    World(0, 2, 0).join(torch.device("cpu"), {"MINE": "0", "NEW": "0"})
    assert met == [("1", "0")]


def test_more_processes_than_gpus_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="rank 3: this machine has 1 GPUs; start one process for each"):
        World(3, 4, 3).device("cuda")
