"""Engines as recipes, and with one process. What many do is in tests/laws/test_law6_world.py and test_law7_world.py."""

import copy

import pytest
import torch
from pydantic import TypeAdapter
from small_training import setting_of, small_trainer
from spread import Alone
from spread_training import losses, settings

from babyllama.data.streams.batches import Batch
from babyllama.errors import InputError
from babyllama.train.engines.engines import Ddp, DeepSpeed, Engine, Fsdp, Single
from babyllama.train.engines.mesh import Mesh
from babyllama.train.engines.worker import Worker
from babyllama.train.engines.world import World
from babyllama.train.optimizers.optim import AdamW, Muon


@pytest.mark.parametrize("kind,engine", [("single", Single()), ("ddp", Ddp()), ("fsdp", Fsdp()),
                                         ("deepspeed", DeepSpeed())])  # fmt: skip
def test_a_recipe_names_its_engine(kind, engine):
    assert TypeAdapter(Engine).validate_python({"kind": kind}) == engine


def test_warming_up_runs_every_size_once_and_teaches_nothing(tmp_path):
    trainer = small_trainer(tmp_path / "run", **settings("adamw", 4))
    trainer.train()
    before, sizes = copy.deepcopy(trainer.model.state_dict()), []
    trainer.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    whole = trainer.stream.batch(0, 5)
    parts = [Batch(whole.tokens[rows], whole.targets[rows]) for rows in (slice(0, 2), slice(2, 4), slice(4, 5))]
    trainer.worker.warm_up(parts)
    assert sorted(sizes) == [1, 2]
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())
    assert all(torch.equal(before[name], weight) for name, weight in trainer.model.state_dict().items())


@pytest.mark.parametrize("engine", [Ddp(), Fsdp()])
def test_without_a_launcher_they_are_one_plain_process(tmp_path, engine):
    trainer = small_trainer(tmp_path / "run", engine=engine, **settings("adamw", 4))
    trainer.train()
    assert type(trainer.worker) is Worker
    assert losses(trainer) == Alone(tmp_path / "alone", **settings("adamw", 4)).losses


def test_single_under_a_launcher_is_one_clear_line():
    with pytest.raises(InputError, match=r"a launcher started 2 processes; use engine\.kind=ddp"):
        Single().check(2, AdamW())


@pytest.mark.parametrize("engine,size,mesh", [
    (Single(), 1, Mesh()), (Ddp(), 4, Mesh(4)), (Fsdp(), 4, Mesh(1, 4)), (Fsdp(replicate=2), 4, Mesh(2, 2)),
    (DeepSpeed(), 4, Mesh(4)), (DeepSpeed(stage=3), 4, Mesh(1, 4)),
])  # fmt: skip
def test_what_an_engine_makes_of_its_processes(engine, size, mesh):
    assert engine.mesh(size) == mesh and mesh.size == size


def test_copies_that_processes_cannot_share_are_one_clear_line():
    with pytest.raises(InputError, match=r"engine\.replicate: 3 copies .* over 4 processes; start a multiple of 3, or"):
        Fsdp(replicate=3).check(4, AdamW())


def test_deepspeed_with_muon_is_one_clear_line():
    with pytest.raises(InputError, match=r"cannot spread muon.*use optimizer.kind=adamw, or engine.kind=fsdp"):
        DeepSpeed().check(1, Muon())


def test_deepspeed_that_is_not_installed_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("babyllama.train.engines.engines.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[deepspeed\]'"):
        DeepSpeed().check(1, AdamW())


def test_every_kind_of_engine_is_the_one_that_works(tmp_path, monkeypatch):
    """Of several processes; what they do is in tests/laws."""
    from babyllama.train.engines import deepspeed, engines, fsdp

    many = setting_of(small_trainer(tmp_path / "run").model, world=World(0, 2, 0))
    seen = []
    for module, name in ((engines, "Replica"), (fsdp, "Sharded"), (deepspeed, "Zero")):
        monkeypatch.setattr(
            module, name, lambda setting, *given, name=name: seen.append((name, setting is many, *given))
        )
    for said in ({"kind": "ddp"}, {"kind": "fsdp"}, {"kind": "fsdp", "reshard_after_forward": False},
                 {"kind": "ddp", "exchange": "bf16"}, {"kind": "fsdp", "blocks": 3},
                 {"kind": "deepspeed"}, {"kind": "deepspeed", "stage": 3, "offload": "cpu"}):  # fmt: skip
        TypeAdapter(Engine).validate_python(said)(many)
    assert seen == [("Replica", True, "fp32"), ("Sharded", True, True, None), ("Sharded", True, False, None),
                    ("Replica", True, "bf16"), ("Sharded", True, True, 3), ("Zero", True, 2, False),
                    ("Zero", True, 3, True)]  # fmt: skip


@pytest.mark.parametrize(("suits", "local_size", "overlap", "kind"), [
    (True, 2, None, "SummedGraph"), (True, 1, None, "Replica"), (True, 2, True, "Replica"), (False, 2, None, "Replica"),
    (True, 1, False, "SummedGraph"), (False, 2, False, "Summed")])  # fmt: skip
def test_gradients_travel_after_the_backward_pass_where_one_machine_can_capture_it(
    tmp_path, monkeypatch, suits, local_size, overlap, kind
):
    from babyllama.train.engines import engines

    two = setting_of(small_trainer(tmp_path / "run").model, world=World(0, 2, 0, local_size=local_size))
    monkeypatch.setattr(engines.Captured, "suits", lambda _: suits)
    for name in ("Replica", "Summed", "SummedGraph"):
        monkeypatch.setattr(engines, name, lambda *_, name=name: name)
    assert Ddp(overlap=overlap)(two) == kind
    if overlap is None:
        assert Ddp(context=2)(two) == "Replica"  # a row that is shared travels in the forward pass, too


@pytest.mark.parametrize(("said", "suits", "local_size", "kind"), [
    ({}, True, 2, "ShardedGraph"), ({}, True, 1, "Sharded"), ({}, False, 2, "Sharded"),
    ({"graph": False}, True, 2, "Sharded"), ({"graph": True}, True, 1, "ShardedGraph"),
    ({"graph": True}, False, 2, "Sharded"), ({"context": 2}, True, 2, "Sharded")])  # fmt: skip
def test_a_sharded_update_is_a_graph_where_it_can_be(tmp_path, monkeypatch, said, suits, local_size, kind):
    from babyllama.train.engines import engines, fsdp

    two = setting_of(small_trainer(tmp_path / "run").model, world=World(0, 2, 0, local_size=local_size))
    monkeypatch.setattr(engines.Captured, "suits", lambda _: suits)
    for name in ("Sharded", "ShardedGraph"):
        monkeypatch.setattr(fsdp, name, lambda *_, name=name: name)
    assert Fsdp(**said)(two) == kind
    assert bool(Fsdp(**said).environment) == said.get("graph", True)


@pytest.mark.parametrize(("wanted", "dtype", "compiled", "used"), [
    (True, torch.bfloat16, True, True), (False, torch.bfloat16, True, False), (True, torch.float32, True, False),
    (True, torch.bfloat16, False, False),
])  # fmt: skip
def test_float8_only_while_a_compiled_model_trains_in_bf16(tmp_path, monkeypatch, wanted, dtype, compiled, used):
    """Validation and samples are exact, and so is what nobody compiles: rounding would be passes of its own."""
    monkeypatch.setattr("babyllama.train.engines.worker.usable", lambda *_: True)
    model = small_trainer(tmp_path / "run").model
    found = Worker(setting_of(model, float8=wanted, dtype=dtype, compiled=compiled))
    parts = [part for block in found.model.layers for part in (block.self_attn, block.mlp)]
    with found._computing():
        assert [part.float8 for part in parts] == [used] * len(parts)
    assert not any(part.float8 for part in parts)
