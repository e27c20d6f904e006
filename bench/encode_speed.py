"""How fast texts become ids, beside the libraries that do the same, and whether the ids are theirs.

    python bench/encode_speed.py tokenizer=tokenizer.model corpora='[data/a.jsonl.zst, data/b.jsonl.zst]' texts=100000
    python bench/encode_speed.py tokenizer=runs/tok corpora='[…]' peers='[tokenizers, tokie, fastokens]'

Times are of the processor, so that a busy machine tells the same. Ids are compared on every text, and on made-up ones:
pieces of the vocabulary in any order, one or two of them many times, any characters. Peers that are not installed are
left out; those with a cap on texts are slow and get the first of them.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from babyllama.data.sources.corpora import CorpusChoice, read_documents
from babyllama.recipe import Recipe, load_recipe, validate
from babyllama.tokenizer.tokenizer import Tokenizer

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
Encode = Callable[[Sequence[str]], list[list[int]]]


class Bench(Recipe):
    """Which vocabulary, which texts, and beside whom."""

    tokenizer: Path
    corpora: tuple[str, ...]
    texts: int = 100_000
    hostile: int = 5_000
    batch: int = 500  # texts at a time
    peers: tuple[str, ...] = ("sentencepiece", "tokenizers", "tiktoken", "tokie", "fastokens")
    timed: int = 8_000  # texts that slow peers encode


def texts_of(bench: Bench) -> list[str]:
    """An equal share of each corpus, as far as it goes, in an order of their own."""
    found: list[str] = []
    for i, path in enumerate(bench.corpora):
        choice = validate(CorpusChoice, {"path": path}, "corpora")
        share = (bench.texts - len(found)) // (len(bench.corpora) - i)
        found += [document.text for document in islice(read_documents(choice), share)]
    random.Random(0).shuffle(found)
    return found


def hostile(tokenizer: Tokenizer, count: int) -> list[str]:
    draw = random.Random(1)
    pieces = [tokenizer.backend.decode([i]) or " " for i in sorted(tokenizer.text_ids)]
    codes = [code for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
    made = [
        lambda: "".join(draw.choices(pieces, k=draw.randint(1, 40))),
        lambda: "".join(draw.choices(pieces, k=draw.randint(1, 2))) * draw.randint(2, 200),
        lambda: "".join(map(chr, draw.choices(codes, k=draw.randint(1, 60)))),
        lambda: "".join(draw.choices(" \t\n\r\u3000▁.,，。!1٣½aé́'s的天\x00\u200d😀", k=draw.randint(1, 200))),
    ]
    return [made[i % len(made)]() for i in range(count)]


def bare(tokenizer: Tokenizer) -> str:
    """tokenizer.json without its added tokens, which no text may become."""
    import json

    return json.dumps({**json.loads(tokenizer.backend.to_str()), "added_tokens": []}, ensure_ascii=False)


def peer(name: str, tokenizer: Tokenizer) -> Encode | None:
    """How a library encodes; None where it does not know this vocabulary."""
    if name == "sentencepiece":
        model = tokenizer._sentencepiece
        return model and (lambda texts: model.encode(list(texts), num_threads=1))
    if name == "tokenizers":
        backend = tokenizer._encoder
        return lambda texts: [x.ids for x in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    if name == "tokie":
        import tempfile

        import tokie

        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
            file.write(bare(tokenizer))
            file.flush()
            found = tokie.Tokenizer.from_json(file.name)
        return lambda texts: [found.encode(text, add_special_tokens=False).ids for text in texts]
    if name == "fastokens":
        import fastokens

        theirs = fastokens.Tokenizer.from_json_str(bare(tokenizer))
        return lambda texts: [list(getattr(x, "ids", x)) for x in (theirs.encode(text, False) for text in texts)]
    if name == "tiktoken":
        return by_tiktoken(tokenizer)
    raise ValueError(f"no peer {name!r}")


def by_tiktoken(tokenizer: Tokenizer) -> Encode | None:
    """The same pieces, ranked by id, behind GPT-4's cuts: its speed, not these ids."""
    if tokenizer._sentencepiece is not None:
        return None
    import tiktoken

    from babyllama.tokenizer.cuts import BYTE_TO_CHAR

    byte_of = {char: byte for byte, char in BYTE_TO_CHAR.items()}
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=False)
    ranks = {bytes(byte_of[c] for c in piece): i for piece, i in vocabulary.items() if all(c in byte_of for c in piece)}
    cut = (r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"""
           r"""|\s*[\r\n]|\s+(?!\S)|\s+""")  # fmt: skip
    theirs = tiktoken.Encoding("own", pat_str=cut, mergeable_ranks=ranks, special_tokens={})
    return lambda texts: [theirs.encode_ordinary(text) for text in texts]


def timed(encode: Callable[[Sequence[str]], list], texts: Sequence[str], batch: int) -> tuple[list, float]:
    encode(texts[:10])
    found, started = [], time.process_time()
    for i in range(0, len(texts), batch):
        found += encode(texts[i : i + batch])
    return found, time.process_time() - started


def main(bench: Bench) -> None:
    tokenizer = Tokenizer.load(bench.tokenizer)
    texts, made = texts_of(bench), hostile(tokenizer, bench.hostile)
    size = sum(len(text.encode()) for text in texts)
    started = time.process_time()
    tokenizer.encode_much(["."])
    print(f"{len(texts):,} texts, {size / 1e6:.1f} MB; ready after {time.process_time() - started:.2f} s", flush=True)
    arrays, seconds = timed(tokenizer.encode_much, texts, bench.batch)
    ours, strange = [ids.tolist() for ids in arrays], tokenizer.encode_batch(made)
    print(f"{'babyllama':16s} {size / seconds / 1e6:8.1f} MB/s", flush=True)
    for name in bench.peers:
        try:
            encode = peer(name, tokenizer)
        except ImportError:
            encode = None
        if encode is None:
            continue
        oracle = name in ("sentencepiece", "tokenizers")
        some = texts if oracle else texts[: bench.timed]
        found, seconds = timed(encode, some, bench.batch)
        same = sum(a == b for a, b in zip(ours, found, strict=False))
        told = f"the same ids for {same:,} of {len(some):,} texts"
        if oracle:
            told += f" and {sum(a == b for a, b in zip(strange, encode(made), strict=True)):,} of {len(made):,} made up"
        speed = sum(len(text.encode()) for text in some) / seconds / 1e6
        print(f"{name:16s} {speed:8.1f} MB/s   {told}", flush=True)


if __name__ == "__main__":
    main(load_recipe(Bench, None, sys.argv[1:]))
