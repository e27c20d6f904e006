"""The entry: consoles that lack characters, pipes that close, Ctrl-C at any moment, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from babyllama import cli, verbs
from babyllama.interrupts import Stopper

POSIX = pytest.mark.skipif(os.name != "posix", reason="sends signals and closes pipes as POSIX does")
HEAVY = ("torch", "numpy", "matplotlib", "tokenizers", "sentencepiece")


def start(*words, code="from babyllama.cli import main; main()", **more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=environment, start_new_session=True)  # fmt: skip


def ended(process, timeout=60):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


# A verb whose import, or work, tells us that it has begun and then takes long.
SLOW_IMPORT = """
import importlib.util, sys
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("importing", flush=True)
            import time; time.sleep(30)
sys.meta_path.insert(0, Slow())
from babyllama.cli import main; main()
"""
FALSE_ERROR = """
import sys, types
import babyllama.recipe as r
class Value(r.Recipe): pass
def main(recipe):
    print("working", flush=True)
    import time
    try: time.sleep(30)
    except KeyboardInterrupt: raise ImportError("cannot import name from partially initialized module") from None
sys.modules["babyllama.commands.train"] = types.SimpleNamespace(TrainRecipe=Value, main=main)
from babyllama.cli import main as entry; entry()
"""


@POSIX
@pytest.mark.parametrize("code", [SLOW_IMPORT, FALSE_ERROR, FALSE_ERROR.replace("ImportError", "KeyboardInterrupt")])
def test_ctrl_c_is_one_line_at_any_moment(code):
    process = start("train", code=code)
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    status, _, err = ended(process)
    assert status == 130
    assert err.decode().strip() == "babyllama: interrupted; the same command continues"


AT_THE_END = """
import os, signal, sys, types
import babyllama.recipe as r
class Value(r.Recipe): pass
class Late:
    def __del__(self, kill=os.kill, me=os.getpid(), ctrl_c=signal.SIGINT): kill(me, ctrl_c)
sys.late = Late()  # dies when Python is taken apart
sys.modules["babyllama.commands.train"] = types.SimpleNamespace(TrainRecipe=Value, main=lambda recipe: print("done"))
from babyllama.cli import main as entry; entry()
"""


@POSIX
def test_ctrl_c_after_the_work_changes_nothing():
    assert ended(start("train", code=AT_THE_END)) == (0, b"done\n", b"")


@POSIX
def test_ctrl_c_while_workers_start_and_work(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time\nfrom babyllama.data.shards.workers import spread\ntime.sleep(0.5)\n"
        "def work(job):\n    time.sleep(30)\n"
    )
    code = ("import sys, types, babyllama.recipe as r\n"
            "class Value(r.Recipe): pass\n"
            "def main(recipe):\n"
            "    import slow\n    print('working', flush=True)\n"
            "    list(slow.spread(slow.work, range(4), lambda job: None, 2))\n"
            "if __name__ == '__main__':\n"
            "    sys.modules['babyllama.commands.train'] = types.SimpleNamespace(TrainRecipe=Value, main=main)\n"
            "    from babyllama.cli import main as entry; entry()\n")  # fmt: skip
    script = tmp_path / "script.py"
    script.write_text(code)
    for pause in (0.2, 1.5):  # while the workers import; while they work
        process = subprocess.Popen([sys.executable, str(script), "train"], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
        process.stdout.readline()
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGINT)
        status, _, err = ended(process)
        assert (status, err.decode().strip()) == (130, "babyllama: interrupted; the same command continues")


@pytest.mark.parametrize("encoding,words", [("ascii", ["train", "--help"]), ("cp1252", ["recipes"]),
                                            ("gbk", ["report", "模型🦙"]),
                                            ("ascii", ["report", "模型🦙"])])  # fmt: skip
def test_a_character_that_the_console_lacks_ends_nothing(encoding, words):
    status, out, err = ended(start(*words, PYTHONIOENCODING=encoding))
    assert b"Traceback" not in err
    assert status == (2 if words[0] == "report" else 0)
    # Whatever was shown is text of that encoding; typer writes UTF-8 where it finds ASCII.
    out.decode("utf-8" if encoding == "ascii" else encoding)
    err.decode(encoding)


@POSIX
def test_a_closed_pipe_ends_quietly():
    process = start("train", "--help", PYTHONUNBUFFERED="1")
    process.stdout.close()
    process.wait(60)
    assert process.stderr.read() == b""
    process.stderr.close()


CLOSED = "import os; os.close({}); os.execv({!r}, [{!r}, '-c', 'from babyllama.cli import main; main()', *{!r}])"


@POSIX
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_stream_that_is_closed_reads_and_writes_as_nothing(number, tmp_path):
    """As `<&-` and `>&-` give it; what is written to no stream goes into no file either."""
    words = ["recipes"] if number else ["chat", str(tmp_path / "none")]
    status, out, err = ended(start(code=CLOSED.format(number, sys.executable, sys.executable, words)))
    assert status == (0 if number else 2) and b"Traceback" not in err
    assert bool(out) == (number == 2) and bool(err) == (number == 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux' full device")
def test_a_full_disk_under_the_output_is_one_line():
    with Path("/dev/full").open("w") as full:
        code = "import sys; from babyllama.cli import main; sys.argv[1:] = ['recipes']; main()"
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 2
    assert done.stderr == b"babyllama: what is printed cannot be written: No space left on device; make room\n"


def test_exit_codes_and_one_line():
    assert ended(start())[0] == 0  # help
    assert ended(start("--version"))[0] == 0
    assert ended(start("help", "data", "stats"))[1] == ended(start("data-stats", "--help"))[1]
    for words, part in (
        (["trian"], "Did you mean 'train'?"),
        (["tokenizer"], "out: "),  # verbs that need no PyTorch
        (["report", "runs/none"], "runs/none"),
        ([b"report", b"\xff"], r"\udcff: not valid UTF-8"),
    ):
        status, out, err = ended(start(*words))
        assert (status, out) == (2, b"")
        lines = err.decode().splitlines()
        assert all(line.startswith("babyllama: ") for line in lines)
        assert any(part in line for line in lines)


ON_A_CARD = ("CUDA out of memory. Tried to allocate 15.45 GiB. GPU 0 has a total capacity of 23.64 GiB of which "
             "1.02 GiB is free. Including non-PyTorch memory, this process has 22.61 GiB memory in use.")  # fmt: skip


def too_much(kind):
    """A fault of full memory as PyTorch, numpy or a compiled step raises it."""
    if kind == "tensor":
        torch.empty(10**15)
    if kind == "array":
        np.zeros(10**15)
    error = torch.OutOfMemoryError(ON_A_CARD)
    if kind == "compiled":
        raise RuntimeError("the compiled step failed") from error
    raise error


@pytest.mark.parametrize(("kind", "verb", "said"), [
    ("card", "train", "out of memory: 15.45 GiB more on GPU 0, which has 23.64 GiB; halve plan.micro_batch_size"),
    ("compiled", "serve", "out of memory: 15.45 GiB more on GPU 0, which has 23.64 GiB; take fewer slots"),
    ("tensor", "evaluate", "out of memory: 3725290.3 GiB more; take fewer rows"),
    ("array", "chat", "out of memory: 7.11 PiB more; take a smaller model"),
])  # fmt: skip
def test_too_little_memory_is_one_line_with_the_remedy(kind, verb, said, monkeypatch, capsys):
    monkeypatch.setattr(verbs, "call", lambda words: too_much(kind))
    monkeypatch.setattr(sys, "argv", ["babyllama", verb, "runs/x"])
    assert cli._run() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"babyllama: {said}")


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(verbs, "call", lambda words: [][1])
    with pytest.raises(IndexError):
        cli._run()


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["recipes"]])
def test_help_imports_nothing_heavy(words):
    code = ("import sys, json\nfrom babyllama.cli import main\ntry: main()\n"
            f"except SystemExit: print(json.dumps([m for m in {HEAVY} if m in sys.modules]))")  # fmt: skip
    _, out, _ = ended(start(*words, code=code))
    assert json.loads(out.decode().splitlines()[-1]) == []


def test_python_m_babyllama():
    done = subprocess.run([sys.executable, "-m", "babyllama", "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("babyllama ")
    assert Path(done.args[0]).exists()


@POSIX
def test_ctrl_c_that_ends_no_program_stops_the_work_at_hand_and_nothing_else():
    before = signal.getsignal(signal.SIGINT)

    def press():
        signal.raise_signal(signal.SIGINT)

    def work():
        try:
            press()
        finally:
            press()  # once more, while this tidies up
            tidied.append(True)

    def asking_within():
        stopper(press, False)
        press()
        pytest.fail("it was not stopped")

    tidied: list[bool] = []
    with Stopper() as stopper:
        assert stopper(lambda: press() or 3, False) == 3
        for one in (press, work, asking_within):
            with pytest.raises(KeyboardInterrupt):
                stopper(one)
            press()  # between two pieces of work
        assert tidied and stopper(lambda: 4) == 4
        stopper(lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        press()
    assert signal.getsignal(signal.SIGINT) is before
