"""The entry of the program: signals, streams and exit codes around the verbs (verbs.py).

Exit codes: 0 done; 1 the doctor found a fault, or a defect of ours (with its traceback), or nobody reads the output
any more; 2 a fault in what the user gave, one line each; 130 interrupted. Nothing heavy is imported here, so that
Ctrl-C is answered from the first moment.
"""

from __future__ import annotations

import atexit
import io
import os
import sys

from babyllama import interrupts
from babyllama.errors import InputError, Interrupted


def main() -> None:
    """The console script: run a verb, turn user faults into one line."""
    atexit.register(interrupts.ignore)  # what is registered first comes last
    interrupts.end_at_once()
    # Before PyTorch is imported: without it 1.7 of 24 GiB are lost to fragmentation (docs/log.md).
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
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
            print(f"babyllama: {line}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as error:
        return _interrupted(str(error))
    except BrokenPipeError:  # such as `babyllama train --keys | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        if interrupts.just_asked():
            return _interrupted("")
        raise


def _interrupted(message: str) -> int:
    print(f"\nbabyllama: {message or interrupts.LINE}", file=sys.stderr)
    return interrupts.CODE


def _accept_any_character() -> None:
    """A character that the console's or pipe's encoding lacks (GBK, ASCII) is shown as ?, and ends nothing; bytes that
    are none come in as half surrogate pairs, which whoever reads them names."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


if __name__ == "__main__":
    main()
