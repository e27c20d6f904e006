"""What people install: a wheel that holds every file of the source tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = "from setuptools import build_meta; build_meta.build_wheel('..')"


def test_the_wheel_holds_every_file_of_the_source(tmp_path):
    """The web page, the recipes, native.cpp and the like are named one by one in pyproject.toml."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=tree, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    source = {path.relative_to(tree / "src").as_posix(): path.read_bytes()
              for path in (tree / "src" / "babyllama").rglob("*") if path.is_file()}  # fmt: skip
    assert sorted(source) == sorted(held) and source == held
