"""Records that carry the id of an earlier one of their corpus: counted and named, and kept all the same.

Each blob's ids lie as hashes beside its shards (``NNNNN.ids``), so that they are compared over all of a corpus, in
eight bytes of memory each. Not here: texts that are there twice (clean/duplicates.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from babyllama.atomic import write_atomic
from babyllama.data.sources.records import Id

_ITEM = np.dtype([("id", "<u8"), ("where", "<u4"), ("line", "<u8")])


def write_ids(path: Path, ids: Sequence[Id]) -> None:
    """The file of one blob: the names of its files, then an item for each id, which names its file by number."""
    if ids:
        names = {where: number for number, where in enumerate(dict.fromkeys(id.where for id in ids))}
        items = np.array([(id.hash, names[id.where], id.line) for id in ids], _ITEM)
        write_atomic(path, json.dumps([*names]).encode() + b"\0" + items.tobytes())
    else:
        path.unlink(missing_ok=True)


def repeated_ids(paths: Iterable[Path]) -> tuple[int, str]:
    """How many records carry an id that one before carries, and the places of two such; 0 and "" if there are none."""
    there = [path for path in paths if path.is_file()]
    ids = np.concatenate([np.zeros(0, np.uint64), *(_read(path)[1]["id"] for path in there)])
    ids.sort()
    again = ids[1:][ids[1:] == ids[:-1]]
    places = list[str]()
    for path in there if len(again) else ():
        names, items = _read(path)
        places += [f"{names[item['where']]}{item['line']}" for item in items[items["id"] == again[0]]]
        if len(places) > 1:
            break
    return len(again), " and ".join(places[:2])


def _read(path: Path) -> tuple[list[str], np.ndarray]:
    names, _, items = path.read_bytes().partition(b"\0")
    return json.loads(names), np.frombuffer(items, _ITEM)
