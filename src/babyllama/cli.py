"""The entry of the program: signals, streams and exit codes around the verbs (verbs.py).

Exit codes: 0 done; 1 the doctor found a fault, or a defect of ours (with its traceback), or nobody reads the output
any more; 2 a fault in what the user gave, one line each, or too little memory or room for it; 130 interrupted. Nothing
heavy is imported here, so that Ctrl-C is answered from the first moment.
"""

from __future__ import annotations

import atexit
import io
import os
import re
import sys
from pathlib import Path

from babyllama import interrupts
from babyllama.amounts import size
from babyllama.errors import FULL, InputError, Interrupted, cause, readable

LESS = {  # verb → what makes it take less memory
    "train": "halve plan.micro_batch_size and double plan.accumulate (the update stays the same), or take "
    "plan.recompute=true; babyllama plan says what fits",
    "serve": "take fewer slots, or loaded=1",
    "prepare": "take fewer workers",
    **dict.fromkeys(("evaluate", "longcontext", "quantize"), "take fewer rows"),
}


def main() -> None:
    """The console script: run a verb, turn user faults into one line."""
    atexit.register(interrupts.ignore)  # what is registered first comes last
    interrupts.end_at_once()
    # Before PyTorch is imported: without it 1.7 of 24 GiB are lost to fragmentation (docs/log.md).
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    _open_streams()
    _accept_any_character()
    try:
        code = _run()
    finally:
        interrupts.as_usual()
        atexit.register(interrupts.end_at_once)  # there is nothing left to tidy up
    sys.exit(code)


def _run() -> int:
    from babyllama.verbs import call

    try:
        code = call(sys.argv[1:])
        sys.stdout.flush()
        return code
    except InputError as error:
        for line in str(error).splitlines():
            print(f"babyllama: {readable(line)}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as error:
        return _interrupted(str(error))
    except BrokenPipeError:  # such as `babyllama train --keys | head`
        _print_nothing_more()
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL and error.filename is None:  # files say so themselves
            _print_nothing_more()
            print(f"babyllama: what is printed cannot be written: {cause(error)}; make room", file=sys.stderr)
            return 2
        if interrupts.just_asked():
            return _interrupted("")
        full = full_memory(error)
        if full is None:
            raise
        verb = next((word for word in sys.argv[1:] if word in LESS), "")
        remedy = LESS.get(verb, "take a smaller model, fewer bits (babyllama quantize), or device=cpu")
        print(f"babyllama: {full}; {remedy}", file=sys.stderr)
        return 2


def _print_nothing_more() -> None:
    """Also what is held back; Python would fail again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def full_memory(error: BaseException | None) -> str | None:
    """What did not fit into which memory, in words; None: the fault is another one. PyTorch is not imported to ask, so
    its errors are known by their names and words."""
    if error is None:
        return None
    said = str(error)
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not (memory or (isinstance(error, RuntimeError) and re.search("out of memory|can't allocate memory", said))):
        return full_memory(error.__cause__)
    asked = re.search(r"allocate ([\d.]+) ?(bytes|[KMGTP]i?B)", said)
    card = re.search(r"(GPU \d+) has a total capacity of ([\d.]+ \w+)", said)
    more = (
        "" if asked is None else f": {size(float(asked[1])) if asked[2] == 'bytes' else f'{asked[1]} {asked[2]}'} more"
    )
    return f"out of memory{more}{f' on {card[1]}, which has {card[2]}' if card else ''}"


def _interrupted(message: str) -> int:
    print(f"\nbabyllama: {message or interrupts.LINE}", file=sys.stderr)
    return interrupts.CODE


def _open_streams() -> None:
    """What is closed (`<&-`, `>&-`, some ways to start a service) reads and writes as nothing, here and in processes
    that are started. In the order of their numbers, which the next files that are opened would get."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 (until the end)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _accept_any_character() -> None:
    """A character that the console's or pipe's encoding lacks (GBK, ASCII) is shown as ?, and ends nothing; bytes that
    are none come in as half surrogate pairs, which whoever reads them names."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


if __name__ == "__main__":
    main()
