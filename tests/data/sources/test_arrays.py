"""JSON in other forms than one object a line, against json.loads of the whole."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyllama.data.sources import arrays
from babyllama.data.sources.arrays import form_of, items
from babyllama.errors import InputError

KEYS = st.text(max_size=6).filter(lambda key: key not in arrays._WRAPPERS)
VALUES = st.text(max_size=30) | st.integers() | st.lists(st.text(max_size=4))
OBJECTS = st.lists(st.dictionaries(KEYS, VALUES, min_size=1), min_size=1, max_size=6)


def read(content: bytes, form: str, size: int = arrays._BUFFER) -> list:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_BUFFER", size)
        found = list(items(Path("x.json"), io.BytesIO(content), form))
    return [json.loads(item) if isinstance(item, bytes) else item for item in found]


@given(OBJECTS, st.sampled_from([None, 1]), st.booleans(), st.sampled_from([1, 7, 1 << 20]))
def test_an_array_is_its_items(objects, indent, ascii, size):
    content = json.dumps(objects, indent=indent, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    assert form_of(content) == "array"
    assert read(content, "array", size) == json.loads(content.decode("utf-8", "surrogatepass"))


TEXTS = ['}, {"a": "', "\\", '"', "\n", "\u2028", "春", "\ud800", "}", "]}, ", "1"]


@given(st.lists(st.lists(st.sampled_from(TEXTS), max_size=6).map("".join), min_size=1, max_size=30),
       st.sampled_from([None, 1]), st.booleans(), st.sampled_from([1, 7, 40, 1 << 20]))  # fmt: skip
def test_texts_that_look_like_the_place_between_two_items_are_texts(texts, indent, ascii, size):
    objects = [{"a": text, "b": [{"a": text}, {"c": len(text) / 3}], "n": 1e400 if text == "1" else 2**64}
               for text in texts]  # fmt: skip
    ascii = ascii or any("\ud800" in text for text in texts)
    content = json.dumps(objects, indent=indent, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    assert read(content, "array", size) == json.loads(content.decode("utf-8", "surrogatepass"))


def test_most_items_of_an_array_are_taken_together():
    objects = [{"text": f"第{i}篇，" * 40, "more": [{"text": "x"}, {"text": "y"}]} for i in range(3000)]
    content = json.dumps(objects, ensure_ascii=False).encode()
    found = list(items(Path("x.json"), io.BytesIO(content), "array"))
    assert sum(isinstance(item, bytes) for item in found) > 2900 and read(content, "array") == objects


@given(OBJECTS, st.sampled_from(sorted(arrays._WRAPPERS)))
def test_an_object_around_an_array_is_its_items(objects, key):
    content = json.dumps({"version": 1, key: objects, "licence": "x"}).encode()
    assert form_of(content) == "wrapped" and read(content, "wrapped") == objects


@given(OBJECTS, st.sampled_from([1, 7, 1 << 20]))
def test_objects_over_several_lines_are_values(objects, size):
    content = "\n".join(json.dumps(one, indent=1) for one in objects).encode()
    assert form_of(content) == "values" and read(content, "values", size) == objects


@pytest.mark.parametrize(("content", "form", "fault"), [
    (b'[{"a": 1}] [{"a": 2}]', "array", "stands after the end of the array"),
    (b'[{"a": 1}, {"a": 2}', "array", r"record 3: not valid JSON"),
    (b'{"data": [{"a": 1}], "rows": [{"a": 2}]}', "wrapped", "a second array, under 'rows'"),
])  # fmt: skip
def test_more_than_one_array_or_less_is_refused(content, form, fault):
    with pytest.raises(InputError, match=fault):
        read(content, form)
