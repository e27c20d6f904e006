"""A file that cannot be written shows before the work of which it would hold the result."""

from __future__ import annotations

import pytest

from babyllama.commands import arena, bench_serve, doctor, report, verify
from babyllama.errors import InputError
from babyllama.recipe import load_recipe

WORK = {  # verb → its recipe, what it is told, and what would begin the work
    "verify": (verify, verify.VerifyRecipe, ["model=m"], "load"),
    "doctor": (doctor, doctor.DoctorRecipe, ["target=m"], "_target"),
    "bench-serve": (bench_serve, bench_serve.BenchServeRecipe, [], "measure"),
    "report": (report, report.ReportRecipe, ["runs=[m]"], "tell"),
    "arena": (arena, arena.ArenaRecipe, ["runs=[a, b]", "prompts={}/asked.txt"], "answers_of"),
}


@pytest.mark.parametrize("verb", WORK)
def test_a_file_that_cannot_be_written_shows_first(verb, tmp_path, monkeypatch):
    module, kind, said, work = WORK[verb]
    (tmp_path / "asked.txt").write_text("x")
    monkeypatch.setattr(module, work, lambda *_, **__: pytest.fail("worked"))
    recipe = load_recipe(kind, None, [*(word.format(tmp_path) for word in said), f"out={tmp_path}/asked.txt/x.json"])
    with pytest.raises(InputError, match=r"asked\.txt/x\.json: .*(cannot write here|is a file)"):
        module.main(recipe)
