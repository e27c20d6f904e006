"""export at the command line: what it writes, what it says, what it refuses in one line."""

from __future__ import annotations

import pytest
import torch
from gguf import GGUFReader
from small_run import save_taught, taught_model

from babyllama.cli import _run as run
from babyllama.load import read_model
from babyllama.model.adapters import BaseLink, save_adapter
from babyllama.model.lora import Lora, attach
from conftest import one_clear_line


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_taught(tmp_path / "runs" / "taught")
    return tmp_path


def exported(words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["babyllama", "export", *words])
    assert run() == 0
    return capsys.readouterr().out


def test_a_file_by_the_run_s_name(place, monkeypatch, capsys):
    said = exported(["runs/taught"], monkeypatch, capsys)
    assert said.startswith("taught-F16.gguf: ") and "15 F16" in said
    one_clear_line(["export", "runs/taught"], "taught-F16.gguf: exists already", monkeypatch, capsys)
    exported(["runs/taught", "overwrite=true", "name=小羊驼"], monkeypatch, capsys)
    assert {path.name for path in place.iterdir()} == {"runs", "taught-F16.gguf", "小羊驼-F16.gguf"}
    exported(["runs/taught", "type=Q8_0", "out=deep/er.gguf", "rope.kind=yarn", "rope.factor=2"], monkeypatch, capsys)
    assert GGUFReader(place / "deep/er.gguf").get_field("llama.context_length").contents() == 192


def test_an_adapter_goes_with_its_base_or_apart(place, monkeypatch, capsys):
    model = read_model(place / "runs/taught").float()
    attach(model, adapter := Lora(rank=2), 0)
    with torch.no_grad():
        model.layers[0].mlp.up_proj.lora_B += 1
    (place / "lora").mkdir()
    save_adapter(model, place / "lora", adapter, BaseLink.to(place / "runs/taught", "dense"))
    assert "its base: babyllama export " in exported(["lora", "adapter=apart"], monkeypatch, capsys)
    tensors = {tensor.name for tensor in GGUFReader(place / "lora-lora.gguf").tensors}
    assert len(tensors) == 2 * 7 * 2 and "blk.0.attn_q.weight.lora_a" in tensors
    exported(["lora", "type=F32"], monkeypatch, capsys)
    merged = {t.name: t.data for t in GGUFReader(place / "lora-F32.gguf").tensors}["blk.0.ffn_up.weight"]
    assert abs(merged - taught_model().layers[0].mlp.up_proj.weight.numpy()).max() > 0.1
    one_clear_line(["export", "runs/taught", "adapter=apart"], "holds a whole model", monkeypatch, capsys)
    save_adapter(model, place / "lora", adapter, BaseLink.to(place / "runs/taught", "nf4"))
    one_clear_line(["export", "lora", "adapter=apart", "out=b.gguf"], "its base in nf4", monkeypatch, capsys)


def test_what_cannot_be_exported_leaves_nothing(place, monkeypatch, capsys):
    words = ["export", "runs/taught", "rope.kind=dynamic_ntk", "rope.factor=2"]
    one_clear_line(words, "dynamic_ntk goes by the length at hand", monkeypatch, capsys)
    one_clear_line(["export", "nowhere"], "nowhere: does not exist", monkeypatch, capsys)
    assert {path.name for path in place.iterdir()} == {"runs"}


def test_folders_for_ollama_and_the_hub(place, monkeypatch, capsys):
    assert "ollama create taught -f " in exported(["runs/taught", "to=ollama", "type=F32"], monkeypatch, capsys)
    assert {path.name for path in (place / "taught-ollama").iterdir()} == {"Modelfile", "taught-F32.gguf"}
    assert "FROM ./taught-F32.gguf\n" in (place / "taught-ollama/Modelfile").read_text()
    said = exported(["runs/taught", "to=ollama", "name=我的 模型", "type=F32"], monkeypatch, capsys)
    assert "ollama create model -f '我的 模型-ollama/Modelfile'" in said
    assert "FROM ./model-F32.gguf\n" in (place / "我的 模型-ollama/Modelfile").read_text("utf-8")
    said = exported(["runs/taught", "to=hf", "push=me/taught", "dry_run=true"], monkeypatch, capsys)
    assert "nothing was uploaded" in said and "me/taught (private)" in said and "  README.md  " in said
    found, before = read_model(place / "taught-hf"), read_model(place / "runs/taught")
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), before.parameters(), strict=True))
    one_clear_line(["export", "runs/taught", "to=hf"], "taught-hf: exists already", monkeypatch, capsys)
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").write_text("years of work")
    for form in ("hf", "ollama"):
        words = ["export", "runs/taught", f"to={form}", "out=mine", "overwrite=true"]
        one_clear_line(words, "mine: is no earlier export", monkeypatch, capsys)
    assert (place / "mine" / "thesis.txt").read_text() == "years of work"
    exported(["runs/taught", "to=hf", "overwrite=true"], monkeypatch, capsys)
    for words, said in (
        (["push=me/x"], "push has no effect with to=gguf"),
        (["to=hf", "type=F16"], "type has no effect"),
        (["to=ollama", "adapter=apart"], "adapter has no effect with to=ollama"),
        (["to=hf", "push=a//b", "out=n"], "Repo id must be"),
        (["to=hf", "licence_file=n", "out=n"], "n is not"),
    ):
        one_clear_line(["export", "runs/taught", *words], said, monkeypatch, capsys)
    assert not (place / "n").exists()
