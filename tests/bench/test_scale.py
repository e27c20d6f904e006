"""bench/scale.py runs from end to end in two processes, in toy sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "scale.py"


@pytest.mark.slow
def test_each_engine_is_measured_beside_processes_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT), "--small",
         "--engines", "ddp", "fsdp", "ddp-context", "fsdp-context", "hsdp", "--results", str(tmp_path)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "scale.jsonl").read_text("utf-8").splitlines()]
    found = {line["engine"]: line for line in lines}
    assert list(found) == ["alone", "ddp", "fsdp", "ddp-context", "fsdp-context", "hsdp"]
    assert found["alone"]["share"] == 1.0
    for engine in ("ddp-context", "fsdp-context"):  # the very rows that each reads alone
        for figure in ("loss", "norm"):  # after four steps of Muon, whose iteration rounds to bf16
            assert found[engine][figure] == pytest.approx(found["alone"][figure], rel=5e-3)
    assert all(line["processes"] == 2 and line["tokens_per_second"] > 0 for line in lines)
