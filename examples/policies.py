"""What one slow device does to an ordered stream: the plain pull against earliest finish time.

Four devices of 10 ms run a stream in order, with a window of 100 tasks. A fifth one is added that
is 1 to 1000 times slower. How does the throughput compare with that of the four alone? The real
dispatcher runs, in virtual time, so the figures are the same on every machine.

    python examples/policies.py [--plot slow-device.svg] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from asyncinfer import Dispatcher
from asyncinfer.testing import SimulatedDriver, run_virtual

SERVICE_TIME = 0.010
POOL = 4
WINDOW = 100
FACTORS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)
POLICIES = {"greedy": "plain pull", "eft": "earliest finish time"}


async def throughput(service_times: Sequence[float], policy: str, tasks: int) -> float:
    """Results in order per second."""
    drivers = [SimulatedDriver(f"device {n}", t) for n, t in enumerate(service_times)]
    clock = asyncio.get_running_loop().time
    async with Dispatcher(drivers, policy=policy, window=WINDOW) as dispatcher:
        started, expected = clock(), 0
        async for output in dispatcher.stream(range(tasks)):
            assert output == expected, f"{output} came in the place of {expected}"
            expected += 1
        return tasks / (clock() - started)


def compare(policy: str, factors: Sequence[int] = FACTORS, tasks: int = 2000) -> list[float]:
    """The throughput with a device slower by each factor, relative to the pool without it."""
    pool = [SERVICE_TIME] * POOL
    alone = run_virtual(throughput(pool, policy, tasks))
    return [
        run_virtual(throughput([*pool, factor * SERVICE_TIME], policy, tasks)) / alone
        for factor in factors
    ]


def plot(file: Path, curves: dict[str, list[float]]) -> None:
    """Draw the curves; the kind of picture follows from the file's name."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "asyncinfer"  # the same file every time
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")  # on white
    axes.axhline(1, color="#777777", linewidth=1, linestyle=":")
    axes.annotate(f"{POOL} devices alone", (1000, 1.03), ha="right", color="#555555", fontsize=9)
    styles = {"greedy": ("#c44601", "s", "--"), "eft": ("#0b5cad", "o", "-")}
    for policy, values in curves.items():
        color, marker, line = styles[policy]
        axes.plot(FACTORS, values, line, color=color, marker=marker, label=POLICIES[policy])
    axes.set_title(f"{POOL} devices of 10 ms and one slower, window {WINDOW}", fontsize=10)
    axes.set_xscale("log")
    axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    axes.set_ylim(0, 1.35)
    axes.set_xlabel("service time of the added device / service time of the others")
    axes.set_ylabel("throughput in order,\nrelative to the pool without it")
    axes.legend(loc="center left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


def main() -> None:
    """Print the table; draw it if asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plot", type=Path, metavar="FILE.svg|.png")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    curves = {policy: compare(policy) for policy in POLICIES}
    if options.json:
        print(json.dumps({"factors": FACTORS, **curves}))
    else:
        print(f"{'slower by':>10}", *(f"{title:>22}" for title in POLICIES.values()))
        for factor, *values in zip(FACTORS, *curves.values(), strict=True):
            print(f"{factor:>10}", *(f"{value:>22.3f}" for value in values))
    if options.plot:
        plot(options.plot, curves)


if __name__ == "__main__":
    main()
