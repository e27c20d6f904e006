"""Our quantisation in GGUF files against llama.cpp's own rounding of the same model, at the same size.

    python bench/gguf_quality.py BASE CORPUS
    python bench/gguf_quality.py BASE CORPUS --samples 32 --tokens 20000       less of all
    python bench/gguf_quality.py --summary

BASE is a run or a folder of a model, CORPUS a prepared folder. llama.cpp rounds our F32 file (`llama_model_quantize`);
embedding and head are F16 in every file, so that files of one type have the same size to some bytes. All are read and
measured by llama.cpp, on the validation split: bits per byte, and how far the predictions are from the F32 file's
(Kullback-Leibler divergence, nats a token). Needs llama-cpp-python. Each file is a line of gguf_quality.jsonl.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import RESULTS, append, facts, lines, table

from babyllama.commands.quantize import AnyMethod, label
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import IGNORE
from babyllama.data.streams.evaluation import evaluation
from babyllama.export.blocks import Type
from babyllama.export.gguf_file import settled_type, write_gguf
from babyllama.export.peers import opened
from babyllama.load import model_folder, read_model, read_tokenizer
from babyllama.quant.awq import Awq
from babyllama.quant.calibrate import Calibration, quantise
from babyllama.quant.gptq import Gptq
from babyllama.quant.rtn import Rtn

METHODS: dict[Type, list[AnyMethod]] = {
    "Q4_0": [Rtn(group_size=32, symmetric=True, mse=True), Gptq(group_size=32, symmetric=True, mse=False),
             Gptq(group_size=32, symmetric=True), Gptq(group_size=32, symmetric=True, act_order="groups")],
    "Q4_1": [Rtn(group_size=32, mse=True), Gptq(group_size=32, mse=False), Gptq(group_size=32),
             Gptq(group_size=32, act_order="groups"), Awq(group_size=32)],
}  # fmt: skip
FLOAT = "F32, not rounded"


def rows_of(prepared: Prepared, context: int, most: int) -> tuple[list[tuple[list[int], np.ndarray]], int]:
    """Pieces of the validation split, each with its targets (IGNORE: none), and the UTF-8 bytes of all targets."""
    found, size = list[tuple[list[int], np.ndarray]](), 0
    for name in prepared.manifest["corpora"]:
        held_out = evaluation(prepared, name, "val", context, 1, most)
        size += held_out.bytes
        for batch in held_out:
            tokens, targets = batch.tokens[0], batch.targets[0]
            parts = torch.zeros_like(tokens) if batch.segments is None else batch.segments[0]
            for part in parts.unique():
                chosen = parts == part
                if bool((targets[chosen] != IGNORE).any()):
                    found.append((tokens[chosen].tolist(), targets[chosen].numpy()))
    return found, size


def log_probabilities(file: Path, rows: list[tuple[list[int], np.ndarray]]) -> Iterator[np.ndarray]:
    """(targets that count, V) float32 of each piece, by llama.cpp."""
    package: Any = import_module("llama_cpp")
    llama, library = opened(package, file), package.llama_cpp
    for tokens, targets in rows:
        llama.reset()
        batch = library.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, True
        llama._ctx.kv_cache_clear()
        if library.llama_decode(llama._ctx.ctx, batch):
            raise SystemExit("llama.cpp did not decode")
        logits = np.ctypeslib.as_array(llama._ctx.get_logits(), (len(tokens), llama.n_vocab()))[targets != IGNORE]
        library.llama_batch_free(batch)
        yield torch.from_numpy(logits.copy()).log_softmax(-1).numpy()


def measured(file: Path, rows: list[tuple[list[int], np.ndarray]], size: int, truth: list[np.ndarray]
             ) -> dict[str, Any]:  # fmt: skip
    """Bits per byte, and the divergence from `truth`, which is filled where it is empty."""
    nats, apart, count = 0.0, 0.0, 0
    found = list(log_probabilities(file, rows))
    truth += [] if truth else found
    for (_, targets), q, p in zip(rows, found, truth, strict=True):
        kept = targets[targets != IGNORE]
        nats -= float(q[np.arange(len(kept)), kept].astype(np.float64).sum())
        apart += float((np.exp(p.astype(np.float64)) * (p - q)).sum())
        count += len(kept)
    return {"bytes": file.stat().st_size, "bits_per_byte": nats / math.log(2) / size, "divergence": apart / count,
            "tokens": count}  # fmt: skip


def rounded_by_llamacpp(source: Path, type: Type, out: Path) -> None:
    """Matrices of the blocks in `type`, embedding and head in F16."""
    library: Any = import_module("llama_cpp").llama_cpp
    settings = library.llama_model_quantize_default_params()
    settings.ftype = {"Q4_0": library.LLAMA_FTYPE_MOSTLY_Q4_0, "Q4_1": library.LLAMA_FTYPE_MOSTLY_Q4_1}[type]
    settings.token_embedding_type = settings.output_tensor_type = library.GGML_TYPE_F16
    if library.llama_model_quantize(str(source).encode(), str(out).encode(), settings):
        raise SystemExit(f"llama.cpp did not round to {type}")


def compare(args: argparse.Namespace, file: Path) -> None:
    """A line for the F32 file, and for each file of 4 bits."""
    folder, prepared, cpu = model_folder(args.base), Prepared.open(args.corpus), torch.device("cpu")
    tokenizer, config = read_tokenizer(folder), read_model(folder).config
    rows, size = rows_of(prepared, config.max_position_embeddings, args.tokens)
    batches = Calibration(samples=args.samples, packing=args.packing).batches(
        prepared, config.max_position_embeddings, 0)  # fmt: skip
    about = {**facts(cpu), "parameters": config.parameters, "samples": args.samples}
    with tempfile.TemporaryDirectory() as place:
        dense, made, truth = Path(place) / "f32.gguf", Path(place) / "made.gguf", list[np.ndarray]()
        write_gguf(read_model(folder), tokenizer, dense, "F32", "model")

        def tell(type: str, who: str, name: str, path: Path) -> None:
            line = {"type": type, "who": who, "name": name, **measured(path, rows, size, truth)}
            append(file, {**about, **line})
            print(f"{type} {who} {name}: {line['bits_per_byte']:.4f} bits per byte, {line['divergence']:.5f} nats",
                  flush=True)  # fmt: skip

        tell("F32", "", FLOAT, dense)
        for type, methods in METHODS.items():
            rounded_by_llamacpp(dense, type, made)
            tell(type, "llama.cpp", "its own rounding", made)
            for method in methods:
                model = read_model(folder).float().eval().requires_grad_(False)
                quantise(model, batches, method)
                write_gguf(model, tokenizer, made, settled_type(model, None), "model")
                tell(type, "babyllama", label(method), made)


def summary(found: list[dict[str, Any]]) -> None:
    """The newest run's table."""
    starts = [i for i, line in enumerate(found) if line["name"] == FLOAT]
    if not starts:
        return
    first, *rest = found[starts[-1] :]
    print(f"{first['parameters'] / 1e6:.1f} M parameters, {first['tokens']:,} held-out tokens, {first['samples']} rows "
          "of calibration")  # fmt: skip
    cells = [[line["type"], line["who"], line["name"], f"{line['bytes']:,}", f"{line['bits_per_byte']:.4f}",
              f"{line['bits_per_byte'] - first['bits_per_byte']:+.4f}", f"{line['divergence']:.5f}"]
             for line in [first, *rest]]  # fmt: skip
    table(["type", "by", "method", "bytes of the file", "bits per byte", "± F32", "nats from F32"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, nargs="?")
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("--samples", type=int, default=128, help="rows of calibration")
    parser.add_argument("--packing", choices=["stream", "documents"], default="stream", help="of these rows")
    parser.add_argument("--tokens", type=int, default=50_000, help="measured of each corpus")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--summary", action="store_true")
    args = parser.parse_args()
    file = args.results.resolve() / "gguf_quality.jsonl"
    if not args.summary:
        if args.corpus is None:
            parser.error("BASE and CORPUS are needed, or --summary")
        compare(args, file)
    summary(lines(file))


if __name__ == "__main__":
    main()
