"""From what was measured to rows, tables, a plot and checks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from asyncinfer._text import rate, seconds, size
from asyncinfer.bench.measure import Spread, median_spread, times_by_round
from asyncinfer.bench.peers.peer import OURS, OURS_HTTP, Peer
from asyncinfer.bench.peers.plan import IN_FLIGHT, Measured
from asyncinfer.bench.record import Check, Plot, Run, Table
from asyncinfer.stats import percentile

__all__ = ("checks", "plots", "rows", "tables")

_CLOSED = (
    "One image a request, 64 under way at once. Medians over the rounds (least to most); what "
    "starts slowly takes part in two of them at most. "
    "CPU time is that of the peer's processes: in process it includes the callers, behind HTTP not "
    "the client."
)
_STREAM = (
    "One ordered stream, results in order. Ray and Dask are given chunks of 32 images, since they "
    "have no batching of their own; asyncinfer is given single images and batches by itself."
)
_OPEN = (
    "Poisson arrivals; latency from the intended start of each request (p50 / p99). Percentages "
    "are of the peer's own capacity in the closed loop; 'equal' rates are the same for all, and "
    "left out where they are beyond a peer's capacity. The client's timers have a grain of 1 ms."
)


def rows(measured: Iterable[Measured], seed: int) -> list[Run]:
    """One row a load."""
    return [_row(one, seed) for one in measured]


def tables(measured: Sequence[Measured], peers: Sequence[Peer], ceiling: str) -> list[Table]:
    """For each model the three loads, and the settings; ``ceiling`` says what the client can."""
    found = [
        table
        for model in dict.fromkeys(one.model for one in measured)
        for table in (_closed(measured, model), _stream(measured, model), _open(measured, model))
        if table.rows
    ]
    return [*found, _settings(measured, peers, ceiling)] if found else []


def checks(measured: Sequence[Measured], peers: Sequence[Peer]) -> list[Check]:
    """That ``infer`` is ahead of every peer, for each model where one was measured."""
    names = [peer.name for peer in peers if peer not in (OURS, OURS_HTTP)]
    models = dict.fromkeys(one.model for one in measured)
    return [check for model in models if (check := _check(measured, model, names)) is not None]


def plots(measured: Sequence[Measured]) -> list[Plot]:
    """Images a second of all of them, in one picture for each model."""
    models = dict.fromkeys(one.model for one in measured if one.load == "closed")
    return [
        Plot(
            model,
            f"{model}: single images, {IN_FLIGHT} in flight",
            _bars({name: _rate(ones).median for name, ones in _by_peer(measured, model)}),
            "Images a second in closed loop; medians over the rounds.",
        )
        for model in models
    ]


def _row(one: Measured, seed: int) -> Run:
    result, latencies = one.result, one.result.latencies
    streamed = one.load == "stream"
    figures: dict[str, Any] = {
        "errors": result.errors,
        "first_error": result.first_error,
        "startup_seconds": one.startup,
        "in_flight": IN_FLIGHT if one.load == "closed" else None,
        "arrival_rate": one.rate or None,
        "client_lag_p99": percentile(result.lags, 0.99) if result.lags else None,
        "cpu_seconds_per_image": None if math.isnan(one.cpu) else one.cpu,
        "versions": one.versions,
    }
    return Run(
        suite="peers",
        case=f"{one.model}, {one.load}",
        policy=one.peer,
        tasks=result.finished,
        seed=seed,
        run=one.round,
        makespan=result.seconds,
        throughput=result.throughput,
        latency_mean=statistics.fmean(latencies) if latencies and not streamed else math.nan,
        latency_p50=_quantile(one, 0.5),
        latency_p95=_quantile(one, 0.95),
        latency_p99=_quantile(one, 0.99),
        peak_rss=one.peak_rss,
        figures=figures,
    )


def _quantile(one: Measured, part: float) -> float:
    if one.load == "stream" or not one.result.latencies:
        return math.nan
    return percentile(one.result.latencies, part)


def _by_peer(
    measured: Iterable[Measured], model: str, load: str = "closed"
) -> list[tuple[str, list[Measured]]]:
    """The rounds of each peer, the fastest one first."""
    found: dict[str, list[Measured]] = {}
    for one in measured:
        if (one.model, one.load) == (model, load):
            found.setdefault(one.peer, []).append(one)
    return sorted(found.items(), key=lambda entry: -_rate(entry[1]).median)


def _rate(ones: Iterable[Measured]) -> Spread:
    return median_spread(one.result.throughput for one in ones)


def _times(ones: Iterable[Measured], others: Iterable[Measured]) -> float:
    ours, theirs = ({o.round: o.result.throughput for o in group} for group in (ones, others))
    return times_by_round(ours, theirs)


def _cpu(ones: Iterable[Measured]) -> str:
    return seconds(median_spread(one.cpu for one in ones).median)


def _closed(measured: Sequence[Measured], model: str) -> Table:
    found = _by_peer(measured, model)
    ours = _rate(dict(found).get(OURS.name, [])).median
    lines = []
    for name, ones in found:
        rates = _rate(ones)
        parts = (0.5, 0.95, 0.99)
        quantiles = [median_spread(_quantile(one, p) for one in ones).median for p in parts]
        lines.append(
            [
                name,
                f"{rate(rates.median)} ({rate(rates.least)} to {rate(rates.most)})",
                f"{ours / rates.median:.2f}" if ours / (rates.median or math.nan) > 0 else "-",
                *(seconds(quantile) for quantile in quantiles),
                _cpu(ones),
                str(sum(one.result.errors for one in ones)),
                size(median_spread(one.peak_rss for one in ones).median),
                f"{median_spread(one.startup for one in ones).median:.1f} s",
            ]
        )
    columns = (
        "",
        "images/s",
        "asyncinfer is faster by",
        "p50",
        "p95",
        "p99",
        "CPU an image",
        "errors",
        "peak memory",
        "start-up",
    )
    return Table(f"{model}: closed loop, {IN_FLIGHT} in flight", columns, lines, _CLOSED)


def _stream(measured: Sequence[Measured], model: str) -> Table:
    found = _by_peer(measured, model, "stream")
    lines = [
        [
            name,
            f"{rate(rates.median)} ({rate(rates.least)} to {rate(rates.most)})",
            str(sum(one.result.errors for one in ones)),
        ]
        for name, ones in found
        if (rates := _rate(ones))
    ]
    return Table(f"{model}: one ordered stream", ("", "images/s", "errors"), lines, _STREAM)


def _open(measured: Sequence[Measured], model: str) -> Table:
    own = [one for one in measured if one.model == model and one.rate]
    loads = list(dict.fromkeys(one.load for one in own))
    equal = {one.load: one.rate for one in own if one.load.startswith("equal")}
    heads = [f"equal, {rate(equal[load])}/s" if load in equal else load for load in loads]
    lines = []
    for name in dict.fromkeys(one.peer for one in own):
        by_load = {one.load: one for one in own if one.peer == name}
        lines.append([name, *(_open_cell(by_load.get(load), load in equal) for load in loads)])
    return Table(f"{model}: open loop", ("", *heads), lines, _OPEN)


def _open_cell(one: Measured | None, equal: bool) -> str:
    if one is None:
        return "-"
    text = f"{seconds(_quantile(one, 0.5))} / {seconds(_quantile(one, 0.99))}"
    text += "" if equal else f" at {rate(one.rate)}/s"
    return text + (f", {one.result.errors} errors" if one.result.errors else "")


def _settings(measured: Sequence[Measured], peers: Sequence[Peer], note: str) -> Table:
    versions = {one.peer: one.versions for one in measured}
    lines = [
        [peer.name, ", ".join(f"{k} {v}" for k, v in versions[peer.name].items()), peer.settings]
        for peer in peers
        if peer.name in versions
    ]
    return Table("Settings", ("", "versions", "settings"), lines, note)


def _check(measured: Sequence[Measured], model: str, names: Sequence[str]) -> Check | None:
    found = dict(_by_peer(measured, model))
    rates = {name: _rate(ones).median for name, ones in found.items()}
    peers = {name: speed for name, speed in rates.items() if name in names}
    claim = f"{model}: `infer` of single images with {IN_FLIGHT} in flight is ahead of every peer"
    if not peers:
        return None
    if OURS.name not in rates:
        return Check(claim, "asyncinfer itself was not measured", False)
    times = {name: _times(found[OURS.name], found[name]) for name in peers}
    best = min(times, key=lambda name: times[name])
    http = rates.get(OURS_HTTP.name, math.nan)
    text = f"{rate(rates[OURS.name])}/s in process, the best peer is {best} with "
    text += f"{rate(peers[best])}/s: {times[best]:.2f} times, the median of rounds"
    text += f"; CPU an image {_cpu(found[OURS.name])} against {_cpu(found[best])}"
    why = ""
    if math.isfinite(http):
        text += f"; {rate(http)}/s behind HTTP"
        ahead = [name for name, speed in peers.items() if speed > http]
        why = f"behind HTTP itself, asyncinfer is slower than {' and '.join(ahead)}"
        why = why if ahead else "behind HTTP itself, asyncinfer is ahead as well"
    return Check(
        claim,
        text,
        times[best] > 1,
        why,
    )


def _bars(rates: dict[str, float]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        names = list(rates)[::-1]
        ours = (OURS.name, OURS_HTTP.name)
        colours = ["tab:blue" if name in ours else "tab:grey" for name in names]
        axes.barh(names, [rates[name] for name in names], color=colours)
        axes.set_xlabel("images/s")

    return draw
