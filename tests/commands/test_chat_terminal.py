"""The chat on a real terminal (a pseudo-terminal): keys, pasted text, Ctrl-C, with prompt-toolkit and without it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from babyllama.model.checkpoint import save_model
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise

from .small_run import CHATS, save_taught, small_tokenizer

WITHOUT = "import sys; sys.modules['prompt_toolkit'] = None; "
PROGRAM = "from babyllama.cli import main; main()"
ENTER, NEW_LINE, UP, CTRL_C, CTRL_D, ALL = "\r", "\x1b\r", "\x1b[A", "\x03", "\x04", "\x15"


class Terminal:
    """What a person at the keyboard sees."""

    def __init__(self, screen: int, process: subprocess.Popen[bytes]) -> None:
        self.screen, self.process, self.shown = screen, process, ""

    def type(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def wait(self, text: str) -> str:
        """What is shown until `text` has come."""
        self._until(lambda: text in self.shown, text)
        found, _, self.shown = self.shown.partition(text)
        return found + text

    def wait_for_more(self, characters: int) -> None:
        """Until so many more are shown."""
        self._until(lambda: len(self.shown) >= characters, f"{characters} characters")
        self.shown = ""

    def _until(self, done: Callable[[], bool], wanted: str) -> None:
        until, raw, before = time.monotonic() + 60, b"", self.shown
        while not done():
            assert time.monotonic() < until, f"{wanted} did not come; shown: {self.shown!r}"
            if select.select([self.screen], [], [], 0.2)[0]:
                raw += os.read(self.screen, 65536)
                plain = re.sub(r"\x1b(\[[0-9;?>]*[A-Za-z]|[=>])", "", raw.decode("utf-8", "ignore"))  # no colours
                self.shown = before + plain.replace("\r", "")


@contextmanager
def at_a_terminal(program: str, words: list[str], home: Path) -> Iterator[Terminal]:
    screen, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, b"\x32\x00\xc8\x00" + bytes(4))  # 50 lines of 200 characters
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TERM": "xterm",
                   "XDG_STATE_HOME": str(home), "PROMPT_TOOLKIT_NO_CPR": "1"}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", program, "chat", *words, "device=cpu"], stdin=inner, stdout=inner, stderr=inner,
        start_new_session=True, env=environment, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))  # fmt: skip
    os.close(inner)
    try:
        yield Terminal(screen, process)
    finally:
        process.kill()
        process.wait()
        os.close(screen)


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    return save_taught(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def endless(tmp_path_factory) -> Path:
    """A model that writes anything, and goes on where the end is forbidden."""
    folder, tokenizer = tmp_path_factory.mktemp("endless"), small_tokenizer()
    model = Transformer(ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=1 << 16,
        tie_word_embeddings=False))  # fmt: skip
    initialise(model, 0)
    save_model(model, folder, **tokenizer.config_ids)
    tokenizer.save(folder)
    return folder


GREEDY = ["temperature=0", "repetition_penalty=1"]


def test_a_chat_with_prompt_toolkit(taught, tmp_path):
    pytest.importorskip("prompt_toolkit", reason="comes with the extra chat")
    question, answer = CHATS[0]
    with at_a_terminal(PROGRAM, [str(taught), *GREEDY], tmp_path) as screen:
        assert "Alt-Enter begins a new line" in screen.wait(">")
        screen.type(question + ENTER)
        assert answer in screen.wait("a second, the first after")
        screen.wait(">")
        screen.type("/edit" + ENTER)
        screen.wait(f"> {question}")  # it is there to be changed
        screen.type(ALL + CHATS[1][0] + ENTER)
        assert CHATS[1][1] in screen.wait("a second, the first")
        screen.wait(">")
        screen.type(f"\x1b[200~{CHATS[2][0]}\r\nabc\x1b[201~")  # pasted: its line break sends nothing
        screen.wait("abc")
        screen.type(NEW_LINE + "def" + ENTER)
        screen.wait("a second, the first")
        screen.wait(">")
        screen.type(f"/save {tmp_path}/saved" + ENTER)
        screen.wait("saved 2 turns")
        screen.wait(">")
        screen.type("dropped" + CTRL_C)
        screen.wait("(Ctrl-D exits)")
        screen.wait(">")
        screen.type(CTRL_D)
        assert screen.process.wait(timeout=30) == 0
    said = (tmp_path / "saved").read_text("utf-8")
    assert question not in said and CHATS[1][0] in said and f"{CHATS[2][0]}\\nabc\\ndef" in said
    with at_a_terminal(PROGRAM, [str(taught), *GREEDY], tmp_path) as screen:
        screen.wait(">")
        screen.type(5 * UP + ENTER)  # back over the command and the three lines to CHATS[1]
        assert CHATS[1][1] in screen.wait("a second, the first")
        screen.type("/quit" + ENTER)
        assert screen.process.wait(timeout=30) == 0


@pytest.mark.parametrize("program", [PROGRAM, WITHOUT + PROGRAM], ids=["prompt-toolkit", "plain"])
def test_ctrl_c_stops_the_answer_and_not_the_program(endless, tmp_path, program):
    if program == PROGRAM:
        pytest.importorskip("prompt_toolkit", reason="comes with the extra chat")
    no_end = f"logit_bias={dict.fromkeys(small_tokenizer().special_ids, -100)}"
    with at_a_terminal(program, [str(endless), "max_tokens=60000", "history=false", no_end], tmp_path) as screen:
        screen.wait("Ctrl-D exits")
        screen.wait(">")

        def interrupt(times: int = 1) -> None:
            for _ in range(times):
                os.killpg(screen.process.pid, signal.SIGINT)
                time.sleep(0.004)

        for stop in (lambda: screen.type(CTRL_C), interrupt, lambda: interrupt(8)):
            screen.type("你好" + ENTER)
            screen.wait("你好")
            screen.wait_for_more(100)
            stop()
            screen.wait("(stopped)")
            screen.wait(">")
        for command in ("/regenerate", "/continue"):
            screen.type(command + ENTER)
            screen.wait(command)
            screen.wait_for_more(100)
            screen.type(CTRL_C)
            screen.wait("(stopped)")
            screen.wait(">")
        screen.type(CTRL_D)
        assert screen.process.wait(timeout=30) == 0
    assert not (tmp_path / "babyllama").exists()  # history=false


def test_a_chat_without_prompt_toolkit(taught, tmp_path):
    with at_a_terminal(WITHOUT + PROGRAM, [str(taught), *GREEDY], tmp_path) as screen:
        assert "Alt-Enter" not in screen.wait(">")
        screen.type(CHATS[0][0] + ENTER)
        assert CHATS[0][1] in screen.wait("a second, the first")
        screen.wait(">")
        screen.type("/edit" + ENTER)
        screen.wait(f"> {CHATS[0][0]}")
        screen.type(ALL + CHATS[3][0] + ENTER)
        assert CHATS[3][1] in screen.wait("a second, the first")
        screen.wait(">")
        screen.type(CTRL_D)
        assert screen.process.wait(timeout=30) == 0
