"""Takes the statistics of a running engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from asyncinfer._core.devices.device import Device
from asyncinfer._core.engine import Engine
from asyncinfer.stats import DeviceState, DeviceStats, DispatcherStats

__all__ = ("snapshot",)


def snapshot(engine: Engine) -> DispatcherStats:
    """The statistics of ``engine``, as they are now."""
    recorder, lanes = engine.recorder, engine.lanes
    elapsed = recorder.elapsed
    finished = recorder.finished
    return DispatcherStats(
        devices=tuple(_device_stats(device, engine) for device in engine.roster.devices),
        submitted=recorder.submitted,
        finished=finished,
        failed=recorder.failed,
        retried=recorder.retried,
        quarantined=recorder.quarantined,
        hedging=engine.hedging.stats(engine.clock()),
        queue_depth=sum(lane.intake.qsize() for lane in lanes),
        waiting=sum(len(lane.waiting) for lane in lanes)
        + len(engine.short.calls)
        + len(engine.retries.tasks),
        running=sum(device.in_flight for device in engine.roster.devices),
        reorder_buffer=recorder.reorder_buffer,
        max_reorder=recorder.max_reorder,
        elapsed=elapsed,
        throughput=finished / elapsed if elapsed > 0 else 0.0,
        latency_p50=recorder.latency(0.50),
        latency_p95=recorder.latency(0.95),
        latency_p99=recorder.latency(0.99),
        hold_mean=recorder.hold_sum / finished if finished else 0.0,
        hold_p95=recorder.hold(0.95),
        hold_max=recorder.hold_max,
    )


def _device_stats(device: Device, engine: Engine) -> DeviceStats:
    now = engine.clock()
    busy = device.busy_seconds(now)
    end = now if device.bursts else engine.recorder.last_end
    span = end - engine.recorder.first_start
    backing_off = device.state is DeviceState.BACKING_OFF
    details: Mapping[str, Any] = getattr(device.driver, "details", None) or {}
    return DeviceStats(
        name=device.name,
        state=device.state,
        tasks=device.tasks,
        batches=device.batches,
        errors=device.errors,
        in_flight=device.in_flight,
        busy_seconds=busy,
        utilisation=min(1.0, busy / span) if span > 0 else 0.0,
        service_time=_known(device.interval),
        latency=_known(device.latency),
        state_seconds=now - device.since,
        reason=device.reason,
        failures=device.failures,
        next_attempt=_known(max(0.0, device.next_attempt - now)) if backing_off else None,
        generation=device.generation,
        wedged=device.leftovers.wedged,
        rests=device.rests,
        faults=device.record.total_faults,
        next_trial=_known(max(0.0, device.record.trial_at - now)) if device.held else None,
        details={key: _plain(value) for key, value in details.items()},
    )


def _known(seconds: float) -> float | None:
    """The number, or ``None`` if it is none, which JSON has no word for."""
    return seconds if math.isfinite(seconds) else None


def _plain(value: Any) -> str | float | None:
    """What a driver tells, as JSON can have it."""
    if value is None or isinstance(value, str | bool | int):
        return value
    try:
        return _known(float(value))
    except (TypeError, ValueError):
        return str(value)
