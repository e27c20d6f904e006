"""A script: two ranks train all cases of spread_tuning.py and spread_training.py, one after the other, and then four,
two and one those of shrinking.py.

It imports everything once and forks the ranks, which then have what torchrun would give them: a launch by torchrun
costs ten seconds more. That real launchers do is in tests/e2e/test_launchers.py.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import spread_training
import spread_tuning
import torch
from shrinking import shrink
from small_training import warm

import babyllama.train.meter
from babyllama.train.engines.world import World


def run_parts(folder: Path) -> None:
    """What each rank does: the parts, one after the other; the last kills it."""
    babyllama.train.meter.peak_flops = lambda *_: 1e12  # nobody asks how fast this machine is
    here = World.from_environment()
    here.join(torch.device("cpu"))
    (folder / "tuning").mkdir(exist_ok=True)
    parts = {**dict.fromkeys(spread_tuning.PARTS, folder / "tuning"), **dict.fromkeys(spread_training.PARTS, folder)}
    for part, into in parts.items():
        started = time.perf_counter()
        part(into, here)
        here.wait()
        print(f"{part.__module__}.{part.__name__}: {time.perf_counter() - started:.1f} s", flush=True)


def fork_ranks(work: Callable[[], None], size: int) -> None:
    """`work` in `size` processes that have what torchrun would give them; the first that fails ends the others."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE="True",
                      WORLD_SIZE=str(size))  # fmt: skip
    gc.freeze()  # DeepSpeed collects garbage often: not through all that was imported
    begin, all_there = os.pipe()
    ranks = [_forked(work, rank, begin, all_there) for rank in range(size)]
    os.close(begin)
    os.close(all_there)
    while ranks:
        ended, status = os.wait()
        ranks.remove(ended)
        print(f"a rank ended with {os.waitstatus_to_exitcode(status)}", flush=True)
        if status:
            for rank in ranks:
                os.kill(rank, signal.SIGKILL)


def _forked(work: Callable[[], None], rank: int, begin: int, all_there: int) -> int:
    """The rank waits for the last to be forked: meanwhile nobody asks the store, whose thread could otherwise hold a
    lock at that moment, which the new rank would wait for forever."""
    child = os.fork()
    if child:
        return child
    os.close(all_there)
    os.read(begin, 1)
    os.close(begin)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    import deepspeed  # noqa: F401  (once, before there are ranks)
    import torch._inductor.compile_fx

    warm()
    fork_ranks(lambda: run_parts(Path(sys.argv[1])), 2)
    started = time.perf_counter()
    shrink(Path(sys.argv[1]), fork_ranks)
    print(f"shrinking: {time.perf_counter() - started:.1f} s", flush=True)
