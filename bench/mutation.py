"""Would the tests notice? Small edits of the source, each against the tests that mirror it.

    python bench/mutation.py --sample 200 --seed 1 --jobs 2

cosmic-ray makes the edits (another operator, number or condition; `and` for `or`; a decorator, a loop gone). A random
sample of places is drawn, one edit each; an edit that no test notices survives, and the table says where to look. Edits
that change nothing by construction are not drawn: annotations, and files that only a GPU runs (`NOT_HERE`). Tests that
fail without any edit on this machine are left out beforehand, and named.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
ROOMS = ("model", "train", "data", "quant", "infer")
NOT_HERE = ("kernels.py", "captured.py", "fused.py", "resident.py", "deepspeed.py", "board.py")  # GPU, an own process
OPERATORS = re.compile(
    r"core/(Replace(Binary|Unary)Operator_|ReplaceComparisonOperator_(?!(Not)?Eq_Is)|AddNot|ReplaceTrue|ReplaceFalse|"
    r"ReplaceAnd|ReplaceOr|ReplaceBreak|ReplaceContinue|NumberReplacer|RemoveDecorator|ZeroIteration)"
)  # `is` for `==` is the same of small numbers
QUICK = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu", "--no-header", "-W", "ignore")
_FAST = ("1_causal", "2_cached_decoding", "3_packed", "4_rope", "5_adapters", "8_loss_mask", "9_roundtrip")
LAWS = {
    "model": [f"tests/laws/test_law{law}.py" for law in _FAST],
    "train": [f"tests/laws/test_law{law}.py" for law in ("6_accumulation", "7_resume", "7_tuning")],
    "infer": ["tests/laws/test_law2_cached_decoding.py"],
    "data": ["tests/laws/test_law3_packed.py"],
    "quant": [],
}


class Mutant(NamedTuple):
    """One edit: the `occurrence`-th place of `operator` in `path`, which stands in `line`; the file with it."""

    path: str
    line: int
    operator: str
    occurrence: int
    edited: str = ""


def places() -> list[list[Mutant]]:
    """Every place that can be edited, with its edits."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    found: dict[tuple[str, Any, str], list[Mutant]] = defaultdict(list)
    for room in ROOMS:
        for path in sorted((ROOT / "src/babyllama" / room).rglob("*.py")):
            if path.name in NOT_HERE or path.stat().st_size == 0:
                continue
            tree, name = get_ast(path.read_text("utf-8")), str(path.relative_to(ROOT))
            for operator in filter(OPERATORS.match, operator_names()):
                made, number = get_operator(operator)(), 0
                for node in ast_nodes(tree):
                    for start, _ in made.mutation_positions(node):
                        if not _annotates(node):
                            kind = operator.partition("Operator_")[0]
                            found[name, start, kind].append(Mutant(name, start[0], operator, number))
                        number += 1
    return list(found.values())


def _annotates(node: Any) -> bool:
    """Whether it lies in an annotation, which nobody computes."""
    while node.parent is not None:
        parent = node.parent
        if parent.type in ("tfpdef", "annassign") and node is parent.children[2 if parent.type == "tfpdef" else 1]:
            return True
        if parent.type == "funcdef" and node is parent.annotation:
            return True
        node = parent
    return False


def tests_of(path: str) -> list[list[str]]:
    """The mirror of a source file first, then its room."""
    inside = Path(path).relative_to("src/babyllama")
    room = inside.parts[0]
    mirror = ROOT / "tests" / inside.with_name(f"test_{inside.name}")
    stages = [[str(mirror.relative_to(ROOT))]] if mirror.is_file() else []
    folder = ROOT / "tests" / inside.parent
    near = [str(folder.relative_to(ROOT))] if folder.is_dir() and folder != ROOT / "tests" / room else []
    return [*stages, *([near] if near else []), [f"tests/{room}", *LAWS[room]]]


def run(tree: Path, tests: list[str], broken: set[str], timeout_s: float, exact: bool = True) -> tuple[int, str]:
    """pytest's exit code, −1 after `timeout_s`, and what it printed."""
    words = [sys.executable, "-m", "pytest", *(QUICK if exact else QUICK[1:]), *tests]
    words += [word for test in broken for word in ("--deselect", test)]
    environment = {**os.environ, "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
                   "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    try:
        done = subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return -1, ""
    return done.returncode, done.stdout + done.stderr


def with_edit(mutant: Mutant) -> Mutant:
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    whole = (ROOT / mutant.path).read_text("utf-8")
    return mutant._replace(edited=mutate_code(whole, get_operator(mutant.operator)(), mutant.occurrence) or whole)


def judge(tree: Path, mutant: Mutant, broken: set[str], timeout_s: float) -> str:
    """killed (an endless loop is noticed too) or survived."""
    file = tree / mutant.path
    whole = file.read_text("utf-8")
    file.write_text(mutant.edited, "utf-8")
    try:
        for tests in tests_of(mutant.path):
            code, _ = run(tree, tests, broken, timeout_s)
            if code not in (0, 5):
                return "killed"
        return "survived"
    finally:
        file.write_text(whole, "utf-8")


def copy_tree(folder: Path) -> Path:
    for part in ("src", "tests", "pyproject.toml", "bench", "docs", "README.md", "README.zh-CN.md"):
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        elif source.exists():
            shutil.copy(source, folder / part)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout_s", type=float, default=300, help="of one run of tests")
    parser.add_argument("--total_s", type=float, default=1e9, help="begin no edit after so long")
    parser.add_argument("--out", type=Path, default=None, help="the results as JSON lines")
    parser.add_argument("--trust", action="store_true", help="all tests pass without an edit: do not look first")
    parser.add_argument("--draw", type=Path, default=None, help="write the edits there, and run nothing")
    parser.add_argument("--drawn", type=Path, default=None, help="run what --draw wrote, of the same source")
    parser.add_argument("--only", type=Path, default=None, help="an earlier --out: its survivors once more")
    args = parser.parse_args()
    begun = time.monotonic()
    if args.drawn or args.only:
        rows = [json.loads(line) for line in (args.drawn or args.only).read_text("utf-8").splitlines()]
        rows = [row for row in rows if row.get("verdict", "survived") == "survived"]
        drawn = [Mutant(*(row.get(key, "") for key in Mutant._fields)) for row in rows]
    else:
        generator = random.Random(args.seed)
        drawn = [generator.choice(edits) for edits in generator.sample(places(), args.sample)]
    drawn = [mutant if mutant.edited else with_edit(mutant) for mutant in drawn]
    drawn = [mutant for mutant in drawn if mutant.edited != (ROOT / mutant.path).read_text("utf-8")]
    if args.draw:
        args.draw.write_text("".join(json.dumps(mutant._asdict()) + "\n" for mutant in drawn), "utf-8")
        return
    with tempfile.TemporaryDirectory() as temporary:
        trees: SimpleQueue[Path] = SimpleQueue()
        copies = [copy_tree(Path(temporary) / str(number)) for number in range(args.jobs)]
        suites = sorted({test for mutant in drawn for stage in tests_of(mutant.path) for test in stage})
        with ThreadPoolExecutor(args.jobs) as pool:
            for copy in copies:
                trees.put(copy)

            def alone(test: str) -> str:
                tree = trees.get()
                try:
                    return run(tree, [test], set(), args.timeout_s * 2, exact=False)[1]
                finally:
                    trees.put(tree)

            printed = "" if args.trust else "".join(pool.map(alone, suites))
            broken = set(re.findall(r"^(?:FAILED|ERROR) (\S+)", printed, re.M))
            print(f"{len(drawn)} edits; fail without any: {', '.join(sorted(broken)) or 'none'}", flush=True)

            def one(mutant: Mutant) -> dict[str, Any]:
                if time.monotonic() - begun > args.total_s:
                    return {"verdict": "not run"}
                tree = trees.get()
                try:
                    verdict = judge(tree, mutant, broken, args.timeout_s)
                finally:
                    trees.put(tree)
                row = {**mutant._replace(edited="")._asdict(), "verdict": verdict}
                if args.out:
                    with args.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                if verdict == "survived":
                    print(f"survived  {mutant.path}:{mutant.line}  {mutant.operator} {mutant.occurrence}", flush=True)
                return row

            found = list(pool.map(one, drawn))
    counts = {v: sum(row["verdict"] == v for row in found) for v in ("killed", "survived", "not run")}
    print(counts, f"score {counts['killed'] / max(1, counts['killed'] + counts['survived']):.1%}")


if __name__ == "__main__":
    main()
