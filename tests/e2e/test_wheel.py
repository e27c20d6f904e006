"""`python -m build`, the wheel in an environment of its own, and what people run first, in a folder elsewhere.

The environment sees this one's packages, but neither this source tree nor what installs it. With the extra `e2e`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
FEWER = [
    *(f"{stage}:{key}" for stage in ("base", "general", "medical")
      for key in ("plan.steps=2", "plan.micro_batch_size=2", "device=cpu")),
    *(f"{stage}:workers=1" for stage in ("corpus", "general-chats", "medical-chats")),
    *(f"evaluate-{stage}:questions=2" for stage in ("general", "general-new", "medical", "medical-new")),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`bin` of the environment, and `work`, where nothing of the source tree is."""
    root = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(root / "dist"), str(ROOT)]
    done = subprocess.run(build, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(list((root / "dist").glob("babyllama-*.tar.gz"))) == 1
    (wheel,) = (root / "dist").glob("*.whl")
    venv.create(root / "venv", with_pip=False)
    (packages,) = (root / "venv").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    installer = [sys.executable, "-m", "pip", "--python", str(root / "venv" / "bin" / "python"), "install", "--no-deps",
                 "--force-reinstall", "--no-index", "--quiet", "--prefix", str(root / "venv"), str(wheel)]  # fmt: skip
    subprocess.run(installer, check=True, timeout=300)
    (root / "work").mkdir()
    return root


@pytest.fixture(scope="module")
def babyllama(place):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(place / "venv" / "bin" / "babyllama")]

    def start(*words, **more):
        return subprocess.Popen([*command, *words], cwd=place / "work", env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)  # fmt: skip

    def run(*words, said=""):
        process = start(*words, stdin=subprocess.PIPE)
        out, err = process.communicate(said, timeout=600)
        assert process.returncode == 0, (words, out[-2000:], err[-2000:])
        return out

    run.start = start
    return run


@pytest.fixture(scope="module")
def quickstarted(babyllama, place):
    babyllama("quickstart", "out=q", "size=cpu", f"overrides={json.dumps(FEWER)}")
    return place / "work" / "q"


def test_it_is_the_wheel_that_runs(place):
    code = "import babyllama; print(babyllama.__file__)"
    done = subprocess.run([place / "venv" / "bin" / "python", "-c", code], capture_output=True, text=True, cwd="/")
    assert Path(done.stdout.strip()).is_relative_to(place / "venv")


def test_help_and_recipes(babyllama):
    assert "quickstart" in babyllama("--help") and "quickstart/cpu/base" in babyllama("recipes")
    assert "micro_batch_size" in babyllama("train", "--keys")


def test_quickstart_chat_and_export(babyllama, quickstarted):
    assert "<svg" in (quickstarted / "report.html").read_text("utf-8")
    assert "everyday" in json.loads((quickstarted / "general-chats" / "manifest.json").read_text("utf-8"))["corpora"]
    assert babyllama("chat", "q/medical", "max_tokens=4", said="你好\n").strip()
    for to, file in (
        ("gguf", "medical-F16.gguf"),
        ("hf", "medical-hf/README.md"),
        ("ollama", "medical-ollama/Modelfile"),
    ):
        babyllama("export", "q/medical", f"to={to}")
        assert (quickstarted.parent / file).stat().st_size > 0


def test_serve_and_its_page(babyllama, quickstarted):
    process = babyllama.start("serve", "q/medical", "port=0", "device=cpu")
    try:
        said = process.stderr.readline()
        url = re.search(r"at (http://\S+)/v1 ", said)[1]
        for path, there in (("/", "<script"), ("/web/app.js", "import"), ("/v1/models", "medical")):
            with urllib.request.urlopen(url + path, timeout=60) as answer:
                assert there in answer.read().decode()
    finally:
        process.terminate()
        process.communicate(timeout=60)
