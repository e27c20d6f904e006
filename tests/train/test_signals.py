"""A wish to stop is heard between two steps; a second Ctrl-C stops at once; the handlers before come back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from babyllama.train.signals import stop_flag


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_asks(number):
    before = signal.getsignal(number)
    with stop_flag() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher repeats itself: still only a wish
        assert asked()
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_flag():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_nobody_asks():
    found = []

    def train():
        with stop_flag() as asked:
            found.append(asked())

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [False]
