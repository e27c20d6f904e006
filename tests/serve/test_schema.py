"""Schemathesis makes requests from the OpenAPI page; none of them may make the server fail."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .conftest import KEY

pytestmark = pytest.mark.slow


def test_requests_made_from_the_openapi_page(server):
    pytest.importorskip("schemathesis", reason="comes with the extra e2e")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "-H",
               f"Authorization: Bearer {KEY}", "--checks", "not_a_server_error", "--max-examples", "500"]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
    assert server.process.poll() is None
