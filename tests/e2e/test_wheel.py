"""`python -m build`, the wheel in an environment of its own, and what people run first, in a folder elsewhere.

The environment sees this one's packages, but neither this source tree nor what installs it.
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
from small_quickstart import small_overrides

from once import once

ROOT = Path(__file__).parents[2]
EMBEDDED = ("everyday", "microworld", "sums")  # texts that are a file of the package, and what it makes up itself


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`bin` of the environment, and `work`, where nothing of the source tree is but what a quickstart has made."""
    return once(tmp_path_factory, "wheel", _install_and_begin)


def _install_and_begin(root):
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
    run(root, "quickstart", "out=q", "size=cpu", f"overrides={json.dumps(small_overrides(EMBEDDED))}")


def start(place, *words, program="babyllama", **more):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen([str(place / "venv" / "bin" / program), *words], cwd=place / "work", env=environment,
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)  # fmt: skip


def run(place, *words, said="", program="babyllama"):
    process = start(place, *words, program=program, stdin=subprocess.PIPE)
    out, err = process.communicate(said, timeout=600)
    assert process.returncode == 0, (words, out[-2000:], err[-2000:])
    return out


def test_it_is_the_wheel_that_runs(place):
    said = run(place, "-c", "import babyllama; print(babyllama.__file__)", program="python")
    assert Path(said.strip()).is_relative_to(place / "venv")


def test_help_and_recipes(place):
    assert "quickstart" in run(place, "--help") and "quickstart/cpu/base" in run(place, "recipes")
    assert "micro_batch_size" in run(place, "train", "--keys")


def test_quickstart_and_chat(place):
    made = place / "work" / "q"
    assert "<svg" in (made / "report.html").read_text("utf-8")
    assert "everyday" in json.loads((made / "general-chats" / "manifest.json").read_text("utf-8"))["corpora"]
    assert run(place, "chat", "q/medical", "max_tokens=4", said="你好\n").strip()


EXPORTS = {"gguf": "medical-F16.gguf", "hf": "medical-hf/README.md", "ollama": "medical-ollama/Modelfile"}


def test_exports(place):
    """In one process, whose imports they share."""
    calls = "\n".join(f"call(['export', 'q/medical', 'to={to}'])" for to in EXPORTS)
    run(place, "-c", f"from babyllama.verbs import call\n{calls}", program="python")
    assert all((place / "work" / file).stat().st_size > 0 for file in EXPORTS.values())


def test_serve_and_its_page(place):
    process = start(place, "serve", "q/medical", "port=0", "device=cpu")
    try:
        assert process.stderr
        said = re.search(r"at (http://\S+)/v1 ", process.stderr.readline())
        assert said
        for path, there in (("/", "<script"), ("/web/app.js", "import"), ("/v1/models", "medical")):
            with urllib.request.urlopen(said[1] + path, timeout=60) as answer:
                assert there in answer.read().decode()
    finally:
        process.terminate()
        process.communicate(timeout=60)
