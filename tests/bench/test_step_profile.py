"""bench/step_profile.py: what it makes of a step's kernels; in a toy size from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def test_kernels_are_told_apart_by_name_and_by_place(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from step_profile import Kernel, spent

    step = [
        Kernel("nvjet_tst_128x256", 0.0, 2000.0),
        Kernel("pytorch_flash::flash_fwd_kernel", 2000.0, 3000.0),
        Kernel("triton_poi_fused_silu_mul_3", 4000.0, 5000.0),
        Kernel("multi_tensor_apply_kernel<LpNormFunctor>", 5000.0, 5500.0),
        Kernel("nvjet_tst_64x64", 5500.0, 6500.0),
    ]
    assert spent(step) == {"products": 2.0, "attention": 1.0, "SwiGLU": 1.0, "norms": 0.5, "optimizer: products": 1.0,
                           "gaps": 1.0, "span": 6.5}  # fmt: skip


@pytest.mark.slow
def test_a_toy_is_profiled(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / "step_profile.py"), "--small", "--results", str(tmp_path)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    line = json.loads((tmp_path / "step_profile.jsonl").read_text("utf-8"))
    assert line["step_ms"] > 0 and line["launches"] > 10 and line["ms"]["span"] > 0
