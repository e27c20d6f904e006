"""Law 7 in many processes: a run that was stopped ends as one that never was, also on another number of processes."""

import shutil

import pytest
import torch
from shrinking import FOUR_STOPPED, SHRUNK, STAGES
from small_training import Silent, small_trainer
from spread import Alone, Result, spread_results
from spread_training import CROSSED, KILLED, STOPPED, WHOLE, losses, settings

from babyllama.train.state import read_state


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return spread_results(tmp_path_factory)


@pytest.mark.parametrize("name", [*STOPPED, *FOUR_STOPPED])
def test_stopped_and_continued_by_as_many(folder, name):
    """Bit for bit: curve and weights."""
    whole, stopped = Result(folder, name), Result(folder, f"stopped-{name}")
    assert stopped.losses == whole.losses
    assert all(torch.equal(weight, whole.weights[key]) for key, weight in stopped.weights.items())


@pytest.mark.parametrize("old,new", CROSSED)
def test_continued_by_another_engine_or_by_more(folder, tmp_path, old, new):
    alone = Alone(tmp_path / "alone", **settings(old.split("-")[1], 4))
    result = Result(folder, f"{old}-to-{new}")
    result.close_to(alone, 1e-4 if "muon" in old else 1e-5)  # Muon's iteration rounds to bf16
    assert [line[1] for line in result.losses] == pytest.approx([line[1] for line in alone.losses], abs=1e-5)


@pytest.mark.parametrize("name", WHOLE)
def test_two_processes_stopped_one_continues(folder, tmp_path, name):
    shutil.copytree(folder / f"{name}-to-alone", tmp_path / "run")
    show = Silent()
    trainer = small_trainer(tmp_path / "run", show=show, **settings(name.split("-")[1], 4))
    trainer.train()
    assert "continuing after step 2" in show.lines
    expected = Result(folder, name).losses
    assert [line[0] for line in losses(trainer)] == [line[0] for line in expected]
    for mine, theirs in zip(losses(trainer), expected, strict=True):
        assert mine[1] == pytest.approx(theirs[1], abs=1e-5)


@pytest.mark.parametrize("name", WHOLE)
def test_every_engine_writes_the_same_names(folder, name):
    """Fault 17: and in float32, with the moments and the guard."""
    one, _ = read_state(next((folder / f"stopped-one-{name.split('-')[1]}-4" / "state").glob("*2")))
    two, facts = read_state(next((folder / f"{name}-to-alone" / "state").glob("*2")))
    assert set(two) == set(one) and facts["world_size"] == 2
    assert all(t.dtype == torch.float32 for n, t in two.items() if n.startswith(("master.", "optimizer.")))
    assert {n: t.shape for n, t in one.items()} == {n: two[n].shape for n in one}


def test_killed_together_and_continued(folder, tmp_path):
    """SIGKILL of all ranks in step 7: what was saved is whole, at most an interval is lost, one process goes on."""
    shutil.copytree(folder / "killed", tmp_path / "run")
    show = Silent()
    trainer = small_trainer(tmp_path / "run", show=show, **KILLED)
    trainer.train()
    assert {"continuing after step 3", "continuing after step 6"} & set(show.lines) and len(show.lines) == 1
    for mine, theirs in zip(losses(trainer), Alone(tmp_path / "alone", **KILLED).losses, strict=True):
        assert mine[1] == pytest.approx(theirs[1], abs=1e-5)


@pytest.mark.parametrize("engine", STAGES)
def test_one_of_four_is_killed_and_fewer_go_on(folder, tmp_path, engine):
    """Two, then one, with FSDP four again, at either end as two copies (HSDP), now and then with half a row each: in
    one directory, whose curve is that of one process, every step once."""
    alone, result = Alone(tmp_path / "alone", **SHRUNK), Result(folder, f"shrinking-{engine}")
    result.close_to(alone, 2e-4)  # Muon's iteration rounds to bf16
    assert [line[0] for line in result.losses] == list(range(1, SHRUNK["steps"] + 1))
    for mine, theirs in zip(result.losses, alone.losses, strict=True):
        assert mine[1] == pytest.approx(theirs[1], abs=1e-5)
    assert not (folder / f"shrinking-{engine}-0.txt").exists()  # all four ended with the one that was killed
    begun = [(folder / f"shrinking-{engine}-{stage}.txt").read_text() for stage in range(1, len(STAGES[engine]))]
    assert begun[0] in ("continuing after step 3", "continuing after step 6")  # one may have been on its way
    assert begun[1:] == ["continuing after step 9", "continuing after step 10"][: len(begun) - 1]
