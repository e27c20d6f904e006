"""What every benchmark writes down about itself, and how contenders take turns. Not here: what is measured."""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib.metadata
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from babyllama.hardware import device_name

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "cut-cross-entropy", "gptqmodel")


def facts(device: torch.device) -> dict[str, Any]:
    """Commit, date, hardware, versions and command. Where there is no repository, COMMIT in the environment says it."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    return {
        "commit": os.environ.get("COMMIT") or commit,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "versions": {"python": sys.version.split()[0], **_versions()},
        "command": shlex.join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return {**found, "torch": torch.__version__}


def append(file: Path, line: dict[str, Any]) -> None:
    """One more JSON line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(line, ensure_ascii=False) + "\n")


def lines(file: Path) -> list[dict[str, Any]]:
    """All lines of a results file; none of one that is not there."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of `work`, the device's share included."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


class Peak:
    """Most memory taken since it was made, over what was already taken then; GiB, None on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0
        if device.type == "cuda":
            forget()
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)

    @property
    def gib(self) -> float | None:
        if self.device.type != "cuda":
            return None
        return round((torch.cuda.max_memory_allocated(self.device) - self.before) / 2**30, 2)


def forget() -> None:
    """Give freed memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def surviving(what: str) -> Iterator[None]:
    """A contender that fails says why, and the rest goes on."""
    try:
        yield
    except Exception as error:  # any peer's any fault
        reason = (str(error).strip().splitlines() or [""])[0]
        where = traceback.extract_tb(error.__traceback__)[-1]
        print(f"{what}: left out: {type(error).__name__}: {reason:.300} ({Path(where.filename).name}:{where.lineno})",
              flush=True)  # fmt: skip
        error.__traceback__ = None
    forget()


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the per-round ratios ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def table(header: list[str], rows: list[list[Any]]) -> None:
    """Left column to the left, figures to the right."""
    cells = [header, *([_shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))))


def _shown(cell: Any) -> str:
    return "–" if cell is None else str(cell)
