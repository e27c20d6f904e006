"""Other tiles of the fused decoder, each changed alone from what stands: µs a step, on one GPU.

    python bench/decode_tiles.py OUT.jsonl seed 256 'head_rows=64 head_inputs=32' 'slots=128 attend_warps=8'
    python bench/decode_tiles.py OUT.jsonl seed 1 'predict=64 head_warps=8' --bits 4 --draws

Every variant names fields of `decoding.Tiles`; `early=1` lets kernels start before their turn, `few` chooses between
the kernels of few.py (1) and of decoding.py (0). All are compiled side by side, then take turns: graphs of 16 steps
from `--place` on, with random keys and values. One line a variant.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from decode_speed import DRAWN, GREEDY, VOCABULARY, dense, packed
from record import append, facts, surviving

from babyllama.infer.decoding import ONE, PACKED, Decoder, tiles_for
from babyllama.infer.few import TILES, Few, suits
from babyllama.infer.request import Request
from babyllama.infer.rows import Rows
from babyllama.infer.step import Recorder
from babyllama.model.cache import KVCache

STEPS, TURNS = 16, 6


def milliseconds(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("preset")
    parser.add_argument("rows", type=int)
    parser.add_argument("variants", nargs="*")
    parser.add_argument("--bits", type=int, default=0, help="packed weights")
    parser.add_argument("--draws", action="store_true", help="temperature 0.8, top-k 50, top-p 0.9 instead of greedy")
    parser.add_argument("--place", type=int, default=152, help="tokens that each row has already")
    args = parser.parse_args()
    model, count = packed(args.preset, args.bits) if args.bits else dense(args.preset), args.rows
    cache = KVCache(model.config, count, args.place + 168, "cuda", torch.bfloat16)
    cache.keys.normal_()
    cache.values.normal_()
    rows, record, made = Rows(VOCABULARY, count, torch.device("cuda")), Recorder(), dict[str, Decoder]()
    for row in range(count):
        rows.place([row], [(Request([1, 2], DRAWN if args.draws else GREEDY, seed=row), [])])
    rows.live.fill_(count)
    few = PACKED if args.bits else ONE
    for variant in ("", *args.variants):
        changes = {name: int(value) for name, _, value in (part.partition("=") for part in variant.split())}
        early = changes.pop("early", None)
        own = changes.pop("few", suits(model, count))
        tiles = TILES[args.bits] if own else tiles_for(count, args.bits, few, model.config.hidden_size)
        made[variant] = (Few if own else Decoder)(model, rows, cache, count, tiles._replace(**changes), record)
        made[variant].early = made[variant].early if early is None else bool(early)

    def compiled(variant: str) -> str | None:
        with surviving(variant or "as it is"):
            made[variant].compile()
            return variant
        return None

    with ThreadPoolExecutor(12) as pool:
        fit = [variant for variant in pool.map(compiled, made) if variant is not None]
    times: dict[str, list[float]] = {variant: [] for variant in fit}
    for turn in range(TURNS + 2):  # launched, recorded, then replayed
        for variant in fit:
            rows.position.fill_(args.place)
            rows.counter.zero_()
            taken = milliseconds(lambda variant=variant: [made[variant](STEPS, args.draws) for _ in range(2)])
            if turn > 1:
                times[variant].append(taken * 1e3 / STEPS / 2)
    for variant, taken in times.items():
        line = {"preset": args.preset, "rows": count, "bits": args.bits, "drawn": args.draws, "tiles": variant,
                "place": args.place}  # fmt: skip
        append(args.out, {**facts(torch.device("cuda")), **line, "us_a_step": round(min(taken), 2)})
        print(f"{min(taken):8.1f} µs  {variant or 'as it is'}", flush=True)


if __name__ == "__main__":
    main()
