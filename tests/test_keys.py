"""The listing of a recipe's keys, and keys.json, which --help and completion read, against the recipes themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from babyllama import index
from babyllama.keys import choices, describe, dotted
from babyllama.recipe import Recipe, load_recipe
from babyllama.verbs import VERBS, call, recipe_type


class A(Recipe):
    kind: Literal["a"] = "a"
    width: int = 3


class B(Recipe):
    kind: Literal["b"] = "b"
    height: int = Field(default=4, description="in rows")


class Example(Recipe):
    out: Path
    size: Annotated[A | B, Field(discriminator="kind")] = A()
    many: tuple[A, ...] = ()
    flag: bool | None = None


def test_dotted_names_reach_every_variant_and_item():
    names = ["out", "size", "size.kind", "size.width", "size.height", "many", "many.0.kind", "many.0.width", "flag"]
    assert sorted(dotted(Example)) == sorted(names)
    fields = dotted(Example)
    assert choices(fields["size"].annotation) == ["a", "b"]
    assert choices(fields["flag"].annotation) == ["true", "false"]


def test_the_listing_shows_all_variants_or_those_of_one_recipe():
    everything = describe(Example)
    assert "out: required" in everything and "width: 3" in everything and "height: 4  # in rows" in everything
    mine = describe(Example, {"size": {"kind": "b", "height": 9}})
    assert "size: b [a | b]" in mine and "height: 9" in mine and "width: 3" not in mine.split("many")[0]
    assert "out: required" in mine


def test_keys_json_is_that_of_the_recipes(tmp_path, monkeypatch):
    """When this fails: make keys."""
    kept = json.loads(index.FILE.read_text("utf-8"))
    monkeypatch.setattr(index, "FILE", tmp_path / "keys.json")
    index.write({verb: recipe_type(verb) for verb in VERBS})
    assert json.loads((tmp_path / "keys.json").read_text("utf-8")) == kept
    assert set(kept) == set(VERBS)


def babyllama(*words, **environment):
    return subprocess.run([sys.executable, "-m", "babyllama", *words], capture_output=True, text=True, timeout=120,
                          env={**os.environ, **environment})  # fmt: skip


def test_help_shows_the_keys_by_topic():
    shown = babyllama("train", "--help").stdout
    assert "Keys by topic" in shown and "micro_batch_size" in shown and "muon" in shown
    assert max(map(len, shown.splitlines())) <= 80


def offered(typed):
    words = typed.split(" ")
    done = babyllama(_BABYLLAMA_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(len(words) - 1))
    return done.stdout.split("\n")


def test_the_shell_completes_verbs_recipes_keys_and_values():
    assert offered("babyllama tr") == ["train", ""]
    assert {"seed/pretrain", "plan=", "out="} <= set(offered("babyllama train "))
    assert "plan.steps=" not in offered("babyllama train ") and "plan.steps=" in offered("babyllama train pl")
    assert {"--plan.steps", "--plan.save_every"} <= set(offered("babyllama train --plan.s"))
    assert offered("babyllama train seed/pretrain --device c") == ["cpu", "cuda", ""]


def test_print_config_is_a_recipe(tmp_path):
    from babyllama.commands.report import ReportRecipe

    done = babyllama("report", "--print-config", "a", "b", "--title", "好")
    (tmp_path / "r.yaml").write_text(done.stdout, "utf-8")
    assert load_recipe(ReportRecipe, str(tmp_path / "r.yaml")) == ReportRecipe(runs=(Path("a"), Path("b")), title="好")


def test_keys_of_this_recipe_also_while_it_lacks_some(capsys):
    assert call(["train", "seed/sft", "--keys", "plan.epochs=7"]) == 0
    shown = capsys.readouterr().out
    assert 'out: "runs/seed/sft"' in shown and "epochs: 7" in shown and 'kind: "cosine"' in shown
    assert "beta2" not in shown  # Muon's; this recipe has AdamW
    assert call(["train", "--keys"]) == 0 and "data: required" in capsys.readouterr().out
