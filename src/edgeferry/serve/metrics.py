"""What operators count: requests, inferences, times, deaths, and which model is active; Prometheus text.

Rules:
- Label values are bounded: route patterns, statuses, names of served models. Nothing that a caller can make up.
- Values that others hold (slots, agent) are read at each scrape, never copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgeferry.serve.infer import Inference
from edgeferry.serve.ports import DevicePort
from edgeferry.serve.slots import Slots
from edgeferry.serve.v2_infer import TensorInference

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LABELLED_MAX = 256
_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The counters of one API."""

    def __init__(self, slots: Slots, device: DevicePort | None) -> None:
        self._registry = CollectorRegistry(auto_describe=True)
        self._requests = Counter(
            "edgeferry_requests", "Requests by route and status", ["route", "status"], registry=self._registry
        )
        self._request_seconds = Histogram(
            "edgeferry_request_seconds", "Time a request took", ["route"], registry=self._registry, buckets=_BUCKETS_S
        )
        self._inference_seconds = Histogram(
            "edgeferry_inference_seconds",
            "Time from queue to answer",
            ["model", "version"],
            registry=self._registry,
            buckets=_BUCKETS_S,
        )
        # what `labels` finds by making texts of its arguments and taking a lock
        self._request_counters = lru_cache(_LABELLED_MAX)(
            lambda route, status: (self._requests.labels(route, status), self._request_seconds.labels(route))
        )
        self._inference_histogram = lru_cache(_LABELLED_MAX)(self._inference_seconds.labels)
        self._registry.register(_ServingCollector(slots))
        if device is not None:
            self._registry.register(_DeviceCollector(device))

    def count_request(self, route: str, status: int, duration_s: float) -> None:
        """Counts one request; `route` is the pattern, not the path."""
        requests, seconds = self._request_counters(route, status)
        requests.inc()
        seconds.observe(duration_s)

    def count_inference(self, inference: Inference | TensorInference) -> None:
        """Counts one answered picture, or set of tensors."""
        version = inference.version
        self._inference_histogram(version.model, version.version).observe(inference.total_ms / 1000)

    def render(self) -> bytes:
        """Everything, in the Prometheus text format."""
        return generate_latest(self._registry)


class _ServingCollector(Collector):
    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def collect(self) -> Iterator[Metric]:
        """What is served at this moment."""
        info = GaugeMetricFamily(
            "edgeferry_model_info", "The active version of each model", labels=["model", "version"]
        )
        ready = GaugeMetricFamily("edgeferry_model_ready", "1 while a living worker serves the model", labels=["model"])
        deaths = CounterMetricFamily("edgeferry_worker_deaths", "Worker deaths since the last switch", labels=["model"])
        for name, served in self._slots.get_models().items():
            info.add_metric([name, served.version.version], 1)
            ready.add_metric([name], float(served.ready))
            deaths.add_metric([name], served.deaths)
        taken = self._slots.gate.taken
        yield from (
            info,
            ready,
            deaths,
            GaugeMetricFamily("edgeferry_queue", "Requests running or waiting", value=taken),
        )


class _DeviceCollector(Collector):
    def __init__(self, device: DevicePort) -> None:
        self._device = device

    def collect(self) -> Iterator[Metric]:
        """What the agent says of the device at this moment."""
        status = self._device.get_status()
        yield GaugeMetricFamily("edgeferry_connected", "1 while the hub is connected", value=float(status.connected))
        spent = status.ledger.total_bytes
        yield CounterMetricFamily("edgeferry_wire_bytes", "Bytes on the wire, both ways, by the ledger", value=spent)
        yield GaugeMetricFamily("edgeferry_disk_free_bytes", "Bytes free for models", value=status.disk_free_bytes)
