"""What Prometheus may ask: latency by stage, requests by status, rejects by reason, the queue, the models.

docs/metrics.md says how to read them.
"""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from index.errors import GalleryError
from index.face import Index

if TYPE_CHECKING:
    from handlers.admission import Admission
    from handlers.models import Models
    from handlers.service import Service

# Upper edges in seconds.
BUCKETS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
MODEL_LABELS = ("model", "digest", "provider")

Observe = Callable[[str, float], None]  # stage, seconds


class Metrics:
    """One registry of its own, so that two servers in one process do not collide."""

    def __init__(self, admission: "Admission", models: "Models", requests: Callable[[], int] = int) -> None:
        self.registry = CollectorRegistry()
        self._models = models
        ProcessCollector(registry=self.registry)
        self._latency = Histogram(
            "akin_stage_seconds",
            "Seconds by stage: decode, embed, search, queue, and total from the request's last byte to its answer.",
            ["stage", *MODEL_LABELS],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._requests = Counter("akin_requests", "Predictions by HTTP status.", ["status"], registry=self.registry)
        self._requests.labels("200")  # there from the start, so that its rate is
        self._rejected = Counter(
            "akin_rejected", "Requests turned away before any work, by reason.", ["reason"], registry=self.registry
        )
        self._written = Counter(
            "akin_index_writes", "Rows put and removed through this server.", ["kind"], registry=self.registry
        )
        self._info = self._gauge("akin_model_info", "1 for each model served.", "name", "current", *MODEL_LABELS)
        self._rows = self._gauge("akin_index_rows", "Rows in a model's index; NaN while it is away.", *MODEL_LABELS)
        for name, text, read in (
            ("akin_queue_depth", "Requests that wait for a worker.", lambda: admission.depth),
            ("akin_queue_wait_seconds", "How long one that comes now is expected to wait.", lambda: admission.wait_s),
            ("akin_workers", "Worker threads.", lambda: admission.threads),
            ("akin_jobs_in_flight", "Jobs that wait for a worker or have one.", lambda: admission.under_way),
            ("akin_stuck_seconds", "How long the longest running job has been running.", lambda: admission.stuck_s),
            ("akin_requests_in_flight", "Requests that have begun and are not answered.", requests),
        ):
            self._gauge(name, text).set_function(read)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def observer(self, model_id: str, provider: str) -> Observe:
        """What a service tells how long its stages took."""
        name, _, digest = model_id.partition("@")
        stages: dict[str, Histogram] = {}  # looked up once: labels() costs as much as the observation itself

        def observe(stage: str, seconds: float) -> None:
            histogram = stages.get(stage)
            if histogram is None:
                histogram = stages[stage] = self._latency.labels(stage, name, digest, provider)
            histogram.observe(seconds)

        return observe

    def answered(
        self, status: int, service: "Service | None", seconds: float, timing_ms: Mapping[str, float]
    ) -> None:
        """Count one answered prediction, and how long it took where it went well."""
        self._requests.labels(str(status)).inc()
        if status == 200 and service is not None:
            service.observe("total", seconds)
            service.observe("queue", timing_ms.get("queue", 0.0) / 1e3)

    def reject(self, reason: str) -> None:
        """Count one request that was turned away."""
        self._rejected.labels(reason).inc()

    def written(self, kind: str, rows: int) -> None:
        """Count rows that are durable. kind: put or remove."""
        self._written.labels(kind).inc(rows)

    def render(self) -> bytes:
        """The text exposition format."""
        self._info.clear()
        self._rows.clear()
        for served in self._models:
            encoder = served.service.encoder
            name, _, digest = encoder.manifest.model_id.partition("@")
            self._info.labels(served.name, str(served.current).lower(), name, digest, encoder.provider).set(1)
            if served.service.gallery is not None:
                self._rows.labels(name, digest, encoder.provider).set(count_of(served.service.gallery))
        return generate_latest(self.registry)


def count_of(index: Index) -> float:
    """Its rows; NaN where it cannot say."""
    try:
        return index.count
    except GalleryError:
        return math.nan
