"""The house's plan holds: nothing heavy for `--help`, imports point downwards only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numpy", "transformers", "matplotlib", "tokenizers", "sentencepiece", "fastapi")


@pytest.mark.parametrize("module", ["babyllama", "babyllama.cli"])
def test_import_is_light(module):
    code = f"import sys, {module}; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_prepare_needs_no_pytorch():
    """Its recipe names evaluation tasks, and none of those is scored."""
    code = "import sys, babyllama.commands.prepare; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


def test_import_contracts():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


# What is imported with neither POSIX's own modules nor Linux's own calls, as on Windows and macOS.
ELSEWHERE = """
import importlib, os, pkgutil, signal, sys
import torch  # with what it needs of this system
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "readline", "syslog"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "fork", "killpg", "setsid", "getuid", "sysconf", "statvfs", "uname", "RTLD_NOW"):
    delattr(os, name)
for name in ("pthread_sigmask", "SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1"):
    delattr(signal, name)
import babyllama
for module in pkgutil.walk_packages(babyllama.__path__, "babyllama."):
    name = module.name.rpartition(".")[2]
    if name not in ("__main__", "harness", "deepspeed") and not name.endswith("kernels"):
        importlib.import_module(module.name)
        print(module.name)
from babyllama.data.shards.workers import cores
assert cores() >= 1
"""


def test_every_module_is_imported_where_posix_is_not():
    """Left out: Triton's kernels, DeepSpeed and lm-eval, which are not for these systems, or not installed."""
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"babyllama.run", "babyllama.serve.api", "babyllama.train.trainer", "babyllama.commands.train"} <= set(
        done.stdout.split()
    )


@pytest.mark.slow
@pytest.mark.parametrize("system", ["Windows", "Darwin"])
def test_types_hold_on_other_systems(system):
    """No call that the system lacks, unless `sys.platform` guards it: by the stubs of the standard library."""
    command = [str(Path(sys.executable).with_name("basedpyright")), "--pythonplatform", system]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stdout
