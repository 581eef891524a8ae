"""What Prometheus is told: counters of requests and of devices, and the event loop's lag."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from asyncinfer.serve.gate import Gate
from asyncinfer.serve.served import Served

__all__ = ("CONTENT_TYPE_LATEST", "Metrics")

_Parent = TypeVar("_Parent", Counter, Histogram)

#: seconds between two looks at the event loop's lag
_TICK = 0.01
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The server's own registry; nothing is registered globally."""

    def __init__(self, gate: Gate, models: Callable[[], Iterable[Served]]) -> None:
        self.registry = CollectorRegistry()
        labels = ("model", "protocol", "outcome")
        self._requests = Counter(
            "asyncinfer_requests_total",
            "Inference requests by outcome: ok, cancelled, or the kind of error.",
            labels,
            registry=self.registry,
        )
        self._seconds = Histogram(
            "asyncinfer_request_seconds",
            "Seconds from admission to answer, of requests that succeeded.",
            labels[:2],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._rows = Counter(
            "asyncinfer_rows_total", "Rows inferred.", ("model",), registry=self.registry
        )
        self._lag = Histogram(
            "asyncinfer_event_loop_lag_seconds",
            "How much later than asked for the event loop came back to a timer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._children: dict[tuple[object, ...], object] = {}
        ProcessCollector(registry=self.registry)
        self.registry.register(_Now(gate, models))

    def request(self, model: str, protocol: str, outcome: str, seconds: float, rows: int) -> None:
        """Count one request that has ended."""
        self._child(self._requests, model, protocol, outcome).inc()
        if outcome == "ok":
            self._child(self._seconds, model, protocol).observe(seconds)
            self._child(self._rows, model).inc(rows)

    def _child(self, metric: _Parent, *labels: str) -> _Parent:
        """That with these labels; to look it up there takes longer."""
        key = (metric, *labels)
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = metric.labels(*labels)
        return cast("_Parent", found)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)

    async def watch_lag(self) -> None:
        """Look at the event loop's lag, for ever."""
        while True:
            started = time.perf_counter()
            await asyncio.sleep(_TICK)
            self._lag.observe(max(0.0, time.perf_counter() - started - _TICK))


class _Now(Collector):
    """What is looked up when it is asked for."""

    def __init__(self, gate: Gate, models: Callable[[], Iterable[Served]]) -> None:
        self._gate = gate
        self._models = models

    def collect(self) -> Iterator[Metric]:
        gate = self._gate
        gauges = {
            "admitting": ("1 while requests are admitted.", int(not gate.closed)),
            "requests_in_work": ("Requests admitted and not answered.", gate.requests),
            "rows_in_work": ("Rows admitted and not answered.", gate.rows),
            "bytes_in_work": ("Bytes of the requests in work.", gate.bytes),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"asyncinfer_{name}", text, value)
        yield from self._devices()

    def _devices(self) -> Iterator[Metric]:
        labels = ("model", "device")
        up = GaugeMetricFamily("asyncinfer_device_up", "1 while the device is up.", labels=labels)
        service = GaugeMetricFamily(
            "asyncinfer_device_service_seconds",
            "Estimated seconds between two finished rows under full load.",
            labels=labels,
        )
        tasks, calls, errors, busy = (
            CounterMetricFamily(f"asyncinfer_device_{name}", text, labels=labels)
            for name, text in (
                ("tasks", "Rows the device finished."),
                ("calls", "Calls of the device; rows by calls is the mean batch."),
                ("errors", "Faults of the device and failed rows."),
                ("busy_seconds", "Seconds with at least one call in flight."),
            )
        )
        for served in self._models():
            for device in served.stats.devices:
                key = (served.name, device.name)
                up.add_metric(key, int(device.up))
                tasks.add_metric(key, device.tasks)
                calls.add_metric(key, device.batches)
                errors.add_metric(key, device.errors)
                busy.add_metric(key, device.busy_seconds)
                if device.service_time is not None:
                    service.add_metric(key, device.service_time)
        yield from (up, service, tasks, calls, errors, busy)
