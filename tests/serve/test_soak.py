"""The server for long: 64 streams without an error in flat memory, and thousands of made-up requests."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from babyllama.commands.bench_serve import BenchServeRecipe, measure

from .conftest import KEY, Server, started
from .test_processes import speaking
from .test_serve import FORMS, ROUTES, answers_or_refuses

pytestmark = pytest.mark.slow
CLIENTS, SECONDS = 64, 120


def resident(server: Server) -> list[int]:
    """Pages in memory of its process with the engine and of that for HTTP."""
    processes = [server.process.pid, *speaking(server)]
    return [int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in processes]


def test_many_streams_for_long(folders, tmp_path):
    def streams(url: str, seconds: float) -> dict:
        recipe = BenchServeRecipe(url=f"{url}/v1", clients=CLIENTS, seconds=seconds, max_tokens=128,
                                  api_key=KEY)  # fmt: skip
        return measure(recipe)

    with started(tmp_path, str(folders / "steady")) as server:
        streams(server.url, 20)
        before, began = resident(server), time.monotonic()
        found = streams(server.url, SECONDS)
        assert found["errors"] == found["refused (429)"] == 0 and found["answers"] > CLIENTS, found
        assert time.monotonic() - began < 2 * SECONDS
        after = resident(server)
        print(found, before, after)
        assert len(after) == 2 and all(abs(now / then - 1) < 0.03 for now, then in zip(after, before, strict=True))


@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(ROUTES, FORMS)
def test_ten_thousand_requests(client, route, body):
    answers_or_refuses(client, route, body)
