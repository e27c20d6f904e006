"""Law 7: a run that was stopped anywhere, SIGKILL included, ends bit for bit as one that never was."""

import signal

import pytest
import torch
from killed import KILLED, STEPS, kill_all
from safetensors.torch import load_file
from small_preferences import KINDS
from small_training import Silent, StopAt, fingerprint, finished, small_trainer

from babyllama.errors import InputError, Interrupted
from babyllama.train.optimizers.optim import AdamW, Muon

OPTIMIZERS = {"adamw": AdamW(lr=1e-2), "muon": Muon()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kv_heads,tie", [(2, True), (1, False)])
def test_interrupted_and_continued(tmp_path, dtype, optimizer, kv_heads, tie):
    kwargs = {"dtype": dtype, "optimizer": OPTIMIZERS[optimizer], "kv_heads": kv_heads, "tie": tie}
    whole = finished(tmp_path / "whole", **kwargs)
    stopped = small_trainer(tmp_path / "stopped", show=StopAt(7, signal.SIGTERM), **kwargs)
    with pytest.raises(Interrupted, match="step 7"):
        stopped.train()
    stopped.run.unlock()
    assert [step for step, _ in stopped.run.states()][-1] == 7
    assert fingerprint(finished(tmp_path / "stopped", **kwargs)) == fingerprint(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_preference_training_is_interrupted_and_continued(tmp_path, kind):
    kwargs = {**KINDS[kind], "micro_batch_size": 8, "accumulate": 2, "steps": 9}
    whole = finished(tmp_path / "whole", **kwargs)
    stopped = small_trainer(tmp_path / "stopped", show=StopAt(7, signal.SIGTERM), **kwargs)
    with pytest.raises(Interrupted, match="step 7"):
        stopped.train()
    stopped.run.unlock()
    assert fingerprint(finished(tmp_path / "stopped", **kwargs)) == fingerprint(whole)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    kill_all(folder)
    return folder


@pytest.mark.parametrize("name", KILLED)
def test_killed_and_continued(killed, tmp_path, name):
    """SIGKILL a real process; what it had not saved is trained again, to the same bits."""
    kwargs = {**KILLED[name][0], "steps": STEPS}
    whole = finished(tmp_path / "whole", **kwargs)
    assert not (killed / name / "model").exists()
    assert fingerprint(finished(killed / name, **kwargs)) == fingerprint(whole)


def test_truncated_checkpoint_falls_back_to_the_one_before(tmp_path):
    whole = finished(tmp_path / "whole")
    stopped = small_trainer(tmp_path / "run", show=StopAt(11, signal.SIGINT))
    with pytest.raises(Interrupted):
        stopped.train()
    stopped.run.unlock()
    newest = tmp_path / "run" / "state" / "step-0000011" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    show = Silent()
    again = small_trainer(tmp_path / "run", show=show)
    again.train()
    assert any("truncated" in line and "step-0000011" in line for line in show.lines)
    assert any("continuing after step 10" in line for line in show.lines)
    assert fingerprint(again) == fingerprint(whole)


def test_every_checkpoint_damaged_is_one_clear_line(tmp_path):
    finished(tmp_path / "run")
    for file in (tmp_path / "run" / "state").rglob("state.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        small_trainer(tmp_path / "run").train()


def test_state_is_float32_masters_not_half_precision_weights(tmp_path):
    """Fault 17: resume from half-precision weights."""
    trainer = finished(tmp_path / "run", dtype=torch.bfloat16)
    tensors = load_file(trainer.run.states()[-1][1] / "state.safetensors")
    masters = {name: t for name, t in tensors.items() if name.startswith("master.")}
    assert masters and all(t.dtype == torch.float32 for t in masters.values())
    assert any((t.bfloat16().float() != t).any() for t in masters.values())
