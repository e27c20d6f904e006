"""What a model has seen, as far as its runs and their data say."""

from __future__ import annotations

import json

from small_run import a_run, hashed, small_tokenizer, some_data

from babyllama.commands import prepare
from babyllama.data.shards.shards import Prepared
from babyllama.data.sources.corpora import CorpusChoice
from babyllama.data.sources.documents import Text
from babyllama.evals.provenance import provenance


def test_held_out_is_what_no_training_of_the_model_or_its_ancestors_saw(tmp_path):
    mine, other = tmp_path / "mine.jsonl", tmp_path / "other.jsonl"
    wide, narrow, much = (some_data(tmp_path / n, v, mine) for n, v in (("wide", 0.2), ("narrow", 0.1), ("much", 0.5)))
    base = a_run(tmp_path / "base", data=wide, context=32)
    tuned = a_run(tmp_path / "tuned", base, narrow, context=16)
    packed = a_run(tmp_path / "packed", tuned / "model", verb="quantize")
    replayed = a_run(tmp_path / "replayed", base, wide, replay=narrow)
    assert [provenance(run).context for run in (base, tuned, packed, replayed)] == [32, 16, 16, None]
    assert [provenance(run).held_out for run in (base, tuned, packed, replayed)] == [0.2, 0.1, 0.1, 0.1]
    held = [[provenance(run).of_split(Prepared.open(data), split) for data in (wide, narrow, much)
             for split in ("val", "train")] for run in (base, packed)]  # fmt: skip
    unknown = ["unknown", "unknown"]
    assert held[0] == ["held out", "trained on", "held out", "unknown", *unknown]
    assert held[1] == ["unknown", "trained on", "held out", "trained on", *unknown]
    chats = some_data(tmp_path / "chats", 0.5, other)  # of another source than the base's
    assert provenance(a_run(tmp_path / "sft", base, chats)).of_split(Prepared.open(chats), "val") == "held out"
    texts = [hashed(0, 0.1), hashed(0.1, 0.2), hashed(0.2, 1)]
    choices = CorpusChoice(path=str(mine)), CorpusChoice(path=str(other))
    for choice, beyond in zip(choices, ("trained on", "unknown"), strict=True):
        assert [provenance(base).of_document(Text(t), choice) for t in texts] == ["held out", "held out", beyond]
        assert [provenance(tuned).of_document(Text(t), choice) for t in texts] == ["held out", beyond, beyond]
    own = [Text(texts[2], held_out=True), Text(texts[0], held_out=False)]  # as a record says of itself
    assert [provenance(base).of_document(t, choices[0]) for t in own] == ["held out", "trained on"]


def test_texts_are_measured_as_the_last_training_on_texts_read_them(tmp_path):
    texts = some_data(tmp_path / "texts", 0.1, "a")
    chats = some_data(tmp_path / "chats", 0.1, "b")
    manifest = chats / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"text"', '"chat"'))
    for name, data in {"joined": {}, "packed": {"packing": "documents"}, "apart": {"separate_documents": True}}.items():
        base = a_run(tmp_path / name, data=texts)
        file = base / "recipe.yaml"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"data": {"path": str(texts), **data}}))
        tuned = a_run(tmp_path / f"{name}-tuned", base, chats)
        assert provenance(base).apart == provenance(tuned).apart == (name != "joined")


def test_a_text_that_max_documents_may_have_left_out_is_not_called_trained_on(tmp_path):
    file = tmp_path / "poems.jsonl"
    file.write_text("".join(json.dumps({"text": f"{text}春眠不觉晓"}) + "\n" for text in range(9)), "utf-8")
    small_tokenizer().save(tmp_path / "tok")
    found = {}
    for name, cut in {"whole": {}, "first": {"max_documents": 4}, "short": {"max_characters": 4000}}.items():
        choice = CorpusChoice(path=str(file), **cut)
        prepare.main(prepare.PrepareRecipe(out=tmp_path / name, tokenizer=tmp_path / "tok", corpora=(choice,),
                                           validation=0.0, workers=1))  # fmt: skip
        history = provenance(a_run(tmp_path / f"run-{name}", data=tmp_path / name))
        found[name] = history.of_document(Text("8春眠不觉晓"), CorpusChoice(path=str(file)))
        assert history.of_split(Prepared.open(tmp_path / name), "train") == "trained on"
    assert found == {"whole": "trained on", "first": "unknown", "short": "unknown"}


def test_a_past_that_is_not_known_is_said_so(tmp_path):
    data = some_data(tmp_path / "data", 0.2, "x")
    foreign = a_run(tmp_path / "foreign", tmp_path / "nowhere", data)
    gone = a_run(tmp_path / "gone", data=tmp_path / "removed")
    for model in (foreign, gone, tmp_path):
        assert provenance(model).held_out is None
        assert provenance(model).of_split(Prepared.open(data), "val") == "unknown"
        assert provenance(model).of_document(Text(hashed(0, 0.1)), CorpusChoice(path="y")) == "unknown"
    assert provenance(foreign).of_split(Prepared.open(data), "train") == "trained on"
