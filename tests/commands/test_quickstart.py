"""What the quickstart says before it begins; its stages run in test_readme.py, test_wheel.py and test_course.py."""

import pytest

from babyllama.commands.quickstart import QuickstartRecipe, main
from babyllama.errors import InputError


@pytest.mark.parametrize("override", ["plan.steps=2", "pretrain:plan.steps=2"])
def test_an_override_of_no_stage(override, tmp_path):
    with pytest.raises(InputError, match=f"overrides: {override} begins with no stage .*; stages: tokenizer, corpus"):
        main(QuickstartRecipe(out=tmp_path, overrides=(override,)))
    assert not list(tmp_path.iterdir())


def test_no_run_is_filled_with_other_runs(tmp_path):
    (tmp_path / "run.json").write_text('{"verb": "train"}')
    with pytest.raises(InputError, match="is a run itself; give out="):
        main(QuickstartRecipe(out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
