"""What the server tells Prometheus; docs/metrics.md has the same names."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Figures:
    """One server's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("lepton_serve_requests", "Answers to POST /predict, by HTTP status.", ["code"], registry=registry)
        self.seconds = Histogram(
            "lepton_serve_request_seconds", "From a request's arrival to its answer.", buckets=SECONDS, registry=registry
        )
        self.predictions = Counter("lepton_serve_predictions", "Instances answered.", registry=registry)
        self.batch = Histogram("lepton_serve_batch_instances", "Instances computed at once.", buckets=SIZES, registry=registry)
        self.waiting = Gauge("lepton_serve_waiting_instances", "Instances that wait to be computed.", registry=registry)
        self.ready = Gauge("lepton_serve_ready", "1 while requests are wanted.", registry=registry)
        self.swaps = Counter("lepton_serve_model_swaps", "Newer models taken up while serving.", registry=registry)
        self.failures = Counter("lepton_serve_model_failures", "Newer models that could not be loaded.", registry=registry)
        self.model = Info("lepton_serve_model", "The model that answers.", registry=registry)
