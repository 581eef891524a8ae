"""What the wire protocol of the emulated Cortex-M4 does by itself, without a dispatcher."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from asyncinfer._optional import run_async
from asyncinfer.bench.link.lines import line_figures
from asyncinfer.bench.record import Run
from asyncinfer.errors import ConfigError
from asyncinfer.model import import_object

__all__ = ("computing", "firmware", "protocol", "round_trips")

_MEASURE = "asyncinfer_drivers.cortex_m.measure"


def firmware() -> str:
    """The digits firmware; ``ConfigError`` if it cannot be built or emulated here."""
    if missing := import_object("asyncinfer_drivers.cortex_m.emulated_driver:missing")():
        raise ConfigError(missing)
    build = import_object("asyncinfer_drivers.cortex_m.build:build_firmware")
    return str(build("digits", "digits").elf)


def protocol(elf: str, baudrate: int, inferences: int) -> Run:
    """As many requests in flight as the board takes, beside the same frames without the link."""
    facts = _facts("link", elf, baudrate=baudrate, inferences=inferences)
    found = facts["inferences"] / facts["seconds"]
    figures = line_figures(found, facts["bytes_per_request"], facts["baudrate"])
    figures |= {key: facts[key] for key in ("bare_efficiency", "turns", "in_flight", "resent")}
    return Run(
        suite="link",
        case=f"cortex_m4: {facts['baudrate']} baud, {facts['in_flight']} in flight",
        policy="wire protocol",
        devices=("cortex_m4",),
        tasks=facts["inferences"],
        makespan=facts["seconds"],
        throughput=found,
        figures=figures,
    )


def round_trips(elf: str, pings: int) -> Run:
    """A PING through the link against the same bytes without it, in turns over one port."""
    facts = _facts("overhead", elf, pings=pings)
    return Run(
        suite="link",
        case="round trip",
        policy="wire protocol",
        devices=("cortex_m4",),
        tasks=facts["pings"],
        latency_p50=facts["link_seconds"],
        figures=facts,
    )


def computing() -> Run:
    """A model whose inference takes longer than its input on the line."""
    numpy: Any = importlib.import_module("numpy")
    build = import_object("asyncinfer_drivers.cortex_m.build:build_firmware")
    samples = numpy.random.default_rng(42).random((4, 1, 8, 8), dtype=numpy.float32)
    with tempfile.TemporaryDirectory(prefix="asyncinfer-firmware-") as folder:
        model = import_object(f"{_MEASURE}:slow_model")()
        facts = _facts("compute", str(build(model, samples, output=folder).elf), inferences=30)
    return Run(
        suite="link",
        case="a model slower than the line",
        policy="wire protocol",
        devices=("cortex_m4",),
        tasks=facts["inferences"],
        makespan=facts["seconds"],
        throughput=facts["inferences"] / facts["seconds"],
        utilisation_mean=facts["compute_utilisation"],
        figures=facts,
    )


def _facts(command: str, elf: str, **options: Any) -> Mapping[str, Any]:
    measured: Callable[..., Coroutine[Any, Any, Mapping[str, Any]]]
    measured = import_object(f"{_MEASURE}:{command}")
    return run_async(measured(elf, **options))
