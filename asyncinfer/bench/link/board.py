"""What the wire protocol of the emulated Cortex-M4 does by itself, without a dispatcher."""

from __future__ import annotations

import tempfile

from asyncinfer._optional import run_async
from asyncinfer.bench.link.lines import line_figures
from asyncinfer.bench.record import Run
from asyncinfer.errors import ConfigError
from asyncinfer.registry import needed_for

__all__ = ("computing", "firmware", "protocol", "round_trips")

_BOARD = "the emulated board"


def firmware() -> str:
    """The digits firmware; ``ConfigError`` if it cannot be built or emulated here."""
    with needed_for(_BOARD):
        from asyncinfer_drivers.cortex_m.build import build_firmware
        from asyncinfer_drivers.cortex_m.emulated_driver import missing
    if text := missing():
        raise ConfigError(text)
    return str(build_firmware("digits", "digits").elf)


def protocol(elf: str, baudrate: int, inferences: int) -> Run:
    """As many requests in flight as the board takes, beside the same frames without the link."""
    from asyncinfer_drivers.cortex_m import measure

    facts = run_async(measure.link(elf, baudrate=baudrate, inferences=inferences))
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
    from asyncinfer_drivers.cortex_m import measure

    facts = run_async(measure.overhead(elf, pings=pings))
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
    with needed_for(_BOARD):
        import numpy as np

        from asyncinfer_drivers.cortex_m import measure
        from asyncinfer_drivers.cortex_m.build import build_firmware

        model = measure.slow_model()
    samples = np.random.default_rng(42).random((4, 1, 8, 8), dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="asyncinfer-firmware-") as folder:
        elf = str(build_firmware(model, samples, output=folder).elf)
        facts = run_async(measure.compute(elf, inferences=30))
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
