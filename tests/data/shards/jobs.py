"""What workers are given in test_workers.py. They import this file, so it imports nothing that takes long."""

from __future__ import annotations

import os
import signal
import time

from babyllama.errors import InputError


def double(number: int) -> int:
    time.sleep(0.02 if number % 3 == 0 else 0)
    if number in (40, 41):
        raise InputError(f"bad {number}")
    if number == 50:
        raise KeyError(number)
    if number == 60:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number
