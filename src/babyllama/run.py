"""A run is a directory: one pipeline step, with everything needed to repeat it, resume it and look at it.

    recipe.yaml     the fully resolved recipe        metrics.jsonl   one JSON object a logged step
    run.json        verb, status, parent, summary    model/          Hugging Face-shaped folder
    env.json        versions and hardware            state/step-…/   for resume only, checksummed

Every write is atomic (temporary name, fsync, rename): a process killed at any instant leaves either the old or the
new file. Not here: what is inside ``model/`` and ``state/`` (the callers fill the folders), any tensor.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash

from babyllama.atomic import disk_errors, json_text, recover_folder, write_atomic, write_folder, write_json
from babyllama.errors import InputError
from babyllama.plain_yaml import parse_yaml
from babyllama.recipe import R, Recipe, dump_recipe, maker, one_inside, validate

_FIRST = {".lock", "recipe.yaml", "env.json"}  # what `Run.create` writes before run.json


def add_file(digest: xxhash.xxh3_128, path: Path) -> None:
    """Hash on over a file's content, a piece at a time."""
    with path.open("rb") as handle:
        while block := handle.read(1 << 22):
            digest.update(block)


def _checksums(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name != "files.json":
            digest = xxhash.xxh3_128()
            add_file(digest, path)
            found[path.name] = {"bytes": path.stat().st_size, "xxh3": digest.hexdigest()}
    return found


class Run:
    """One run directory. `create` and `open` are the ways to get one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @classmethod
    def create(cls, path: Path, verb: str, recipe: Recipe, parent: Path | None = None,
               inputs: Mapping[str, str] | None = None, shared: bool = False) -> Run:  # fmt: skip
        """Make the directory, or continue it when it holds the same verb and a recipe of the same identity.

        Args:
            inputs: key → what its value stands for: the hash of what lies at a path, what ``auto`` became. These are
                compared in place of the values, so that a path may change, but not what is found there.
            shared: other processes may write it at the same time, if they say so, too.

        Raises:
            InputError: the directory holds something else, another recipe (the keys that differ are named), or is
                in use by another process.
        """
        run, text = cls(path), dump_recipe(recipe)
        there = list(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
        if (path / "run.json").exists():
            run._check_same(verb, recipe, inputs or {})
        elif any(p.name not in _FIRST and p.suffix != ".partial" for p in there) and not (path / "run.json").exists():
            raise InputError(f"{path}: exists and is not a run; choose another out=… or move it away")
        run.lock(shared)
        if not (path / "run.json").exists():
            write_atomic(path / "recipe.yaml", text)
            write_json(path / "env.json", environment())
            run._write_info({"verb": verb, "status": "started", "parent": str(parent) if parent else None,
                             "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "inputs": {**(inputs or {})},
                             "summary": {}})  # fmt: skip
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """An existing run. Raises InputError when `path` is none."""
        run = cls(path)
        if not (path / "run.json").is_file():
            if path.exists():
                raise InputError(f"{path}: is not a run (no run.json in it); {one_inside(path)}")
            raise InputError(f"{path}: does not exist; make it with: {maker('train', path)}")
        run.recover()
        return run

    def recover(self) -> None:
        """Finish the swaps that a kill interrupted. A live writer is left alone: it may be in the middle of one."""
        swapped = [*self.path.glob(".*.old"), *self.path.glob("state/.*.old")]
        if swapped:
            try:
                self.lock()
            except InputError:
                return
            for old in swapped:
                recover_folder(old.with_name(old.name[1:].removesuffix(".old")))
            self.unlock()

    def _check_same(self, verb: str, recipe: Recipe, inputs: Mapping[str, str]) -> None:
        if self.info["verb"] != verb:
            raise InputError(f"{self.path}: holds a {self.info['verb']} run; choose another out=… for {verb}")
        old, new, known = self.recipe(type(recipe)).identity(), recipe.identity(), self.inputs
        changed = []
        for key in {**old, **new, **known}:
            if key in known and key in inputs:
                if (was := known[key]) != inputs[key]:
                    changed.append(f"{key}: {new.get(key)} is not what the run began with ({was} → {inputs[key]})")
            elif _plain(old.get(key)) != _plain(new.get(key)):
                changed.append(f"{key}: {_plain(old.get(key))!r} → {_plain(new.get(key))!r}")
        if changed:
            more = "; …" if len(changed) > 4 else ""
            on = f", or go on from its model: init=from init.path={self.path}" if verb == "train" else ""
            raise InputError(f"{self.path}: holds a run of another recipe ({'; '.join(changed[:4])}{more}); "
                             f"choose another out=…{on}, or remove it")  # fmt: skip

    def recipe(self, kind: type[R]) -> R:
        """The recipe that it was last continued with; keys that came with a later version have their defaults."""
        return validate(kind, self.plain_recipe, str(self.path / "recipe.yaml"))

    @property
    def plain_recipe(self) -> Any:
        """The same as plain data."""
        file = self.path / "recipe.yaml"
        return parse_yaml(file.read_text("utf-8"), str(file))

    @property
    def inputs(self) -> dict[str, str]:
        """See `create`; empty for a run of an earlier version."""
        return self.info.get("inputs", {})

    def renew(self, recipe: Recipe, parent: Path | None, inputs: Mapping[str, str]) -> None:
        """Note the recipe that an unfinished run is continued with, and where its parent is now."""
        write_atomic(self.path / "recipe.yaml", dump_recipe(recipe))
        self._write_info({**self.info, "parent": str(parent) if parent else None, "inputs": {**inputs, **self.inputs}})

    def reopen(self, step: int) -> None:
        """Go back to the state of `step`, to be trained on from there to another end."""
        self.drop_states(after=step)
        self._write_info({**self.info, "status": "started", "summary": {}})

    def lock(self, shared: bool = False) -> None:
        """Hold the directory until this process ends: no other command can write the run, unless both share it."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _claim(handle, shared)
        except OSError:
            os.close(handle)
            raise InputError(f"{self.path}: another process is writing this run; wait for it or stop it") from None
        self._lock = handle

    def unlock(self) -> None:
        """Let go of the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ── facts ──────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def info(self) -> dict[str, Any]:
        return json.loads((self.path / "run.json").read_text("utf-8"))

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def finished(self) -> bool:
        return self.info["status"] == "finished"

    def _write_info(self, info: dict[str, Any]) -> None:
        write_json(self.path / "run.json", info)

    def finish(self, **summary: Any) -> None:
        """Mark the run as finished, with its figures; lets other processes use it."""
        self._write_info({**self.info, "status": "finished", "summary": summary})
        self.unlock()

    # ── metrics ────────────────────────────────────────────────────────────────────────────────────────────────
    def log(self, step: int, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        with disk_errors(self.path), (self.path / "metrics.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json_text({"step": step, **values}) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Every logged line; a last line cut by a kill is left out. A loss or norm that was no number is NaN."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text("utf-8", errors="replace").split("\n") if path.exists() else []
        found = [json.loads(line) for line in lines[:-1]]
        return [{**m, **{key: math.nan for key in ("loss", "norm") if m.get(key, 0) is None}} for m in found]

    def rewind_metrics(self, step: int) -> None:
        """Forget what was logged after `step`: the resumed run will log it again."""
        kept = [json_text(m) + "\n" for m in self.metrics() if m["step"] <= step]
        write_atomic(self.path / "metrics.jsonl", "".join(kept))

    # ── states ─────────────────────────────────────────────────────────────────────────────────────────────────
    def save_model(self, fill: Callable[[Path], None]) -> None:
        """Swap in a new ``model/``, written by `fill`."""
        write_folder(self.model, fill)

    def save_state(self, step: int, fill: Callable[[Path], None], keep: int = 2, branch: int = 0) -> None:
        """Write ``state/step-NNNNNNN``, then drop all but the `keep` newest and that of step `branch`."""

        def fill_and_seal(folder: Path) -> None:
            fill(folder)
            write_json(folder / "files.json", _checksums(folder))

        write_folder(self.path / "state" / f"step-{step:07d}", fill_and_seal)
        for old, folder in self.states()[:-keep]:
            if old != branch:
                shutil.rmtree(folder, ignore_errors=True)

    def states(self) -> list[tuple[int, Path]]:
        """(step, folder) of every state, oldest first, whole or not."""
        return sorted((int(p.name[5:]), p) for p in (self.path / "state").glob("step-*") if p.name[5:].isdigit())

    def latest_state(self, warn: Callable[[str], None]) -> tuple[int, Path] | None:
        """The newest state whose every file matches its checksum; damaged ones are named to `warn` and passed over.

        Raises:
            InputError: there are states and all are damaged: starting anew must be the user's decision.
        """
        found = self.states()
        for step, folder in reversed(found):
            fault = damage(folder)
            if fault is None:
                return step, folder
            warn(f"{folder}: {fault}; falling back to the checkpoint before it")
        if found:
            raise InputError(f"{self.path}/state: every checkpoint is damaged; remove {self.path} to start anew")
        return None

    def drop_states(self, after: int) -> None:
        """Remove states newer than step `after` (damaged ones that were passed over)."""
        for step, folder in self.states():
            if step > after:
                shutil.rmtree(folder)


def _claim(handle: int, shared: bool) -> None:
    """Lock an open file for this process, or all that share it, until it is closed. Raises OSError when it is taken."""
    if sys.platform == "win32" and shared:
        return  # its locks cannot be shared
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def damage(folder: Path) -> str | None:
    """What is wrong with a state folder, by its checksums; None when it is whole."""
    try:
        expected = json.loads((folder / "files.json").read_text("utf-8"))
        actual = _checksums(folder)
    except (OSError, ValueError) as error:
        return f"unreadable ({error})"
    wrong = [name for name in {**expected, **actual} if expected.get(name) != actual.get(name)]
    return f"truncated or changed: {', '.join(sorted(wrong))}" if wrong else None


def _plain(value: Any) -> Any:
    """A recipe's value as it is compared and shown: a path is the place that it names, however it is written."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    shown = value.model_dump(mode="json", exclude_none=True) if isinstance(value, Recipe) else value
    return str(value.resolve()) if isinstance(value, Path) else shown


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)  # reads and parses a file of hundreds of lines
    except metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Versions and hardware, as far as they are known without importing anything heavy."""
    versions = {n: _version(n) for n in ("babyllama", "torch", "numpy", "tokenizers", "sentencepiece", "safetensors")}
    return {"python": platform.python_version(), "platform": platform.platform(), "cpu_count": os.cpu_count(),
            "command": sys.argv, **versions}  # fmt: skip
