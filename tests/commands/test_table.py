"""Every table that a verb prints fits 80 columns, on a terminal and in a pipe: no figure is cut or broken."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from babyllama.commands import doctor, evaluate, longcontext, plan, prepare, quantize_shown, quickstart
from babyllama.commands.table import shortly
from babyllama.data.sources.known import SKILLS
from babyllama.foresight.checks.finding import Finding
from babyllama.recipe import bundled, load_recipe
from babyllama.verbs import recipes

SOURCE = Path(longcontext.__file__).parents[1]
LONG = "shibing624_medical_encyclopedia"
BEFORE = {"bits_per_weight": 16.0, "perplexity": 41.234, "bits_per_byte": 1.2345, "answers": {"f1": 0.873},
          "held_bytes": 4_116_123_456, "tokens_per_second": 12234.0, "samples": {}}  # fmt: skip
MATRICES = [f"layers.{i}.{name}" for i in (0, 31) for stage in quantize_shown.STAGES for name in stage]
AFTER = {**BEFORE, "name": "4 bit gptq, groups of 128, act-order", "error": 0.1234, "seconds": 1234.5,
         "layers": [{"name": name, "error": 0.1234} for name in (*MATRICES, "embed_tokens", "lm_head")]}  # fmt: skip
LENGTHS = [2**n for n in range(9, 17)]
LONG_RESULT = {"lengths": LENGTHS, "scored": 256, "contenders": {
    name: {"perplexity": dict.fromkeys(LENGTHS, 123456.7), "passkey": [{"right": 0.5, "length": 512}]}
    for name in (LONG, "dynamic_ntk")}}  # fmt: skip
LOSSES = {LONG: {"tokens": 200_000_000, "loss": 12.1234, "perplexity": 123456.7, "bits_per_byte": 1.2345,
                 "accuracy": 1.0}}  # fmt: skip
ANSWERS = {f"{LONG} (corpus)": {"asked": 1000, "exact": 1.0, "f1": 1.0, "bleu": 1.0, "rouge_l": 1.0, "ended": 1.0,
           "characters": 1200.0, "reference_characters": 1300.0,
           "documents": {"held out": 12, "trained on": 38, "unknown": 7}}}  # fmt: skip
SPLIT = {"documents": 361_420_000, "tokens": 12_345_678_901, "characters": 22_345_678_901}
MANIFEST = {"corpora": {LONG: {"licence": "public domain (package: MIT)", "bad": 3_000, "dropped": 2_000,
                               "splits": {"train": SPLIT, "val": {**SPLIT, "documents": 10_000}}}}}  # fmt: skip
FINDINGS = [Finding("ok", "recorded: loss 8.779 → 5.231 in 2,000 steps, as the first steps promised", check="learning"),
            Finding("fault", "norm of the gradient 1.234e+07", "lower it", "optimizer.lr=1", "gradients")]  # fmt: skip


def of_plan(console: Console) -> None:
    words = ["gpu=4090", "gpus=8", "hours=1000", "corpus_tokens=5000000000"]
    plan.main(load_recipe(plan.PlanRecipe, None, words))


SKILLS_SHOWN = quickstart.skills_table({s.name: {"asked": 100, "exact": 1.0} for s in SKILLS},
                                       {s.name: {"asked": 100, "exact": 0.0} for s in SKILLS})  # fmt: skip

CASES = {
    "quantize": lambda c: c.print(quantize_shown.table({"before": BEFORE, "after": [AFTER]})),
    "quantize's layers": lambda c: c.print(quantize_shown.layer_table(AFTER["layers"])),
    "longcontext": lambda c: [c.print(table) for table in longcontext.tables(LONG_RESULT)],
    "evaluate's losses": lambda c: c.print(evaluate._loss_table(LOSSES, "val split, held out from all training")),
    "evaluate's answers": lambda c: c.print(evaluate._answer_table(ANSWERS)),
    "prepare": lambda c: prepare._show(MANIFEST, c),
    "doctor": lambda c: doctor._show("runs/quickstart/medical", FINDINGS[:1], c),
    "quickstart": lambda c: quickstart._closing_words(
        c, Path("r"), "r.html", {"general-chats": quickstart.Cost(123.4, 2**29)}, SKILLS_SHOWN
    ),
}
FIGURES = {
    "quantize": ["16.00", "41.23", "1.2345", "87.3%", "12.34%", "4116.1", "12234", "1234.5"],
    "quantize's layers": ["layers.31", *["12.34%"] * 7, "embed_tokens 12.34%, lm_head 12.34%"],
    "longcontext": ["512", "16,384", "65,536", "123,457", "50%"],
    "evaluate's losses": ["200,000,000", "12.1234", "123,457", "1.2345", "100.0%"],
    "evaluate's answers": ["1000", "100.0%", "1200 (1300)"],
    "prepare": ["361,430,000", "10,000", "5,000", "24,691,357,802", "1.81"],
    "doctor": ["8.779", "5.231"],
    "quickstart": ["123", "measure_words", "100% (96–100)", "0% (0–4)", "–", "50%"],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("terminal", [True, False])
def test_a_table_fits_80_columns(case, terminal):
    console = Console(width=80, file=io.StringIO(), highlight=False, force_terminal=terminal, color_system=None)
    CASES[case](console)
    fits(console.file.getvalue(), FIGURES[case])


def fits(shown: str, figures: list[str]) -> None:
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert "…" not in shown and all(figure in "\n".join(lines) for figure in figures)


def test_verbs_without_data(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    of_plan(Console())
    shown = capsys.readouterr().out.splitlines()
    assert "babyllama.cli train" in shown[-1]  # to paste, so in one line
    fits("\n".join(shown[:-1]), ["bits per byte", "GiB"])
    recipes()
    fits(capsys.readouterr().out, list(bundled()))


def test_there_is_one_way_to_make_a_table():
    """So that the test above need not know of a new one's trouble, only of its figures."""
    for file in SOURCE.rglob("*.py"):
        calls = [node.func.id for node in ast.walk(ast.parse(file.read_text("utf-8")))
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]  # fmt: skip
        assert "Table" not in calls or file.name == "table.py", file


def test_a_perplexity_is_as_long_as_it_says_something():
    assert [shortly(x) for x in (1.234, 999.994, 12345.6, 1.5e300)] == ["1.23", "999.99", "12,346", "1.5e+300"]
