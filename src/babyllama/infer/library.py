"""native.cpp as a library. Where it cannot be compiled a note says so. Not here: what it is given (native.py)."""

from __future__ import annotations

import ctypes
import functools
import sys
from ctypes import c_int64, c_void_p
from pathlib import Path

import torch

from babyllama.compiling import compiled

SOURCE = Path(__file__).with_name("native.cpp")
MATH = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno")
THREADS = ("-pthread",), ()


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled file; None, and a note once, where there is none."""
    try:
        found = compiled(SOURCE, [(*MATH, *threads) for threads in THREADS], torch.__version__)
        found.babyllama_step.argtypes, found.babyllama_step.restype = (c_void_p, c_void_p), None
        found.babyllama_steps.argtypes, found.babyllama_steps.restype = (c_void_p,) * 3, c_int64
        return found
    except OSError as error:
        print(f"note: decoding on a CPU goes by PyTorch's operators, a third as fast: {error}", file=sys.stderr)
        return None
