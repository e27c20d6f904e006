"""Laws 6 and 7 for answers that the model writes itself: how a step is cut, and being stopped in the middle of a
rollout's steps, change nothing. Several processes are in test_law6_world.py and test_law7_world.py."""

import json
import signal
from functools import partial

import pytest
import torch
from small_rollouts import OBJECTIVE, TEXTS, calling, practised
from small_training import StopAt, fingerprint, finished, small_trainer

from babyllama.errors import Interrupted
from babyllama.train.losses.policy import Dapo, Grpo, Ppo, Rloo
from babyllama.train.optimizers.optim import AdamW

SMOOTH = AdamW(lr=1e-2, eps=1e-3)  # so that rounding stays rounding


def kwargs(folder, objective=OBJECTIVE, **more):
    stream = partial(practised, folder, objective.method, chunk=more.get("micro_batch_size", 4),
                     texts=TEXTS if objective.replay else None)  # fmt: skip
    return {"stream": stream, "objective": objective, "optimizer": SMOOTH, "micro_batch_size": 4, "accumulate": 4,
            "save_every": 5, **more}  # fmt: skip


@pytest.mark.parametrize("objective", [OBJECTIVE, Dapo().of(1.0, 5, 0.5), Rloo(beta=0.2).of(1.0, 5), Ppo().of(1.0, 5)])
def test_accumulation_changes_nothing(tmp_path, objective):
    curves, weights = [], []
    for micro in (16, 4, 1):
        folder = tmp_path / str(micro)
        cut = {"micro_batch_size": micro, "accumulate": 16 // micro}
        trainer = finished(folder, **kwargs(folder, objective, steps=6, **cut))  # four of a rollout, two of the next
        curves.append([[m[k] for k in ("loss", "norm", "entropy", "ratio", "reward")] for m in trainer.run.metrics()])
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    for curve, weight in zip(curves[1:], weights[1:], strict=True):
        assert len(curve) == 6
        for mine, theirs in zip(curve, curves[0], strict=True):
            assert mine == pytest.approx(theirs, abs=3e-6)
        torch.testing.assert_close(weight, weights[0], atol=3e-6, rtol=0)


@pytest.mark.parametrize(("at", "objective"), [(3, OBJECTIVE), (8, OBJECTIVE), (10, Grpo().of(1.0, 5, 0.5)),
                                               (7, Ppo().of(1.0, 5))])  # fmt: skip
def test_stopped_in_a_rollout_and_continued(tmp_path, at, objective):
    """To the bit, the record of rollouts too. A rollout is read for four steps."""
    whole = finished(tmp_path / "whole", **kwargs(tmp_path / "whole", objective))
    folder = tmp_path / "stopped"
    stopped = small_trainer(folder, show=StopAt(at, signal.SIGTERM), **kwargs(folder, objective))
    with pytest.raises(Interrupted, match=f"step {at}"):
        stopped.train()
    stopped.run.unlock()
    with (folder / "rollouts.jsonl").open("a") as file:
        file.write('{"what": "a process that was killed wrote after its last checkpoint"}\n{"and ano')
    again = finished(folder, **kwargs(folder, objective))
    assert fingerprint(again) == fingerprint(whole)
    texts = [(path / "rollouts.jsonl").read_text() for path in (tmp_path / "whole", folder)]
    assert texts[0] == texts[1]
    lines = list(map(json.loads, texts[0].splitlines()))
    assert [line["step"] for line in lines] == [1] * 32 + [5] * 32 + [9] * 32
    again_figures, figures = ([{k: v for k, v in m.items() if "second" not in k and k != "mfu"}
                               for m in t.run.metrics()] for t in (again, whole))  # fmt: skip
    assert again_figures == figures


def test_agents_obey_too(tmp_path):
    """Answers of several turns: both laws; what the tools wrote is in every rollout and in no loss."""

    def given(name, micro=4, **more):
        return {"stream": partial(calling, tmp_path / name, chunk=micro), "objective": OBJECTIVE, "optimizer": SMOOTH,
                "micro_batch_size": micro, "accumulate": 16 // micro, "save_every": 5, **more}  # fmt: skip

    whole, cut = (finished(tmp_path / name, **given(name, micro)) for name, micro in (("whole", 4), ("cut", 1)))
    for mine, theirs in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=3e-6, rtol=0)
    stopped = small_trainer(tmp_path / "stopped", show=StopAt(7, signal.SIGTERM), **given("stopped"))
    with pytest.raises(Interrupted, match="step 7"):
        stopped.train()
    stopped.run.unlock()
    assert fingerprint(finished(tmp_path / "stopped", **given("stopped"))) == fingerprint(whole)
    texts = [(tmp_path / name / "rollouts.jsonl").read_text() for name in ("whole", "stopped")]
    lines = list(map(json.loads, texts[0].splitlines()))
    assert texts[0] == texts[1] and {line["calls"] for line in lines} == {0, 1, 2}
    assert all(line["logprobs"].count(None) == line["calls"] for line in lines)
