"""The page of runs beside what makes them: a process of its own, which needs no model and ends with this one.

That process imports no PyTorch, and yields to everything else that computes. Not here: the page (pages.py), a server of
models (processes.py).
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from babyllama.interrupts import held


@contextmanager
def watched(folder: Path) -> Iterator[str]:
    """The address of a page that shows the runs below `folder`, to this machine only, until the end of the block.

    Raises:
        OSError: this machine lets nobody listen.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        process = multiprocessing.get_context("spawn").Process(target=_speak, args=(folder, listener), daemon=True)
        with held():  # Ctrl-C is this process's to handle
            process.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.join()


def _speak(folder: Path, listener: socket.socket) -> None:
    """The process: HTTP until its parent is gone, by SIGKILL too."""
    import uvicorn

    from babyllama.serve.pages import watching

    if sys.platform != "win32":
        os.nice(10)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    config = uvicorn.Config(watching(folder), log_level="critical", lifespan="off", ws="none", server_header=False)
    uvicorn.Server(config).run(sockets=[listener])


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)
