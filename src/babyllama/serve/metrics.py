"""What /metrics tells, in Prometheus' text form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from babyllama.serve.gate import Record
from babyllama.serve.models import Models

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made = {"registry": self.registry, "namespace": "babyllama"}
        self._requests = Counter("requests", "HTTP requests", ["route", "status"], **made)
        self._seconds = Histogram("request_seconds", "from a request to its end", ["route"], buckets=SECONDS, **made)
        self._tokens = Counter("tokens", "tokens of prompts and answers", ["model", "side"], **made)
        self._first = Histogram("first_token_seconds", "until the first token", ["model"], buckets=SECONDS, **made)
        self._loaded = Gauge("model_loaded", "whether a model is in memory", ["model"], **made)
        self._running = Gauge("requests_running", "answers that are being written", ["model"], **made)
        self._waiting = Gauge("requests_waiting", "answers that wait for a row", ["model"], **made)

    def ended(self, record: Record, known: bool) -> None:
        """One HTTP request has. `known`: whether its model is one of the server's."""
        self._requests.labels(record.route, str(record.status)).inc()
        self._seconds.labels(record.route).observe(record.seconds)
        if not known or not record.tokens_in:
            return
        self._tokens.labels(record.model, "in").inc(record.tokens_in)
        self._tokens.labels(record.model, "out").inc(record.tokens_out)
        if record.first is not None:
            self._first.labels(record.model).observe(record.first)

    def page(self, models: Models) -> bytes:
        """The text of /metrics, with what the models do now."""
        for name in models.openers:
            served = models.loaded.get(name)
            count, slots = (served.worker.open, served.worker.engine.slots.most) if served else (0, 0)
            for side in ("in", "out"):  # there from the start, at 0: a rate over the first answer is no gap then
                self._tokens.labels(name, side)
            self._loaded.labels(name).set(served is not None)
            self._running.labels(name).set(min(count, slots))
            self._waiting.labels(name).set(max(count - slots, 0))
        return generate_latest(self.registry)
