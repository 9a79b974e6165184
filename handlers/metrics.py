"""What Prometheus may ask: latency by stage, requests by status, rejects, queue depth, the model."""

import math
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from index.errors import GalleryError
from index.face import Index

STAGES = ("decode", "embed", "search", "total")
# Upper edges in seconds.
BUCKETS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Metrics:
    """One registry of its own, so that two servers in one process do not collide."""

    def __init__(self, queue_depth: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        latency = Histogram(
            "akin_stage_seconds",
            "Seconds by stage; total runs from the request's last byte to its answer.",
            ["stage"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        # Looked up once: labels() costs as much as the observation itself.
        self._stages = {stage: latency.labels(stage) for stage in STAGES}
        self._requests = Counter(
            "akin_requests", "Predictions by HTTP status.", ["status"], registry=self.registry
        )
        self._succeeded = self._requests.labels("200")
        self.rejected = Counter(
            "akin_rejected", "Predictions refused by a full queue.", registry=self.registry
        )
        depth = Gauge("akin_queue_depth", "Predictions that wait for a worker.", registry=self.registry)
        depth.set_function(queue_depth)
        self._rows = Gauge("akin_index_rows", "Rows in the index; NaN while it is away.", registry=self.registry)
        self._written = Counter(
            "akin_index_writes", "Rows put and removed through this server.", ["kind"], registry=self.registry
        )
        self._model = Gauge(
            "akin_model_info", "The model served.", ["model", "provider"], registry=self.registry
        )

    def observe(self, stage: str, seconds: float) -> None:
        """Count one passage of a stage."""
        self._stages[stage].observe(seconds)

    def answered(self, status: int) -> None:
        """Count one answered prediction."""
        if status == 200:
            self._succeeded.inc()
        else:
            self._requests.labels(str(status)).inc()

    def written(self, kind: str, rows: int) -> None:
        """Count rows that are durable. kind: put or remove."""
        self._written.labels(kind).inc(rows)

    def serving(self, model_id: str, provider: str, index: Index) -> None:
        """Say which model answers, through which execution provider, and beside which index."""
        self._model.labels(model_id, provider).set(1)
        self._rows.set_function(lambda: count_of(index))

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


def count_of(index: Index) -> float:
    """Its rows; NaN where it cannot say."""
    try:
        return index.count
    except GalleryError:
        return math.nan
