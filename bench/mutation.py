"""Would the tests notice? Small edits of the source, each against the tests that run the edited line.

    python bench/mutation.py --sample 200 --seed 1 --jobs 2

cosmic-ray makes the edits (another operator, number or condition; `and` for `or`; a decorator, a loop gone). A random
sample of places is drawn, one edit each; an edit that no test notices survives, and the table says where to look. Edits
that change nothing by construction are not drawn: annotations, and files that only a GPU runs (`NOT_HERE`).

The suite runs once without any edit, under coverage, which says for each line the tests that run it and what each
takes (`--covered FILE` keeps that for another time). A test that fails already is left out, and named. An edit then
faces its line's tests: those of the mirroring file first, then file by file, the quickest file first, up to
`--most_s` seconds of tests.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
ROOMS = ("model", "train", "data", "quant", "infer")
NOT_HERE = ("kernels.py", "captured.py", "fused.py", "resident.py", "deepspeed.py", "sinks.py")  # GPU, an own process
OPERATORS = re.compile(
    r"core/(Replace(Binary|Unary)Operator_|ReplaceComparisonOperator_(?!(Not)?Eq_Is)|AddNot|ReplaceTrue|ReplaceFalse|"
    r"ReplaceAnd|ReplaceOr|ReplaceBreak|ReplaceContinue|NumberReplacer|RemoveDecorator|ZeroIteration)"
)  # `is` for `==` is the same of small numbers
QUICK = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu", "--no-header", "-W", "ignore", "-rfE")


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


class Covered(NamedTuple):
    """What the suite does without an edit: the tests of each line, the seconds of each test, and those that fail."""

    lines: dict[str, dict[str, list[int]]]  # path → line → numbers of tests
    tests: list[str]
    seconds: list[float]
    broken: list[str]

    def of(self, mutant: Mutant, most_s: float) -> list[str]:
        """The tests that run the edited line (of a line that runs at import: those that run anything of its file)."""
        lines = self.lines.get(mutant.path, {})
        first, last = _statement(mutant)
        wanted = [lines.get(str(line), []) for line in range(first, last + 1)] if first else list(lines.values())
        numbers = {number for some in wanted for number in some} or self._of_room(mutant)
        inside = Path(mutant.path).relative_to("src/babyllama")
        mirror = str("tests" / inside.with_name(f"test_{inside.name}"))
        files: dict[str, list[int]] = defaultdict(list)
        for number in sorted(numbers):
            files[self.tests[number].partition("::")[0]].append(number)
        cost = {file: sum(self.seconds[number] for number in some) for file, some in files.items()}
        found, spent = [], 0.0
        for file in sorted(files, key=lambda file: (file != mirror, cost[file])):
            for number in files[file]:
                if spent + self.seconds[number] <= most_s:
                    spent += self.seconds[number]
                    found.append(self.tests[number])
        return found

    def _of_room(self, mutant: Mutant) -> set[int]:
        """Of a line that runs in processes of their own only: all that its room's tests and the laws do."""
        room = Path(mutant.path).relative_to("src/babyllama").parts[0]
        places = f"tests/{room}/", "tests/laws/"
        return {number for number, test in enumerate(self.tests) if test.startswith(places)}


def _statement(mutant: Mutant) -> tuple[int, int]:
    """First and last line of what runs with the edited line; (0, 0) outside of functions."""
    found, tree = (0, 0), ast.parse((ROOT / mutant.path).read_text("utf-8"))
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.Lambda):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.stmt) and node is not function and node.lineno <= mutant.line:
                body = getattr(node, "body", None)  # of a compound statement its head
                last = max(body[0].lineno - 1, node.lineno) if body else node.end_lineno or node.lineno
                if mutant.line <= last and node.lineno >= found[0]:
                    found = node.lineno, last
    return found


def cover(tree: Path, jobs: int) -> Covered:
    """The suite without an edit."""
    words = [
        *QUICK[1:],
        "-n",
        str(jobs),
        "--cov=src/babyllama",
        "--cov-context=test",
        "--cov-report=",
        "--durations=0",
        "--continue-on-collection-errors",
    ]
    _, printed = run(tree, [*words, "--durations-min=0", "-vv", "tests"], 1e5)
    (tree / "suite.txt").write_text(printed, "utf-8")
    from coverage import CoverageData

    data = CoverageData(str(tree / ".coverage"))
    data.read()
    spent: dict[str, float] = defaultdict(float)
    for seconds, test in re.findall(r"^([\d.]+)s (?:call|setup|teardown) +(tests/.+)$", printed, re.M):
        spent[test] += float(seconds)
    broken = re.findall(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", printed, re.M)
    tests = sorted(set(spent) - set(broken))
    numbers = {test: number for number, test in enumerate(tests)}
    lines: dict[str, dict[str, list[int]]] = {}
    for file in data.measured_files():
        found = {}
        for line, contexts in data.contexts_by_lineno(file).items():
            names = {context.rpartition("|")[0] for context in contexts}
            found[str(line)] = sorted(numbers[name] for name in names if name in numbers)
        lines[str(Path(file).relative_to(tree))] = found
    return Covered(lines, tests, [spent[test] for test in tests], sorted(set(broken)))


def run(tree: Path, words: list[str], timeout_s: float) -> tuple[int, str]:
    """pytest's exit code, −1 after `timeout_s`, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
                   "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000"}  # fmt: skip
    try:
        done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=tree, env=environment, capture_output=True,
                              text=True, timeout=timeout_s)  # fmt: skip
    except subprocess.TimeoutExpired:
        return -1, ""
    return done.returncode, done.stdout + done.stderr


def with_edit(mutant: Mutant) -> Mutant:
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    whole = (ROOT / mutant.path).read_text("utf-8")
    return mutant._replace(edited=mutate_code(whole, get_operator(mutant.operator)(), mutant.occurrence) or whole)


def judge(tree: Path, mutant: Mutant, covered: Covered, most_s: float) -> tuple[str, int]:
    """killed (an endless loop is noticed too) or survived; and how many tests it faced."""
    tests = covered.of(mutant, most_s)
    file = tree / mutant.path
    whole = file.read_text("utf-8")
    file.write_text(mutant.edited, "utf-8")
    (tree / "tests.txt").write_text("\n".join(tests), "utf-8")
    try:
        code, _ = run(tree, [*QUICK, "@tests.txt"], 4 * most_s + 120)
        return ("survived" if code == 0 else "killed"), len(tests)
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
    parser.add_argument("--most_s", type=float, default=150, help="seconds of tests that one edit faces")
    parser.add_argument("--total_s", type=float, default=1e9, help="begin no edit after so long")
    parser.add_argument("--out", type=Path, default=None, help="results as JSON lines; what is there is not run again")
    parser.add_argument("--covered", type=Path, default=None, help="what the suite covers: read, or written if missing")
    parser.add_argument("--draw", type=Path, default=None, help="write the edits there, and run nothing")
    parser.add_argument("--drawn", type=Path, default=None, help="run what --draw wrote, of the same source")
    parser.add_argument("--only", type=Path, default=None, help="an earlier --out: its survivors once more")
    args = parser.parse_args()
    begun = time.monotonic()
    drawn = read_edits(args.drawn or args.only) if args.drawn or args.only else draw(args.sample, args.seed)
    if args.draw:
        args.draw.write_text("".join(json.dumps(mutant._asdict()) + "\n" for mutant in drawn), "utf-8")
        return
    done = (
        {mutant[:4] for mutant in read_edits(args.out, all_of_them=True)} if args.out and args.out.exists() else set()
    )
    drawn = [mutant for mutant in drawn if mutant[:4] not in done]
    with tempfile.TemporaryDirectory() as temporary:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(args.jobs):
            trees.put(copy_tree(Path(temporary) / str(number)))
        if args.covered and args.covered.exists():
            covered = Covered(**json.loads(args.covered.read_text("utf-8")))
        else:
            tree = trees.get()
            covered = cover(tree, args.jobs)
            trees.put(tree)
            if args.covered:
                args.covered.write_text(json.dumps(covered._asdict()), "utf-8")
                shutil.copy(tree / "suite.txt", args.covered.with_suffix(".txt"))
        print(f"{len(covered.tests)} tests, {sum(covered.seconds):.0f} s; fail without an edit: "
              f"{', '.join(covered.broken) or 'none'}", flush=True)  # fmt: skip
        print(f"{len(drawn)} edits; the suite took {time.monotonic() - begun:.0f} s", flush=True)

        def one(mutant: Mutant) -> str:
            if time.monotonic() - begun > args.total_s:
                return "not reached"
            tree, start = trees.get(), time.monotonic()
            try:
                verdict, faced = judge(tree, mutant, covered, args.most_s)
            finally:
                trees.put(tree)
            row = {**mutant._replace(edited="")._asdict(), "verdict": verdict, "tests": faced,
                   "seconds": round(time.monotonic() - start, 1)}  # fmt: skip
            if args.out:
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            if verdict != "killed":
                print(f"{verdict}  {mutant.path}:{mutant.line}  {mutant.operator} {mutant.occurrence}", flush=True)
            return verdict

        with ThreadPoolExecutor(args.jobs) as pool:
            counts = Counter(pool.map(one, drawn))
    judged = len(drawn) - counts["not reached"]
    print(dict(counts), f"score {counts['killed'] / max(1, judged):.1%}")


def draw(sample: int, seed: int) -> list[Mutant]:
    """`sample` places, one edit of each; edits that leave the file as it was are dropped."""
    generator = random.Random(seed)
    drawn = [with_edit(generator.choice(edits)) for edits in generator.sample(places(), sample)]
    return [mutant for mutant in drawn if mutant.edited != (ROOT / mutant.path).read_text("utf-8")]


def read_edits(path: Path, all_of_them: bool = False) -> list[Mutant]:
    """Of a file of edits or of results, those that were not killed."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    rows = [row for row in rows if all_of_them or row.get("verdict") != "killed"]
    found = [Mutant(*(row.get(key, "") for key in Mutant._fields)) for row in rows]
    return found if all_of_them else [mutant if mutant.edited else with_edit(mutant) for mutant in found]


if __name__ == "__main__":
    main()
